"""Stage 2: the conditional denoiser, trained on latents of public images. No privacy cost.

Public images need no labels: the clusters of their latents (k-means) can serve as pseudo-classes, so that the
network has learnt to obey a label before it meets private ones. Or it is told the labels that there are, the names of
what images show, by a frozen text encoder, or nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from torch import Tensor, nn

from dpldm.models.autoencoder import Autoencoder, Posterior, encode
from dpldm.models.backbone import load_backbone
from dpldm.models.denoiser import build_scheduler, condition, denoising_losses
from dpldm.models.families.class_token import build_told
from dpldm.models.families.unconditional import build_unconditional
from dpldm.recipe import DiffusionRecipe
from dpldm.train.inheriting import inherit
from dpldm.train.public_data import jitter, step_generator
from dpldm.train.public_training import CPU, PublicTraining


def encode_public(autoencoder: Autoencoder, pixels: np.ndarray, seed: int, *, jittered: bool = True) -> Posterior:
    """Posteriors of public images (uint8 (N, H, W, C)), encoded once, `jittered` or as they are."""
    if not jittered:
        return encode(autoencoder, pixels)
    means, log_variances = [], []
    for start in range(0, len(pixels), 1024):
        images = torch.from_numpy(pixels[start : start + 1024]).permute(0, 3, 1, 2).float() / 127.5 - 1
        varied = jitter(images, step_generator(seed, start))
        levels = ((varied.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
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


@dataclass(frozen=True)
class Told:
    """What the network is told about each public image."""

    table: Tensor  # (K + 1, T, d) float32: K different conditions of T tokens each, and the one that tells nothing
    rows: Tensor  # (N,) int64 in [0, K): the condition of each image
    texts: tuple[str, ...] = ()  # K, if the conditions are texts that were read


def told_classes(labels: Tensor, classes: int) -> Told:
    """Of labels (N,), or pseudo-classes: one-hot, as a class embedder takes them."""
    return Told(condition(torch.arange(classes + 1), classes), labels)


def told_nothing(count: int) -> Told:
    """Of so many images; the network does not look at it."""
    return Told(torch.zeros(2, 1, 1), torch.zeros(count, dtype=torch.int64))


def build_network(recipe: DiffusionRecipe, channels: int, size: int, told_dim: int) -> nn.Module:
    """The denoiser of a recipe, for latents of `size` a side, told tokens of `told_dim` numbers, if anything."""
    network: nn.Module
    if recipe.told == "nothing":
        heads = recipe.heads if isinstance(recipe.heads, int) else recipe.heads[0]
        network = build_unconditional(
            *(channels, size),
            widths=recipe.widths,
            layers_per_block=recipe.layers_per_block,
            heads=heads,
            attention=recipe.attention,
        )
    else:
        network = build_told(
            *(channels, size, told_dim),
            widths=recipe.widths,
            layers_per_block=recipe.layers_per_block,
            heads=recipe.heads,
            condition_dim=recipe.condition_dim,
            attention=recipe.attention,
        )
    return network


class DiffusionTraining(PublicTraining):
    """Stage 2 over the posteriors of public images and what is told about each."""

    def __init__(
        self,
        recipe: DiffusionRecipe,
        posterior: Posterior,
        told: Told,
        seed: int,
        checkpoint: Path,
        *,
        device: torch.device = CPU,
    ) -> None:
        torch.manual_seed(seed)
        _, channels, size, _ = posterior.mean.shape
        network = build_network(recipe, channels, size, told.table.shape[2])
        if recipe.start is not None:
            inherit(network, load_backbone(recipe.start).denoiser)
        super().__init__(network, recipe, seed, checkpoint, device)
        self.recipe, self.posterior, self.told = recipe, posterior, told
        self.scheduler = build_scheduler(recipe.prediction_type)

    def loss(self, generator: torch.Generator) -> Tensor:
        recipe, size = self.recipe, self.recipe.batch_size
        rows = torch.randint(len(self.told.rows), (size,), generator=generator)
        latents = Posterior(self.posterior.mean[rows], self.posterior.log_variance[rows]).sample(generator)
        untold = torch.rand(size, generator=generator) < recipe.label_dropout
        conditions = torch.where(untold, len(self.told.table) - 1, self.told.rows[rows])
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (size,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        inputs = [tensor.to(self.device) for tensor in (latents, self.told.table[conditions], timesteps, noise)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            return denoising_losses(self.network, self.scheduler, *inputs).mean()
