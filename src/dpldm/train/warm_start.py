"""A start from noised answers about classes: known before the first update, at no further cost of privacy.

With means alone: from almost pure noise the best guess of the clean latent is its class's mean (the posterior mean of a
diffusion at high noise). So the embedder's rows are trained on the noised means, at the noisiest timesteps: a row
then says what its class looks like from afar, and the private gradients say the rest. With covariances too there is
something to draw, so that all that is tuned is trained, at all timesteps, on latents drawn from the portraits.

Park et al. (2025, DP-FETA) start from noised central images in the same spirit.
"""

from collections.abc import Mapping

import torch
from diffusers import DDPMScheduler
from torch import nn

from dpldm.config import OptimizerConfig
from dpldm.models.choices import is_of_embedder
from dpldm.models.denoiser import denoising_losses
from dpldm.models.families import family_of
from dpldm.train.portraits import Portraits
from dpldm.train.public_data import step_generator
from dpldm.train.schedule import rate
from dpldm.train.timesteps import Timesteps

BATCH = 128
RATE_OF_ROWS, RATE_OF_ALL = 3e-3, 2e-3
WARMUP = 50
FROM = 0.75
"""Where the noisiest part of the schedule begins: beyond it little is left of a latent but what its class says."""


def warm_start(
    network: nn.Module,
    trainable: Mapping[str, nn.Parameter],
    scheduler: DDPMScheduler,
    portraits: Portraits,
    settings: OptimizerConfig,
) -> None:
    """Train on `portraits`, which are DP outputs, in place: `settings.warm_start_steps` steps.

    All randomness is public: the same portraits give the same weights.
    """
    family, drawn = family_of(network), portraits.factors.shape[2] > 0
    tuned = [parameter for name, parameter in trainable.items() if drawn or is_of_embedder(name, family.names)]
    parts = settings.timesteps if drawn else ((FROM, 1.0, 1.0),)
    law = Timesteps(int(scheduler.config.num_train_timesteps), parts)
    optimizer = torch.optim.Adam(tuned, lr=RATE_OF_ALL if drawn else RATE_OF_ROWS)
    device, null = tuned[0].device, family.null(network)
    for step in range(settings.warm_start_steps):
        generator = step_generator(0, step)
        labels = torch.randint(len(portraits.means), (BATCH,), generator=generator)
        timesteps = law.at(torch.rand(BATCH, generator=generator, dtype=torch.float64))
        latents = portraits.draw(labels, generator)
        noise = torch.randn(latents.shape, generator=generator)
        if drawn:
            hidden = torch.rand(BATCH, generator=generator) < settings.label_dropout
            labels = torch.where(hidden, null, labels)
            factor = rate("linear", step, settings.warm_start_steps, WARMUP)
            optimizer.param_groups[0]["lr"] = RATE_OF_ALL * factor
        given = [tensor.to(device) for tensor in (latents, family.condition(network, labels), timesteps, noise)]
        losses = denoising_losses(network, scheduler, *given, min_snr=settings.min_snr)
        for parameter, gradient in zip(tuned, torch.autograd.grad(losses.mean(), tuned), strict=True):
            parameter.grad = gradient
        optimizer.step()
    optimizer.zero_grad()
