"""`dpldm baseline noiseless`: the same tuning, sampling and evaluation with sigma = 0. What does the noise cost?

Its model must never be released: it has a ledger of its own, whose plan has no noise, and no config's plan is that one.
"""

from dataclasses import replace

from dpldm.baselines.result import Baseline, folder_of, require_classes, require_published, run_of
from dpldm.config import RunConfig, SamplingConfig
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.evaluation.evaluate import check_evaluation, measured, real_test_images
from dpldm.models.backbone import load_backbone
from dpldm.privacy.entropy import SystemEntropy
from dpldm.privacy.ledger import Ledger, LedgerError, open_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import ClassHistogram
from dpldm.progress import OnProgress, unseen
from dpldm.run import Run, plan_of
from dpldm.sampling import all_drawn, draw_all, steered
from dpldm.sheet import save_contact_sheet
from dpldm.train.asking import read_answer
from dpldm.train.finetune import Tuner, algorithm_1, ask_and_start, prepared, register, resume
from dpldm.tuned import with_weights


def noiseless(config: RunConfig, on_progress: OnProgress = unseen) -> Baseline:
    """The run's own result without noise on its gradients (its queries keep theirs). Resumes like a run.

    Raises:
        UserError: the images are not published, the config declares a selection or no classes, or see `finetune`.
    """
    require_published(config, "noiseless")
    require_classes(config)
    if config.selection.learning_rates:
        raise UserError("A baseline without noise has nothing to select: leave selection.learning_rates out.")
    check_evaluation(config)
    Run(config).create()
    run, plan = noiseless_run(config)
    tuner, settings = _tuned(run, plan, on_progress)
    _draw(run, tuner, settings, on_progress)
    drawn = all_drawn(run.config, settings)
    save_contact_sheet(run.directory / "contact-sheet.png", drawn.images, drawn.labels)
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


def _tuned(run: Run, plan: PrivacyPlan, on_progress: OnProgress) -> tuple[Tuner, SamplingConfig]:
    """The tuned weights, and how to sample them."""
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
            return tuner, _settings(run, plan, ledger, tuner)
    except LedgerError as error:
        raise UserError(str(error)) from None


def _settings(run: Run, plan: PrivacyPlan, ledger: Ledger, tuner: Tuner) -> SamplingConfig:
    asked = (question for question in plan.queries if isinstance(question, ClassHistogram))
    answers = (read_answer(run, plan, question, ledger, tuner.backbone_digest) for question in asked)
    return steered(run.config.sampling, next(answers, None))


def _draw(run: Run, tuner: Tuner, settings: SamplingConfig, on_progress: OnProgress) -> None:
    config = run.config
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    average = dict(zip(tuner.trainable, tuner.average.shadow_params, strict=True))
    network = with_weights(backbone.denoiser, len(config.data.labels), average)
    for step in draw_all(config, backbone, network, settings):
        on_progress("images drawn", step.done, step.count)
