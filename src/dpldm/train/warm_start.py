"""A start from noised answers about classes: known before the first update, at no further cost of privacy.

With means alone: from almost pure noise the best guess of the clean latent is its class's mean (the posterior mean of a
diffusion at high noise). So the embedder's rows are trained on the noised means, at the noisiest timesteps: a row
then says what its class looks like from afar, and the private gradients say the rest. With covariances too there is
something to draw, so that all that is tuned is trained, at all timesteps, on latents drawn from the portraits.

Park et al. (2025, DP-FETA) start from noised central images in the same spirit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import nn

from dpldm.config import OptimizerConfig
from dpldm.models.choices import Names, is_of_embedder
from dpldm.models.denoiser import denoising_losses
from dpldm.models.families import family_of
from dpldm.progress import OnProgress, unseen
from dpldm.train.portraits import Portraits
from dpldm.train.public_data import step_generator
from dpldm.train.schedule import rate
from dpldm.train.timesteps import Timesteps

BATCH = 128
FROM = 0.75
"""Where the noisiest part of the schedule begins: beyond it little is left of a latent but what its class says."""


@dataclass(frozen=True)
class Lesson:
    """What is trained on portraits, and how."""

    parameters: list[nn.Parameter]
    law: Timesteps
    label_dropout: float
    learning_rate: float
    decay: str
    warmup_steps: int


def lesson_of(
    portraits: Portraits, trainable: Mapping[str, nn.Parameter], last: int, settings: OptimizerConfig, names: Names
) -> Lesson:
    """Rows of classes from means, at the noisiest timesteps; all of `trainable` from what can be drawn, at all."""
    if portraits.factors.shape[2] == 0:
        rows = [parameter for name, parameter in trainable.items() if is_of_embedder(name, names)]
        return Lesson(rows, Timesteps(last, ((FROM, 1.0, 1.0),)), 0.0, 3e-3, "constant", 0)
    law = Timesteps(last, settings.timesteps)
    return Lesson(list(trainable.values()), law, settings.label_dropout, 2e-3, "linear", 50)


def warm_start(
    network: nn.Module,
    trainable: Mapping[str, nn.Parameter],
    scheduler: DDPMScheduler,
    portraits: Portraits,
    settings: OptimizerConfig,
    on_progress: OnProgress = unseen,
) -> None:
    """Train `settings.warm_start_steps` steps on `portraits`, which are DP outputs, in place.

    All randomness is public: the same portraits give the same weights.
    """
    family, steps = family_of(network), settings.warm_start_steps
    lesson = lesson_of(portraits, trainable, int(scheduler.config.num_train_timesteps), settings, family.names)
    optimizer = torch.optim.Adam(lesson.parameters, lr=lesson.learning_rate)
    device, null = lesson.parameters[0].device, family.null(network)
    for step in range(steps):
        generator = step_generator(0, step)
        labels = torch.randint(len(portraits.means), (BATCH,), generator=generator)
        timesteps = lesson.law.at(torch.rand(BATCH, generator=generator, dtype=torch.float64))
        latents = portraits.draw(labels, generator)
        noise = torch.randn(latents.shape, generator=generator)
        hidden = torch.rand(BATCH, generator=generator) < lesson.label_dropout
        told = family.condition(network, torch.where(hidden, null, labels))
        given = [tensor.to(device) for tensor in (latents, told, timesteps, noise)]
        losses = denoising_losses(network, scheduler, *given, min_snr=settings.min_snr)
        gradients = torch.autograd.grad(losses.mean(), lesson.parameters)
        for parameter, gradient in zip(lesson.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.param_groups[0]["lr"] = lesson.learning_rate * rate(lesson.decay, step, steps, lesson.warmup_steps)
        optimizer.step()
        on_progress("start from noised answers", step + 1, steps)
    optimizer.zero_grad()
