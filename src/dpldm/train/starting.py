"""What is known before the first update: noised answers to the plan's questions, and the backbone's own classes."""

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.models.autoencoder import latent_shape
from dpldm.models.backbone import Backbone, public_classes_of
from dpldm.models.public_classes import class_guesses
from dpldm.privacy.entropy import Entropy
from dpldm.privacy.ledger import Ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.queries import class_means
from dpldm.privacy.questions import ClassMeans
from dpldm.run import Run
from dpldm.train.asking import answered, ask_all
from dpldm.train.tuner import Tuner


def ask_and_start(
    tuner: Tuner,
    scheduler: DDPMScheduler,
    run: Run,
    plan: PrivacyPlan,
    ledger: Ledger,
    latents: PrivateLatents,
    entropy: Entropy,
) -> None:
    """Ask the plan's questions, and start a tuner that has no update yet from the noised class means, if that is set.

    Raises:
        UserError: see `ask_all`.
    """
    ask_all(run, plan, ledger, latents, len(run.config.data.labels), tuner.backbone_digest, entropy)
    if run.config.optimizer.warm_start_steps and tuner.updates == 0:
        known = answered(ClassMeans, run, plan, ledger, tuner.backbone_digest)
        if known is None:
            raise ValueError("A start from class means, and the plan does not ask for them.")
        means, _ = class_means(*known)
        tuner.start_from(means.float().view(-1, *latents.posterior.mean.shape[1:]), scheduler)


def guesses_of_public_classes(backbone: Backbone, config: RunConfig) -> Tensor | None:
    """The public network's guess of each public class, (C, c, h, w), if it is told them; else None.

    Args:
        backbone: adapted to the config, not tuned yet, and in float32: what is nearest must not depend on `runtime`.
    """
    if config.privacy.public_classes_noise is None:
        return None
    first = len(config.data.labels)
    ids = torch.arange(first, first + public_classes_of(config.backbone))
    shape = torch.Size(latent_shape(backbone.autoencoder, config.data.image_size))
    return class_guesses(backbone.denoiser, backbone.scheduler, ids, shape)
