"""Stage 2: the conditional denoiser, trained on latents of public images. No privacy cost.

Public images need no labels: the clusters of their latents (k-means) serve as pseudo-classes, so that the
network has learnt to obey a label before it meets private ones.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from scipy.cluster.vq import kmeans2, vq
from torch import Tensor

from dpldm.models.autoencoder import Posterior, encode
from dpldm.models.denoiser import build_denoiser, build_scheduler, condition, denoising_losses
from dpldm.recipe import DiffusionRecipe
from dpldm.train.public_data import jitter, step_generator
from dpldm.train.public_training import PublicTraining


def encode_public(autoencoder: AutoencoderKL, pixels: np.ndarray, seed: int) -> Posterior:
    """Posteriors of jittered public images (uint8 (N, H, W, C)), encoded once."""
    means, log_variances = [], []
    for start in range(0, len(pixels), 1024):
        images = torch.from_numpy(pixels[start : start + 1024]).permute(0, 3, 1, 2).float() / 127.5 - 1
        jittered = jitter(images, step_generator(seed, start))
        levels = ((jittered.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        posterior = encode(autoencoder, levels)
        means.append(posterior.mean)
        log_variances.append(posterior.log_variance)
    return Posterior(torch.cat(means), torch.cat(log_variances))


def pseudo_classes(latents: Tensor, clusters: int, seed: int, sample: int = 30_000) -> Tensor:
    """Label every latent (N, c, h, w) with its k-means cluster, fitted on a random sample; (N,) int64."""
    flat = latents.flatten(1).numpy().astype(np.float64)
    rows = np.random.default_rng(seed).choice(len(flat), min(sample, len(flat)), replace=False)
    centres, _ = kmeans2(flat[rows], clusters, iter=30, minit="++", seed=seed)
    labels = np.concatenate([vq(part, centres)[0] for part in np.array_split(flat, max(1, len(flat) // 20_000))])
    return torch.from_numpy(labels.astype(np.int64))


class DiffusionTraining(PublicTraining):
    """Stage 2 over the posteriors and labels of public images."""

    def __init__(
        self, recipe: DiffusionRecipe, posterior: Posterior, labels: Tensor, seed: int, checkpoint: Path
    ) -> None:
        torch.manual_seed(seed)
        _, channels, size, _ = posterior.mean.shape
        network = build_denoiser(
            channels,
            size,
            recipe.pseudo_classes,
            widths=recipe.widths,
            layers_per_block=recipe.layers_per_block,
            heads=recipe.heads,
            condition_dim=recipe.condition_dim,
        )
        super().__init__(network, recipe, seed, checkpoint)
        self.recipe, self.posterior, self.labels = recipe, posterior, labels
        self.scheduler = build_scheduler(recipe.prediction_type)

    def loss(self, generator: torch.Generator) -> Tensor:
        recipe, size = self.recipe, self.recipe.batch_size
        rows = torch.randint(len(self.labels), (size,), generator=generator)
        latents = Posterior(self.posterior.mean[rows], self.posterior.log_variance[rows]).sample(generator)
        unlabelled = torch.rand(size, generator=generator) < recipe.label_dropout
        labels = torch.where(unlabelled, recipe.pseudo_classes, self.labels[rows])
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (size,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        context = condition(labels, recipe.pseudo_classes)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            return denoising_losses(self.network, self.scheduler, latents, context, timesteps, noise).mean()
