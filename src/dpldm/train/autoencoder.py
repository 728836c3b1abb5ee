"""Stage 1: the autoencoder, trained on public images. No private image and no privacy cost."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dpldm.models.autoencoder import build_autoencoder, decode, encode, standardise_latents
from dpldm.recipe import AutoencoderRecipe
from dpldm.train.public_data import batch_of, jitter, step_generator
from dpldm.train.public_training import PublicTraining


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Per-image L1 + L2 plus the L1 distance of horizontal and vertical differences, (N,).

    The last term weighs edges and fine texture, which plain L1 trades away first. It stands in for a
    perceptual loss, which would need the weights of another network.
    """
    error = reconstruction - images
    slope_x = error[..., :, 1:] - error[..., :, :-1]
    slope_y = error[..., 1:, :] - error[..., :-1, :]
    per_pixel = error.abs().flatten(1).mean(1) + error.square().flatten(1).mean(1)
    return per_pixel + slope_x.abs().flatten(1).mean(1) + slope_y.abs().flatten(1).mean(1)


def autoencoder_loss(
    autoencoder: AutoencoderKL, images: Tensor, kl_weight: float, generator: torch.Generator
) -> Tensor:
    """Reconstruction + kl_weight * KL(q(z|x) || N(0, I)), mean over the batch (Rombach et al. 2022, app. G)."""
    posterior = autoencoder.encode(images).latent_dist
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    noise = torch.randn(mean.shape, generator=generator)
    reconstruction = autoencoder.decode(mean + torch.exp(0.5 * log_variance) * noise).sample.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
    loss: Tensor = (reconstruction_loss(reconstruction, images) + kl_weight * divergence).mean()
    return loss


class AutoencoderTraining(PublicTraining):
    """Stage 1 over `images`, uint8 (N, S, S, C)."""

    def __init__(self, recipe: AutoencoderRecipe, images: np.ndarray, seed: int, checkpoint: Path) -> None:
        torch.manual_seed(seed)
        network = build_autoencoder(images.shape[3], recipe.latent_channels, recipe.widths, recipe.layers_per_block)
        super().__init__(network, recipe, seed, checkpoint)
        self.recipe, self.images = recipe, images

    def loss(self, generator: torch.Generator) -> Tensor:
        batch = jitter(batch_of(self.images, self.recipe.batch_size, generator), generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            return autoencoder_loss(self.network, batch, self.recipe.kl_weight, generator)

    def finish(self) -> AutoencoderKL:
        """The averaged network, frozen, its latents standardised on 10,000 public images."""
        network = self.averaged()
        rows = torch.randperm(len(self.images), generator=step_generator(self.seed, self.recipe.steps))[:10_000]
        means = encode(network, self.images[rows.numpy()]).mean
        standardise_latents(network, means.mean((0, 2, 3)), means.std((0, 2, 3)))
        return network


def mean_absolute_error(autoencoder: AutoencoderKL, pixels: np.ndarray) -> float:
    """Mean |decode(encode(x)) - x| on the [-1, 1] scale; `pixels` is uint8 (N, H, W, C)."""
    restored = decode(autoencoder, encode(autoencoder, pixels).mean, pixels.shape[1])
    return float(np.abs(restored.astype(np.float32) - pixels.astype(np.float32)).mean() / 127.5)
