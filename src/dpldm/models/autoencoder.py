"""The autoencoder between pixels and latents: a stock `AutoencoderKL` or `VQModel`, or none, frozen once it is trained.

Two conventions keep the rest of the package simple:

* Pixels outside are uint8 (N, H, W, C); the network sees float32 (N, C, H', W') in [-1, 1], where H' and W'
  are H and W rounded up to a multiple of the downsampling factor. The margin repeats the edge and is cut off
  again after decoding, so 28x28 images lose nothing.
* Latents have zero mean and unit variance per channel on *public* images. The constants are folded into the
  1x1 convolutions at either end of the latent space (`standardise_latents`), so that `scaling_factor` is 1 and
  any stock pipeline that loads the directory gets the right scale. Foreign autoencoders have a `scaling_factor`,
  which their makers took from public images: `encode` and `decode` apply it, so that latents mean the same everywhere
  else. A `shift_factor` is left alone, as it is by the stock pipelines of all our families.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from dpldm.errors import UserError

PIXELS_AT_ONCE = 1 << 18
"""256 images of 32 x 32."""


@dataclass(frozen=True)
class Posterior:
    """Mean and log-variance of q(z | x), each (N, c, h, w) float32."""

    mean: Tensor
    log_variance: Tensor

    def at(self, noise: Tensor) -> Tensor:
        """The latents that standard Gaussian `noise` (N, c, h, w) selects."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw per image, (N, c, h, w). For public images only: see train/example_losses.py."""
        return self.at(torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype))


class Pixels(nn.Module):
    """The identity in an autoencoder's place: for a model of pixels the latent is the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            in_channels=channels, latent_channels=channels, block_out_channels=(channels,), scaling_factor=1.0
        )
        self.place: Tensor
        self.register_buffer("place", torch.empty(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.place.device


Autoencoder: TypeAlias = AutoencoderKL | VQModel | Pixels


def build_autoencoder(
    image_channels: int,
    latent_channels: int,
    widths: tuple[int, ...],
    layers_per_block: int = 1,
    *,
    codebook: int | None = None,
    middle_attention: bool = False,
    image_size: int = 32,
) -> AutoencoderKL | VQModel:
    """A convolutional autoencoder that shrinks by 2**(len(widths) - 1): a KL one, or a VQ one if it has a codebook.

    `image_size` is that of the images it is trained on: larger ones may be cut into tiles (`tile`). Usually without
    attention in the middle: at 4x4 it costs parameters and buys nothing measurable.
    """
    blocks = len(widths)
    settings: dict[str, Any] = {
        "in_channels": image_channels,
        "out_channels": image_channels,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "block_out_channels": widths,
        "layers_per_block": layers_per_block,
        "latent_channels": latent_channels,
        "norm_num_groups": 8,
        "mid_block_add_attention": middle_attention,
        "scaling_factor": 1.0,
        "sample_size": image_size,
    }
    if codebook is None:
        return AutoencoderKL(**settings)
    network = VQModel(**settings, num_vq_embeddings=codebook)
    network.quantize.legacy = False  # beta weighs the commitment (van den Oord et al. 2017, eq. 3), not the codebook
    return network


def downsampling(autoencoder: Autoencoder) -> int:
    """Pixels per latent along one side."""
    return int(2 ** (len(autoencoder.config.block_out_channels) - 1))


def latent_shape(autoencoder: Autoencoder, image_size: int) -> tuple[int, int, int]:
    """(c, h, w) of the latents of a square image of `image_size` pixels a side."""
    side = -(-image_size // downsampling(autoencoder))
    return (int(autoencoder.config.latent_channels), side, side)


def to_network(pixels: np.ndarray, factor: int) -> Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H', W') in [-1, 1], edges repeated up to a multiple of `factor`."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    height, width = images.shape[-2:]
    return pad_to_multiple(images, factor) if height % factor or width % factor else images


def pad_to_multiple(images: Tensor, factor: int) -> Tensor:
    """Repeat the edge pixels on all four sides until both sides divide by `factor`; (N, C, H, W)."""
    height, width = images.shape[-2:]
    extra_h, extra_w = -height % factor, -width % factor
    margins = (extra_w // 2, extra_w - extra_w // 2, extra_h // 2, extra_h - extra_h // 2)
    return F.pad(images, margins, mode="replicate")


def from_network(images: Tensor, image_size: int) -> np.ndarray:
    """float (N, C, H', W') in [-1, 1] -> uint8 (N, image_size, image_size, C): margin cut, rounded to 8 bits."""
    top = (images.shape[-2] - image_size) // 2
    left = (images.shape[-1] - image_size) // 2
    centre = images[..., top : top + image_size, left : left + image_size]
    levels = ((centre.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def tile(autoencoder: Autoencoder) -> None:
    """From now on, encode and decode images piece by piece if they are larger than those it was trained on.

    Raises:
        UserError: it cannot.
    """
    if not isinstance(autoencoder, AutoencoderKL):
        raise UserError("runtime.tiling is for autoencoders of the class AutoencoderKL: leave it out.")
    autoencoder.enable_tiling()


def images_at_once(image_size: int) -> int:
    """Images that are encoded or decoded together: memory only."""
    return max(1, PIXELS_AT_ONCE // image_size**2)


@torch.no_grad()
def encode(autoencoder: Autoencoder, pixels: np.ndarray) -> Posterior:
    """Posterior of every image, on the CPU; `pixels` is uint8 (N, H, W, C).

    Images never meet: convolutions and group norms treat each one alone, so a record's latent depends on that
    record only (tested), which is what lets a private cache be computed once.
    """
    factor, scale = downsampling(autoencoder), float(autoencoder.config.scaling_factor)
    means, log_variances, together = [], [], images_at_once(pixels.shape[1])
    for start in range(0, len(pixels), together):
        batch = to_network(pixels[start : start + together], factor).to(autoencoder.device)
        posterior = _posterior(autoencoder, batch)
        means.append(posterior.mean.float().cpu() * scale)
        log_variances.append(posterior.log_variance.float().cpu() + 2 * math.log(scale))
    return Posterior(torch.cat(means), torch.cat(log_variances))


def _posterior(autoencoder: Autoencoder, batch: Tensor) -> Posterior:
    """Before scaling. A vector-quantised latent and a pixel have no variance; quantising is the decoder's part."""
    if isinstance(autoencoder, AutoencoderKL):
        found = autoencoder.encode(batch).latent_dist
        return Posterior(found.mean, found.logvar)
    mean = batch if isinstance(autoencoder, Pixels) else autoencoder.encode(batch).latents
    return Posterior(mean, torch.full_like(mean, -torch.inf))


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: Tensor, image_size: int) -> np.ndarray:
    """Latents (N, c, h, w) -> uint8 (N, image_size, image_size, C)."""
    decoded = []
    for part in torch.split(latents, images_at_once(image_size)):
        unscaled = part.to(autoencoder.device) / float(autoencoder.config.scaling_factor)
        images = unscaled if isinstance(autoencoder, Pixels) else autoencoder.decode(unscaled).sample
        decoded.append(from_network(images, image_size))
    return np.concatenate(decoded)


@torch.no_grad()
def standardise_latents(autoencoder: AutoencoderKL | VQModel, mean: Tensor, std: Tensor) -> None:
    """Change the latent coordinates to z' = (z - mean) / std per channel, exactly and in place.

    `quant_conv` maps to (mean, log-variance) of z, or to z, and `post_quant_conv` reads z; both are 1x1 convolutions,
    so the change of coordinates is absorbed by their weights: decode(encode(x)) stays the same function. A codebook is
    moved along, and then all channels are scaled alike, by the root of their mean variance: otherwise other entries
    would be nearest.
    Args are (c,) and must come from public images.
    """
    to_moments, from_latent = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = mean.numel()
    if isinstance(autoencoder, VQModel):
        std = std.square().mean().sqrt().expand(channels)
        codebook = autoencoder.quantize.embedding.weight
        codebook.copy_((codebook - mean) / std)
    to_moments.weight[:channels] /= std[:, None, None, None]
    to_moments.bias[:channels] = (to_moments.bias[:channels] - mean) / std
    to_moments.bias[channels:] -= 2 * std.log()[: len(to_moments.bias) - channels]
    from_latent.bias += from_latent.weight[:, :, 0, 0] @ mean
    from_latent.weight *= std[None, :, None, None]
