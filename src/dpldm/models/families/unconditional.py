"""Models that are told nothing: `UNet2DModel` over latents (`LDMPipeline`) or over pixels (`DDPMPipeline`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from diffusers import UNet2DModel
from torch import Tensor, nn

from dpldm.errors import UserError
from dpldm.models.choices import UNCONDITIONAL
from dpldm.models.families.family import Family, Layout
from dpldm.models.families.parts import load_part, require_class, save_half


def build_unconditional(
    latent_channels: int,
    latent_size: int,
    *,
    widths: tuple[int, ...],
    layers_per_block: int,
    heads: int,
    attention: tuple[bool, ...] | None = None,
) -> UNet2DModel:
    """A UNet with self-attention at every resolution, or at those that `attention` says; `heads` at the first, heads of
    that width at the others."""
    attending = attention or (True,) * len(widths)
    return UNet2DModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=tuple("AttnDownBlock2D" if each else "DownBlock2D" for each in attending),
        up_block_types=tuple("AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attending)),
        block_out_channels=widths,
        layers_per_block=layers_per_block,
        attention_head_dim=widths[0] // heads,
        norm_num_groups=16,
    )


class Unconditional(Family):
    """See the head of this file."""

    title = "unconditional"
    layouts: ClassVar[Mapping[str, Layout]] = {
        "LDMPipeline": Layout(autoencoder="vqvae"),
        "DDPMPipeline": Layout(autoencoder=None),
        "DDIMPipeline": Layout(autoencoder=None),
    }
    names = UNCONDITIONAL
    told = "nothing"

    def owns(self, network: nn.Module) -> bool:
        """See `Family.owns`."""
        return isinstance(network, UNet2DModel)

    def load(self, directory: Path, index: Mapping[str, Any], layout: Layout) -> nn.Module:
        """See `Family.load`."""
        require_class(index, layout.denoiser, ("UNet2DModel",))
        network = load_part(UNet2DModel, directory / layout.denoiser)
        settings = self.settings(network)
        if settings["num_class_embeds"] is not None or settings["class_embed_type"] is not None:
            raise UserError(
                f"The UNet in {directory} is told classes, and no stock pipeline of its kind passes them on: use a "
                "DiTPipeline for classes, or a UNet without num_class_embeds."
            )
        return network

    def save(self, network: nn.Module, directory: Path, layout: Layout, source: Path | None) -> None:
        """See `Family.save`."""
        save_half(network, directory / layout.denoiser, source and source / layout.denoiser)

    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """See `Family.predict`."""
        predicted: Tensor = network(noisy, timesteps).sample
        return predicted
