"""A start from the noised class means: classes differ before the first update, at no further cost of privacy.

From almost pure noise the best guess of the clean latent is its class's mean (the posterior mean of a diffusion at high
noise). So the embedder's rows are trained on the noised means alone, at the noisiest timesteps: a row then says what
its class looks like from afar, and the private gradients say the rest. Park et al. (2025, DP-FETA) start from noised
central images in the same spirit, but train the whole network on them.
"""

from collections.abc import Mapping

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from dpldm.models.choices import is_of_embedder
from dpldm.models.denoiser import denoising_losses
from dpldm.models.families import family_of
from dpldm.train.public_data import step_generator
from dpldm.train.timesteps import Timesteps

BATCH = 128
LEARNING_RATE = 3e-3
FROM = 0.75
"""Where the noisiest part of the schedule begins: beyond it little is left of a latent but what its class says."""


def warm_start(
    network: nn.Module, trainable: Mapping[str, nn.Parameter], scheduler: DDPMScheduler, means: Tensor, steps: int
) -> None:
    """Train the tuned part of the embedder on `means` (K, c, h, w), which are DP outputs, in place.

    All randomness is public: the same means give the same rows.
    """
    family = family_of(network)
    rows = [parameter for name, parameter in trainable.items() if is_of_embedder(name, family.names)]
    optimizer = torch.optim.Adam(rows, lr=LEARNING_RATE)
    law = Timesteps(int(scheduler.config.num_train_timesteps), ((FROM, 1.0, 1.0),))
    device = rows[0].device
    for step in range(steps):
        generator = step_generator(0, step)
        labels = torch.randint(len(means), (BATCH,), generator=generator)
        timesteps = law.at(torch.rand(BATCH, generator=generator, dtype=torch.float64))
        noise = torch.randn((BATCH, *means.shape[1:]), generator=generator)
        told = family.condition(network, labels)
        given = [tensor.to(device) for tensor in (means[labels], told, timesteps, noise)]
        gradients = torch.autograd.grad(denoising_losses(network, scheduler, *given).mean(), rows)
        for parameter, gradient in zip(rows, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    optimizer.zero_grad()
