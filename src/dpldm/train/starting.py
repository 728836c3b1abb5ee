"""What is known before the first update: noised answers to the plan's questions, and the backbone's own classes."""

import math
from dataclasses import replace

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.models.autoencoder import latent_shape
from dpldm.models.backbone import Backbone, public_classes_of
from dpldm.models.public_classes import class_guesses, merged, nearest
from dpldm.privacy.entropy import Entropy
from dpldm.privacy.ledger import Ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.queries import class_spreads
from dpldm.privacy.questions import ClassSpreads
from dpldm.progress import OnProgress, unseen
from dpldm.run import Run
from dpldm.train.asking import answered, ask_all, centres_known
from dpldm.train.portraits import Portraits, factors
from dpldm.train.tuner import Tuner


def ask_and_start(
    tuner: Tuner,
    scheduler: DDPMScheduler,
    run: Run,
    plan: PrivacyPlan,
    ledger: Ledger,
    latents: PrivateLatents,
    entropy: Entropy,
    on_progress: OnProgress = unseen,
) -> None:
    """Ask the plan's questions, and start a tuner without updates from those about classes, if that is set.

    Raises:
        UserError: see `ask_all`.
    """
    ask_all(run, plan, ledger, latents, len(run.config.data.labels), tuner.backbone_digest, entropy)
    if run.config.optimizer.warm_start_steps and tuner.updates == 0:
        shape = latents.posterior.mean.shape[1:]
        tuner.start_from(portraits_known(run, plan, ledger, tuner.backbone_digest, shape), scheduler, on_progress)


def portraits_known(run: Run, plan: PrivacyPlan, ledger: Ledger, backbone: str, shape: torch.Size) -> Portraits:
    """What the noised answers say of the latents, of `shape`, of each class; post-processing.

    Raises:
        UserError: see `answered`.
    """
    centres = centres_known(run, plan, ledger, backbone, len(run.config.data.labels))
    known, (classes, parts, d) = answered(ClassSpreads, run, plan, ledger, backbone), centres.means.shape
    spread = torch.zeros(classes, d, 0)
    if known is not None:
        question, noised = known
        deviation = question.noise_multiplier * question.clip_norm**2 / math.sqrt(2)  # of an entry off the diagonal
        spread = factors(class_spreads(question, noised, d), centres.counts, deviation).float()
    return Portraits(centres.means.float().view(classes, parts, *shape), centres.shares, spread)


def guesses_of_public_classes(backbone: Backbone, config: RunConfig) -> Tensor | None:
    """The public network's guess of each of its classes, (C, c, h, w), if images are compared with them; else None.

    Args:
        backbone: as it was loaded: not adapted, and in float32, as what is nearest must not depend on `runtime`.
    """
    if config.privacy.public_classes_noise is None and config.privacy.class_parts == 1:
        return None
    ids = torch.arange(public_classes_of(config.backbone))
    shape = torch.Size(latent_shape(backbone.autoencoder, config.data.image_size))
    return class_guesses(backbone.denoiser, backbone.scheduler, ids, shape)


def compared(latents: PrivateLatents, guesses: Tensor | None, config: RunConfig) -> PrivateLatents:
    """The records with what each resembles, as far as it is asked or told: a function of each latent alone."""
    if guesses is None:
        return latents
    means, parts, publics = latents.posterior.mean, config.privacy.class_parts, None
    if config.privacy.public_classes_noise is not None:
        publics = len(config.data.labels) + nearest(means, guesses)
    part_of = nearest(means, merged(guesses, parts)) if parts > 1 else None
    return replace(latents, publics=publics, parts=part_of)
