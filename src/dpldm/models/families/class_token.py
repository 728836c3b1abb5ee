"""What `dpldm pretrain` makes for classes: a stock `UNet2DConditionModel`, over latents or pixels, told one by a token.

The class embedder lives inside the stock network: `encoder_hid_dim_type="text_proj"` is a Linear layer from
one-hot labels to one context token for cross-attention. Index K of K + 1 means "no label" (classifier-free
guidance). With a single context token the softmax of cross-attention runs over one key and is constant, so
`attn2.to_q`, `attn2.to_k` and `norm2` have no influence and no gradient: they are frozen by construction
(models/trainable.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NotRequired, TypedDict, Unpack

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dpldm.models.choices import CLASS_TOKEN
from dpldm.models.families.family import Family, Layout
from dpldm.models.families.parts import load_part, save_half


class ClassToken(Family):
    """See the head of this file."""

    title = "class token"
    layouts: ClassVar[Mapping[str, Layout]] = {
        "ClassConditionalLDMPipeline": Layout(),
        "ClassConditionalPixelPipeline": Layout(denoiser="pixel_unet", autoencoder=None),
    }
    names = CLASS_TOKEN
    told = "classes"
    side = "padded"

    def owns(self, network: nn.Module) -> bool:
        """See `Family.owns`."""
        return isinstance(network, UNet2DConditionModel) and network.config.encoder_hid_dim_type == "text_proj"

    def load(self, directory: Path, index: Mapping[str, Any], layout: Layout) -> nn.Module:
        """See `Family.load`."""
        return load_part(UNet2DConditionModel, directory / layout.denoiser)

    def save(self, network: nn.Module, directory: Path, layout: Layout, source: Path | None) -> None:
        """See `Family.save`."""
        save_half(network, directory / layout.denoiser, source and source / layout.denoiser)

    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """See `Family.predict`."""
        predicted: Tensor = network(noisy, timesteps, encoder_hidden_states=condition).sample
        return predicted

    def null(self, network: nn.Module) -> Tensor:
        """See `Family.null`."""
        return torch.tensor(class_count(network))

    def condition(self, network: nn.Module, ids: Tensor) -> Tensor:
        """See `Family.condition`."""
        return condition(ids, class_count(network))

    def public_classes(self, settings: Mapping[str, Any]) -> int:
        """See `Family.public_classes`."""
        return int(settings["encoder_hid_dim"]) - 1

    def adapt(self, network: nn.Module, classes: int, *, keep_public: bool = False) -> None:
        """See `Family.adapt`."""
        adapt_to_labels(network, classes, keep_public=keep_public)


class Sizes(TypedDict):
    """What a UNet is made of."""

    widths: tuple[int, ...]  # channels per resolution
    layers_per_block: int
    heads: int | tuple[int, ...]  # of attention: the same at all resolutions, or one number for each
    condition_dim: int  # width of a condition token
    attention: NotRequired[tuple[bool, ...] | None]  # whether there is any at each resolution; None: at all


def build_denoiser(
    latent_channels: int, latent_size: int, classes: int, **sizes: Unpack[Sizes]
) -> UNet2DConditionModel:
    """A UNet that is told one of so many classes, or none (`condition`)."""
    return build_told(latent_channels, latent_size, classes + 1, **sizes)


def build_told(latent_channels: int, latent_size: int, told_dim: int, **sizes: Unpack[Sizes]) -> UNet2DConditionModel:
    """A UNet that is told any number of tokens of `told_dim` numbers each, attention where `sizes` says."""
    widths = sizes["widths"]
    attending = sizes.get("attention") or (True,) * len(widths)
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attending),
        up_block_types=tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attending)),
        block_out_channels=widths,
        layers_per_block=sizes["layers_per_block"],
        attention_head_dim=sizes["heads"],  # diffusers reads this as the number of heads
        cross_attention_dim=sizes["condition_dim"],
        encoder_hid_dim=told_dim,
        encoder_hid_dim_type="text_proj",
        norm_num_groups=16,
        use_linear_projection=True,
    )


def class_count(denoiser: UNet2DConditionModel) -> int:
    """Number of classes, without the null label."""
    return int(denoiser.config.encoder_hid_dim) - 1


def condition(labels: Tensor, classes: int) -> Tensor:
    """Context for the embedder: 1 at each label of (N,) or (N, T) in [0, classes], `classes` = no label; else 0.

    Returns:
        (N, 1, classes + 1): the token is the sum of the labels' rows.
    """
    hot = F.one_hot(labels, classes + 1)
    return (hot if labels.dim() == 1 else hot.amax(1)).float()[:, None]


@torch.no_grad()
def adapt_to_labels(denoiser: UNet2DConditionModel, classes: int, *, keep_public: bool = False) -> None:
    """Give the embedder one row per private label by a rule that sees no private image, in place.

    The null row, the last, is copied. Every class row starts at the mean of the public class rows, so that before
    fine-tuning all labels mean "an average public image" and no label is favoured. With `keep_public` the public rows
    stay, behind the private ones, which start at 0: what is added to a public row.
    """
    old = denoiser.encoder_hid_proj
    public, null = old.weight[:, :-1], old.weight[:, -1:]
    mean = public.mean(1, keepdim=True).expand(-1, classes)
    columns = [torch.zeros_like(mean), public, null] if keep_public else [mean, null]
    weight = torch.cat(columns, 1)
    new = nn.Linear(weight.shape[1], old.out_features, device=old.weight.device, dtype=old.weight.dtype)
    new.bias.copy_(old.bias)
    new.weight.copy_(weight)
    denoiser.encoder_hid_proj = new
    denoiser.register_to_config(encoder_hid_dim=weight.shape[1])
