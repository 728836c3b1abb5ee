"""`dpldm baseline noiseless`: the same tuning, sampling and evaluation with sigma = 0. What does the noise cost?

Its model must never be released: it has a ledger of its own, whose plan has no noise, and no config's plan is that one.
"""

from dataclasses import replace

from torch import Tensor

from dpldm.baselines.result import Baseline, folder_of, require_classes, require_published, run_of
from dpldm.config import RunConfig, SamplingConfig
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.evaluation.evaluate import check_evaluation, measured, real_test_images
from dpldm.models.backbone import load_backbone
from dpldm.privacy.entropy import SystemEntropy
from dpldm.privacy.ledger import LedgerError, open_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.queries import shares_within_classes
from dpldm.privacy.questions import ClassHistogram, PublicClassHistogram
from dpldm.progress import OnProgress, unseen
from dpldm.run import Run, plan_of
from dpldm.sampling import all_drawn, draw_all, steered
from dpldm.sheet import save_contact_sheet
from dpldm.train.algorithm_1 import algorithm_1
from dpldm.train.asking import answered
from dpldm.train.finetune import prepared
from dpldm.train.resuming import register, resume
from dpldm.train.starting import ask_and_start
from dpldm.train.tuner import Tuner
from dpldm.tuned import with_weights


def noiseless(config: RunConfig, on_progress: OnProgress = unseen) -> Baseline:
    """The run's own result without noise on its gradients (its queries keep theirs). Resumes like a run.

    Raises:
        UserError: the images are not published, the config declares a selection or no classes, or tunes nothing; or see
            `finetune`.
    """
    require_published(config, "noiseless")
    require_classes(config)
    if config.method == "portraits":
        raise UserError("The baseline noiseless tunes without noise, and method: portraits tunes nothing.")
    if config.selection.learning_rates:
        raise UserError("A baseline without noise has nothing to select: leave selection.learning_rates out.")
    check_evaluation(config)
    Run(config).create()
    run, plan = noiseless_run(config)
    tuner, settings, shares = _tuned(run, plan, on_progress)
    _draw(run, tuner, settings, shares, on_progress)
    drawn = all_drawn(run.config, settings)
    save_contact_sheet(run.directory / "contact-sheet.png", drawn.images, drawn.labels, config.data.labels)
    found = measured(
        run.config,
        drawn,
        real_test_images(config),
        lambda kind, seed, done, total: on_progress(f"{kind}, seed {seed}, epoch", done, total),
    ).utility
    if found is None:
        raise RuntimeError("no classes, although they were required")
    how: dict[str, str | int | float] = {
        "updates": tuner.updates,
        "protocol": found.protocol,
        "train": found.train,
        "epochs": found.epochs,
    }
    what = "the run's own tuning and sampling with sigma = 0: NOT PRIVATE, its model must not be released"
    result = Baseline("noiseless", what, True, found.test, found.scores, how)
    result.keep(config)
    return result


def noiseless_run(config: RunConfig) -> tuple[Run, PrivacyPlan]:
    """Its folder, and its plan: that of the config but for the noise, in a ledger beside it."""
    run = run_of(config, "noiseless", folder_of(config) / "noiseless" / "ledger.jsonl")
    plan = replace(plan_of(run.config), run=f"{config.name}/noiseless", noise_multiplier=0.0, noise="float")
    return run, plan


def _tuned(run: Run, plan: PrivacyPlan, on_progress: OnProgress) -> tuple[Tuner, SamplingConfig, Tensor | None]:
    """The tuned weights, how to sample them, and the shares of public classes if they are told (see `draw_all`)."""
    config = run.config
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    tuner, latents = prepared(config, plan, backbone)
    entropy = SystemEntropy()
    try:
        with open_ledger(run.ledger, plan.dataset_id, None) as ledger:
            resume(tuner, run, plan, ledger)
            register(plan, ledger, config)
            ask_and_start(tuner, backbone.scheduler, run, plan, ledger, latents, entropy)
            for step in algorithm_1(tuner, backbone.scheduler, latents, plan, ledger, run, entropy):
                on_progress("tuning without noise", step.number, step.steps)
            found = (run, plan, ledger, tuner.backbone_digest)
            histogram, publics = answered(ClassHistogram, *found), answered(PublicClassHistogram, *found)
            settings = steered(config.sampling, None if histogram is None else histogram[1])
            return tuner, settings, None if publics is None else shares_within_classes(*publics)
    except LedgerError as error:
        raise UserError(str(error)) from None


def _draw(run: Run, tuner: Tuner, settings: SamplingConfig, shares: Tensor | None, on_progress: OnProgress) -> None:
    config = run.config
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    average = dict(zip(tuner.trainable, tuner.average.shadow_params, strict=True))
    network = with_weights(backbone.denoiser, config, average)
    for step in draw_all(config, backbone, network, settings, shares):
        on_progress("images drawn", step.done, step.count)
