"""The loss of each record, and the randomness it takes: latent, noise, timestep, and whether its label is hidden."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from dpldm.config import OptimizerConfig
from dpldm.data.latents import PrivateLatents
from dpldm.models.autoencoder import Posterior
from dpldm.models.denoiser import denoising_losses
from dpldm.models.families import family_of
from dpldm.privacy.entropy import Entropy, random_units
from dpldm.privacy.noise import standard_gaussian
from dpldm.train.timesteps import Timesteps


@dataclass(frozen=True)
class Draws:
    """The randomness of B records with K draws each; example-major, so the K rows of a record are neighbours."""

    latent: Tensor  # (B K, c, h, w) standard Gaussian: which latent of its posterior a record shows
    noise: Tensor  # (B K, c, h, w) standard Gaussian: what the network must find
    timestep: Tensor  # (B K,) int64 in [0, timesteps)
    null: Tensor  # (B,) bool: the label is hidden, for guidance; the same for all draws of a record


def fresh_draws(
    records: int, draws: int, shape: torch.Size, timesteps: Timesteps, label_dropout: float, entropy: Entropy
) -> Draws:
    """Draws for one physical pass, every value from entropy of its own.

    A seeded generator would not do: its few possible streams are shared by all records of a pass, so one record more
    would change everybody's draws, and the clipped sum by far more than C (docs/privacy.md, step 2).
    """
    rows = records * draws

    def gaussian() -> Tensor:
        return standard_gaussian(rows * shape.numel(), entropy).float().view(rows, *shape)

    return Draws(
        latent=gaussian(),
        noise=gaussian(),
        timestep=timesteps.at(random_units(rows, entropy)),
        null=random_units(records, entropy) < label_dropout,
    )


def timestep_law(scheduler: DDPMScheduler, settings: OptimizerConfig) -> Timesteps:
    """Which timesteps of the backbone's noise schedule are trained on, and how often."""
    return Timesteps(int(scheduler.config.num_train_timesteps), settings.timesteps)


def example_losses(
    network: nn.Module,
    scheduler: DDPMScheduler,
    latents: PrivateLatents,
    rows: Tensor,
    draws: Draws,
    *,
    min_snr: float | None = None,
) -> Tensor:
    """Loss of each record of `rows`, (B,): the mean over its K draws of (latent, timestep, noise).

    Latents and draws are on the CPU; the rows of this pass are moved to the network's device.
    """
    device, each = next(network.parameters()).device, len(draws.timestep) // max(1, len(rows))
    repeated = rows.repeat_interleave(each)
    samples = Posterior(latents.posterior.mean[repeated], latents.posterior.log_variance[repeated]).at(draws.latent)
    context = told(network, latents, rows, draws.null).repeat_interleave(each, 0)
    inputs = [tensor.to(device) for tensor in (samples, context, draws.timestep, draws.noise)]
    losses = denoising_losses(network, scheduler, *inputs, min_snr=min_snr)
    return losses.view(-1, each).mean(1)


def told(network: nn.Module, latents: PrivateLatents, rows: Tensor, hidden: Tensor) -> Tensor:
    """What the network is told about each record, as its family's condition: the label, perhaps with a public class, or
    the caption; or that there is none, where it is `hidden` (B,) or the record has no label."""
    family, labels = family_of(network), latents.labels[rows]
    null = family.null(network)
    if latents.publics is not None:
        publics = latents.publics[rows]
        pairs = torch.stack([torch.where(labels < 0, publics, labels), publics], 1)
        return family.condition(network, torch.where(hidden[:, None], null, pairs))
    if latents.tokens is None:
        return family.condition(network, torch.where(hidden | (labels < 0), null, labels))
    return family.condition(network, torch.where(hidden[:, None], null, latents.tokens[rows]))
