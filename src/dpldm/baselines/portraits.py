"""`dpldm baseline portraits`: images drawn from noised portraits of the classes alone, without any gradient.

The whole epsilon of the run goes into two answers, the means and the covariances of latents (train/portraits.py), asked
under a plan of its own. A latent is then drawn from the Gaussians of its class, and decoded by the public autoencoder.
Tuning is worth what it gains over this.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from dpldm.baselines.result import Baseline, require_classes, run_that_asks, untuned
from dpldm.baselines.shown import released_and_measured
from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents, private_latents
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.evaluation.evaluate import check_evaluation, real_test_images
from dpldm.models.autoencoder import decode
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.privacy.entropy import Entropy, SystemEntropy
from dpldm.privacy.ledger import Head, Ledger, LedgerError, open_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.progress import OnProgress, unseen
from dpldm.run import Run, ledger_cap, require_same_backbone
from dpldm.sampling import draw_batches, planned_labels
from dpldm.train.asking import ask_all, require_answers_fit
from dpldm.train.checkpoint import load_checkpoint, save_checkpoint
from dpldm.train.checks import check_images
from dpldm.train.portraits import Portraits
from dpldm.train.resuming import register
from dpldm.train.starting import compared, guesses_of_public_classes, portraits_known

ASKED = ("class_parts", "class_means_clip", "class_spreads_clip", "query_reserve")
"""Settings of the run that hold here too."""
WHAT = "portraits: latents drawn from noised Gaussians of each class, decoded by the public autoencoder"


def portraits(config: RunConfig, on_progress: OnProgress = unseen) -> Baseline:
    """Ask under a plan of its own, draw `sampling.count` images and measure them. The same call resumes.

    Raises:
        UserError: the settings, the data, the ledger or an answer do not allow it.
    """
    require_classes(config)
    check_evaluation(config)
    backbone, test = load_backbone(config.backbone, chosen_device(config.runtime.device)), real_test_images(config)
    check_images(config, backbone)
    run, plan = portraits_run(config)
    known = asked(run, plan, config, backbone, SystemEntropy())
    labels = planned_labels(run.config.sampling, len(config.data.labels))

    def draw(rows: slice, generator: torch.Generator) -> NDArray[np.uint8]:
        return decode(backbone.autoencoder, known.draw(labels[rows], generator), config.data.image_size)

    for step in draw_batches(run.config, run.config.sampling, labels, draw):
        on_progress("images drawn", step.done, step.count)
    facts: dict[str, str | int | float] = {
        "noise_multiplier": plan.queries[0].noise_multiplier,  # of both
        "parts": config.privacy.class_parts,
    }
    return released_and_measured(config, run, plan, "portraits", WHAT, test, {}, facts, on_progress)


def portraits_run(config: RunConfig) -> tuple[Run, PrivacyPlan]:
    """Its folder, which is made, and its plan: the config's unit, records, epsilon, delta, kind of noise, parts, clip
    norms and reserve; no gradients, and the same noise on both answers, enough for all attempts.

    Raises:
        UserError: see `plan_of`.
    """
    given = config.privacy
    asked = {name: getattr(given, name) for name in ASKED}
    asked |= {"class_means_noise": 1.0, "class_spreads_noise": 1.0}  # until it is calibrated
    return run_that_asks(config, "portraits", untuned(given).model_copy(update=asked))


def asked(run: Run, plan: PrivacyPlan, config: RunConfig, backbone: Backbone, entropy: Entropy) -> Portraits:
    """The portraits: those that images were drawn from already, or from answers that were kept or are given now.

    Raises:
        UserError: see `portraits`.
    """
    run.create()
    made = run.checkpoint.exists()  # then no private image is needed any more
    latents = None if made else _latents(run, plan, config, backbone)
    try:
        with open_ledger(run.ledger, plan.dataset_id, ledger_cap(config), declared_cap=config.privacy.cap) as ledger:
            if latents is None:
                return _kept(run, plan, ledger, backbone)
            require_answers_fit(run, plan, ledger, backbone.digest)
            register(plan, ledger, config)
            ask_all(run, plan, ledger, latents, len(config.data.labels), backbone.digest, entropy)
            known = portraits_known(run, plan, ledger, backbone.digest, latents.posterior.mean.shape[1:])
            head = ledger.head
    except LedgerError as error:
        raise UserError(str(error)) from None
    facts = {"plan": plan.digest(), "backbone": backbone.digest, "head": [head.seq, head.hash]}
    save_checkpoint(run.checkpoint, {"portraits": vars(known)}, facts)
    return known


def _latents(run: Run, plan: PrivacyPlan, config: RunConfig, backbone: Backbone) -> PrivateLatents:
    """The private images as they are asked about."""
    latents = private_latents(
        *(run.config.data, backbone.autoencoder, config.backbone, run.latents),
        images_per_group=plan.images_per_unit if plan.unit == "group" else None,
        keep=run.started,
    )
    return compared(latents, guesses_of_public_classes(backbone, run.config), run.config)


def _kept(run: Run, plan: PrivacyPlan, ledger: Ledger, backbone: Backbone) -> Portraits:
    """The portraits of the checkpoint.

    Raises:
        UserError: they are of another plan, backbone or ledger.
    """
    groups, facts = load_checkpoint(run.checkpoint, paid_for=True)
    if facts["plan"] != plan.digest():
        raise UserError(
            f"The portraits of {plan.run!r} were asked for under another privacy plan: restore the privacy settings, "
            "or give this run a new name and pay for it again."
        )
    require_same_backbone(backbone.digest, facts, run)
    if not ledger.contains(Head(*facts["head"])):
        raise UserError(
            f"The ledger {run.ledger.name} does not contain the questions behind these portraits (it was cut, replaced "
            "or forked): restore the ledger from a copy."
        )
    return Portraits(**groups["portraits"])
