"""Which class of the public backbone an image resembles most: something a network that was told classes knows already.

From pure noise a denoiser's best guess of the clean latent is the mean of the class it is told (the posterior mean of a
diffusion at its noisiest). One evaluation a class gives that mean; an image belongs to the nearest. Nothing here sees
another image, so what a network is told about an image stays a function of that image alone.
"""

import torch
from diffusers import DDPMScheduler
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.models.families import family_of
from dpldm.train.public_data import step_generator

DRAWS = 8
"""Noises over which a class's guess is averaged. Of grey32's 256 guesses every one is nearest to the mean of the images
drawn for its own class."""
ROWS = 1024
"""Latents compared at once: memory only."""


def adapt(network: nn.Module, config: RunConfig) -> None:
    """Make room for the run's classes, in place, beside the public ones if they are told too (see `Family.adapt`)."""
    keep = config.privacy.public_classes_noise is not None
    family_of(network).adapt(network, len(config.data.labels), keep_public=keep)


def merged(guesses: Tensor, groups: int) -> Tensor:
    """Centres (`groups`, c, h, w) of groups of alike guesses (C, c, h, w), by k-means; public and repeatable.

    Raises:
        UserError: there are fewer guesses than groups.
    """
    if len(guesses) < groups:
        raise UserError(
            f"privacy.class_parts is {groups}, and the backbone has {len(guesses)} classes of its own: lower it."
        )
    centres, _ = kmeans2(guesses.flatten(1).double().numpy(), groups, iter=30, minit="++", seed=0)
    return torch.from_numpy(centres).float().view(groups, *guesses.shape[1:])


@torch.no_grad()
def class_guesses(network: nn.Module, scheduler: DDPMScheduler, ids: Tensor, shape: torch.Size) -> Tensor:
    """The network's guess of a latent of `shape` for each of the ids (C,), from pure noise: (C, *shape). Public."""
    family, device = family_of(network), next(network.parameters()).device
    told = family.condition(network, ids).to(device)
    last = torch.tensor(int(scheduler.config.num_train_timesteps) - 1)
    total = torch.zeros(len(ids), *shape)
    for draw in range(DRAWS):
        noise = torch.randn((len(ids), *shape), generator=step_generator(0, draw))
        predicted = family.predict(network, noise.to(device), last.to(device), told).cpu()
        # The generator is for the step itself, which is not used: it must not touch torch's own.
        total += scheduler.step(predicted, last, noise, generator=step_generator(1, draw)).pred_original_sample
    return total / DRAWS


def nearest(latents: Tensor, guesses: Tensor) -> Tensor:
    """For each of the latents (N, c, h, w) the number of the nearest of the guesses (C, c, h, w): (N,) int64."""
    # Not by matrix products, whose last bits depend on what else is compared in the same call.
    mode, wanted = "donot_use_mm_for_euclid_dist", guesses.flatten(1)
    parts = [torch.cdist(part.flatten(1), wanted, compute_mode=mode).argmin(1) for part in torch.split(latents, ROWS)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
