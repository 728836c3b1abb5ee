"""`dpldm baseline classifier`: what a DP-SGD classifier learns from the same images at the same epsilon.

A linear head on features of a public network. Its gradients go through the mechanism of Algorithm 1, with attempts that
are charged to the data set's ledger under a plan of their own: it is paid for beside the run, never instead of it.

    features    of each image alone, once; centred and scaled to norm 1 by a rule that sees that image alone
    loss        cross entropy of nn.Linear, its mean over the images of a group
    update      Adam on the noised gradient, averaged weights
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dpldm.baselines.result import Baseline, require_cap, require_classes, run_of, untuned, without_spread
from dpldm.config import OptimizerConfig, RunConfig
from dpldm.data.latents import PrivateLatents, private_encodings
from dpldm.device import chosen_device
from dpldm.errors import MissingExtra, UserError
from dpldm.evaluation.evaluate import real_test_images
from dpldm.evaluation.features import EfficientNetLite0, EncoderMeans, FeatureExtractor, scaled
from dpldm.evaluation.utility import score
from dpldm.models.backbone import load_backbone
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.entropy import Entropy, SystemEntropy
from dpldm.privacy.ledger import BudgetExhausted, Ledger, LedgerError, open_ledger
from dpldm.privacy.mechanism import PrivateGradient
from dpldm.privacy.plan import PrivacyPlan
from dpldm.progress import OnProgress, unseen
from dpldm.run import Run, ledger_cap, plan_of
from dpldm.train.checkpoint import load_checkpoint
from dpldm.train.checks import check_fit
from dpldm.train.resuming import register, resume
from dpldm.train.shown import FinetuneStep, shown
from dpldm.train.tuner import Learner

STEPS = 400
BATCH_SHARE = 0.25
"""L over the declared records: features make large batches cheap, and they are what DP-SGD needs most."""
CLIP_NORM = 1.0
SETTINGS = OptimizerConfig(learning_rate=0.1, warmup_steps=0)
"""These four were chosen on public images alone: bundled letters and animal-mnist (docs/evaluation.md)."""
ROWS = 4096
"""Feature vectors of a physical pass: 20 MB."""


class Head(Learner):
    """The linear classifier, all zeros at first."""

    def __init__(self, features: int, classes: int, extractor: str, plan: PrivacyPlan) -> None:
        self.network = nn.Linear(features, classes)
        nn.init.zeros_(self.network.weight)
        nn.init.zeros_(self.network.bias)
        super().__init__(dict(self.network.named_parameters()), digest_of(extractor), SETTINGS, plan)

    def losses(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each row, (N,)."""
        return F.cross_entropy(self.network(features), labels, reduction="none")

    @torch.no_grad()
    def predict(self, features: Tensor) -> NDArray[np.int64]:
        """Classes (N,) by the averaged weights."""
        weight, bias = self.average.shadow_params
        return F.linear(features, weight, bias).argmax(1).numpy()


def classifier(config: RunConfig, on_progress: OnProgress = unseen) -> Baseline:
    """Train the head under a plan of its own, and measure it on `data.test_path`. The same call resumes.

    Raises:
        UserError: the settings, the data, the ledger or the checkpoint do not allow it; nothing was charged.
    """
    require_classes(config)
    extractor, test = public_features(config), real_test_images(config)
    run, plan = classifier_run(config)
    head = Head(extractor.dim, len(config.data.labels), extractor.name, plan)
    for step in train(head, run, plan, extractor, Run(config), SystemEntropy()):
        on_progress("classifier, update", step.number, step.steps)
    labels = test.labels[~test.null]
    hits = head.predict(scaled(extractor(test.pixels[~test.null]))) == labels
    facts: dict[str, str | int | float] = {
        "epsilon": plan.stated_epsilon(),
        "delta": plan.delta,
        "unit": plan.unit,
        "noise_multiplier": plan.noise_multiplier,
        "expected_batch_size": plan.expected_batch_size,
        "updates": head.updates,
        "features": extractor.name,
        "plan": plan.digest(),
    }
    found = score(hits[None], [head.updates], labels, len(config.data.labels))
    what = "a linear classifier on public features, trained with DP-SGD on the real images"
    result = Baseline("classifier", what, plan.public_benchmark, len(labels), {"linear": found}, facts)
    result.keep(config)
    return result


def classifier_run(config: RunConfig) -> tuple[Run, PrivacyPlan]:
    """Its folder, which is made, and its plan: the config's unit, records, epsilon, delta and kind of noise.

    All else in the plan is a constant of this file. Its name holds a slash, which no run's can: nothing that is
    done under it can pass for the run's own.

    Raises:
        UserError: see `plan_of`.
    """
    records = config.privacy.records
    privacy = untuned(config.privacy).model_copy(
        update={
            "expected_batch_size": None if records is None else max(1, int(records * BATCH_SHARE)),
            "steps": STEPS,
            "max_grad_norm": CLIP_NORM,
        }
    )
    selection = config.selection.model_copy(update={"learning_rates": ()})
    sections = {"method": "diffusion", "privacy": privacy, "selection": selection, "optimizer": SETTINGS}
    plan = plan_of(config.model_copy(update=sections))
    require_cap(config, "classifier")
    Run(config).create()
    run = run_of(config, "classifier", Run(config).ledger, **sections)
    return run, replace(plan, run=f"{config.name}/classifier")


def public_features(config: RunConfig) -> FeatureExtractor:
    """EfficientNet-Lite0; without the extra `features`, the encoder of the run's backbone.

    Raises:
        UserError: that backbone is not public, or does not fit the images.
    """
    device = chosen_device(config.runtime.device)
    try:
        return EfficientNetLite0(device=device)
    except MissingExtra:
        backbone = load_backbone(config.backbone, device)
        check_fit(config, backbone)
        return EncoderMeans(backbone, config.data.image_size)


def digest_of(extractor: str) -> str:
    """What binds a head to the features it was trained on."""
    return hashlib.sha256(extractor.encode()).hexdigest()


def train(
    head: Head, run: Run, plan: PrivacyPlan, extractor: FeatureExtractor, beside: Run, entropy: Entropy
) -> Iterator[FinetuneStep]:
    """All attempts of the plan that are left, charged to the ledger of the run that it stands `beside`.

    Raises:
        UserError: see `classifier`.
    """
    run.create()
    _require_same_features(head, run, extractor)
    features = private_encodings(
        run.config.data,
        lambda pixels: without_spread(scaled(extractor(pixels))),
        extractor.name,
        run.private / "features.safetensors",
        images_per_group=plan.images_per_unit if plan.unit == "group" else None,
        keep=run.started,
    )
    config = beside.config
    try:
        with open_ledger(run.ledger, plan.dataset_id, ledger_cap(config), declared_cap=config.privacy.cap) as ledger:
            resume(head, run, plan, ledger)
            register(plan, ledger, config)
            yield from updates(head, features, plan, ledger, run, entropy)
    except LedgerError as error:
        raise UserError(str(error)) from None


def updates(
    head: Head, features: PrivateLatents, plan: PrivacyPlan, ledger: Ledger, run: Run, entropy: Entropy
) -> Iterator[FinetuneStep]:
    """T times draw, clip, sum, noise, divide, update: Algorithm 1 with another loss."""
    rows, constants = features.posterior.mean, (plan.max_grad_norm, plan.draws_per_example, plan.clipping)
    with ClippedSum(head.network, head.trainable, *constants) as clipped:
        mechanism = PrivateGradient(plan, ledger, clipped, features.units, entropy)
        while head.updates < plan.steps:
            try:
                batch = mechanism.draw()
            except BudgetExhausted:
                yield shown(head, plan, ledger, ended_early=True)
                return
            for records, weights in features.passes(batch, ROWS):
                losses = head.losses(rows[records.flatten()], features.labels[records.flatten()])
                of_units = (losses.view_as(weights) * weights).sum(1)
                mechanism.accumulate(of_units, weights.any(1), records.shape[1])
            head.update(mechanism.release())
            head.save(run, plan, ledger.head)
            yield shown(head, plan, ledger)


def _require_same_features(head: Head, run: Run, extractor: FeatureExtractor) -> None:
    if not run.checkpoint.exists():
        return
    _, facts = load_checkpoint(run.checkpoint, paid_for=True)
    if facts["backbone"] != head.backbone_digest:
        raise UserError(
            f"The classifier was begun on other features than {extractor.name}: restore the backbone and the installed "
            "extras it was started with, or give this run a new name and pay for it again."
        )
