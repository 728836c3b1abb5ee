"""`dpldm baseline portraits`: what `method: portraits` makes of the same images at the same epsilon, beside a run.

All of epsilon goes into two answers under a plan of its own (train/portraying.py). Tuning is worth what it gains over
this.
"""

from dpldm.baselines.result import Baseline, require_classes, run_that_asks, untuned
from dpldm.baselines.shown import released_and_measured
from dpldm.config import OF_PORTRAITS, OF_SOLVERS, RunConfig, SamplingConfig
from dpldm.device import chosen_device
from dpldm.evaluation.evaluate import check_evaluation, real_test_images
from dpldm.models.backbone import load_backbone
from dpldm.privacy.entropy import SystemEntropy
from dpldm.privacy.plan import PrivacyPlan
from dpldm.progress import OnProgress, unseen
from dpldm.run import Run
from dpldm.sampling import draw_portraits
from dpldm.train.checks import check_images
from dpldm.train.portraying import asked

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
    for step in draw_portraits(run.config, backbone, known):
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
    asked = untuned(given).model_copy(update={name: getattr(given, name) for name in OF_PORTRAITS})
    sampling = SamplingConfig(**{k: v for k, v in config.sampling.model_dump().items() if k not in OF_SOLVERS})
    return run_that_asks(
        *(config, "portraits", asked), method="portraits", sampling=sampling, trainable="attention", tune_embedder=True
    )
