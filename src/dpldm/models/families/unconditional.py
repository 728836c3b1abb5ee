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
