"""Stage 1: the autoencoder, trained on public images. No private image and no privacy cost."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from dpldm.models.autoencoder import Autoencoder, build_autoencoder, decode, encode, standardise_latents
from dpldm.models.backbone import load_backbone
from dpldm.recipe import AutoencoderRecipe
from dpldm.train.inheriting import inherit
from dpldm.train.public_data import batch_of, jitter, step_generator
from dpldm.train.public_training import CPU, PublicTraining


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


def reconstructed(
    autoencoder: AutoencoderKL | VQModel, images: Tensor, kl_weight: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images through the bottleneck, (N, C, H, W) float32, and what the bottleneck costs, ().

    Of a KL autoencoder, kl_weight * KL(q(z|x) || N(0, I)), mean over the batch, z drawn by `generator`. Of a VQ one,
    the mean squares by which entries of the codebook are drawn to latents, and, at a quarter, latents to entries.
    """
    if isinstance(autoencoder, VQModel):
        found = autoencoder.decode(autoencoder.encode(images).latents.float())
        return found.sample.float(), found.commit_loss
    posterior = autoencoder.encode(images).latent_dist
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    reconstruction = autoencoder.decode(mean + torch.exp(0.5 * log_variance) * noise).sample.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
    return reconstruction, kl_weight * divergence.mean()


def autoencoder_loss(
    autoencoder: AutoencoderKL | VQModel, images: Tensor, kl_weight: float, generator: torch.Generator
) -> Tensor:
    """The light loss: reconstruction + the bottleneck's cost, mean over the batch."""
    reconstruction, cost = reconstructed(autoencoder, images, kl_weight, generator)
    return reconstruction_loss(reconstruction, images).mean() + cost


class AutoencoderTraining(PublicTraining):
    """Stage 1 over `images`, uint8 (N, S, S, C)."""

    def __init__(
        self,
        recipe: AutoencoderRecipe,
        images: np.ndarray,
        seed: int,
        checkpoint: Path,
        *,
        jittered: bool = True,
        device: torch.device = CPU,
    ) -> None:
        torch.manual_seed(seed)
        network = build_autoencoder(
            images.shape[3],
            recipe.latent_channels,
            recipe.widths,
            recipe.layers_per_block,
            codebook=recipe.codebook,
            middle_attention=recipe.middle_attention,
            image_size=images.shape[1],
        )
        if recipe.start is not None:
            inherit(network, load_backbone(recipe.start).autoencoder)
        self.recipe, self.images, self.jittered = recipe, images, jittered
        super().__init__(network, recipe, seed, checkpoint, device)

    def batch(self, generator: torch.Generator) -> Tensor:
        """Public images (B, C, S, S) in [-1, 1], jittered unless the recipe says otherwise."""
        images = batch_of(self.images, self.recipe.batch_size, generator)
        return (jitter(images, generator) if self.jittered else images).to(self.device)

    def loss(self, generator: torch.Generator) -> Tensor:
        batch = self.batch(generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            return autoencoder_loss(self.network, batch, self.recipe.kl_weight, generator)

    def finish(self) -> AutoencoderKL | VQModel:
        """The averaged network, frozen, its latents standardised on 10,000 public images."""
        network: AutoencoderKL | VQModel = self.averaged()
        rows = torch.randperm(len(self.images), generator=step_generator(self.seed, self.recipe.steps))[:10_000]
        means = encode(network, self.images[rows.numpy()]).mean
        mean, deviation = means.mean((0, 2, 3)), means.std((0, 2, 3))
        standardise_latents(network, mean.to(self.device), deviation.to(self.device))
        return network


def mean_absolute_error(autoencoder: Autoencoder, pixels: np.ndarray) -> float:
    """Mean |decode(encode(x)) - x| on the [-1, 1] scale; `pixels` is uint8 (N, H, W, C)."""
    restored = decode(autoencoder, encode(autoencoder, pixels).mean, pixels.shape[1])
    return float(np.abs(restored.astype(np.float32) - pixels.astype(np.float32)).mean() / 127.5)
