"""Stage 3: the backbone tuned on private images, from the checks before anything is read to the last update."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import Tensor

from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents, private_latents
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.privacy.entropy import SystemEntropy
from dpldm.privacy.ledger import LedgerError, open_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.progress import OnProgress, unseen
from dpldm.run import Run, ledger_cap, plan_of
from dpldm.train.algorithm_1 import algorithm_1
from dpldm.train.asking import require_answers_fit
from dpldm.train.checks import check_fit, require_examples_apart
from dpldm.train.portraying import portray
from dpldm.train.resuming import register, resume
from dpldm.train.shown import FinetuneStep
from dpldm.train.starting import ask_and_start, compared, guesses_of_public_classes
from dpldm.train.tuner import Tuner


def finetune(config: RunConfig, on_progress: OnProgress = unseen) -> Iterator[FinetuneStep]:
    """Tune the backbone on private images under the run's plan. The same call resumes an interrupted run.

    With `method: portraits` the questions are asked, and there are no steps to yield.

    Args:
        on_progress: follows what comes before the first update (see `OptimizerConfig.warm_start_steps`).

    Raises:
        UserError: the settings, the data, the ledger or the checkpoint do not allow the run; nothing was charged.
    """
    if config.method == "portraits":
        portray(config)
        return
    if config.selection.learning_rates:
        raise UserError("This config declares a selection: use `dpldm.select`, or leave selection.learning_rates out.")
    run, plan = Run(config), plan_of(config)
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    tuner, latents = prepared(config, plan, backbone)
    cap, declared = ledger_cap(config), config.privacy.cap
    try:
        with open_ledger(run.ledger, plan.dataset_id, cap, declared_cap=declared) as ledger:
            resume(tuner, run, plan, ledger)
            require_answers_fit(run, plan, ledger, tuner.backbone_digest)
            register(plan, ledger, config)
            ask_and_start(tuner, backbone.scheduler, run, plan, ledger, latents, SystemEntropy(), on_progress)
            yield from algorithm_1(tuner, backbone.scheduler, latents, plan, ledger, run, SystemEntropy())
    except LedgerError as error:
        raise UserError(str(error)) from None


def prepared(config: RunConfig, plan: PrivacyPlan, backbone: Backbone) -> tuple[Tuner, PrivateLatents]:
    """Refuse all that can be refused, make the run's folder, read and encode the private images; nothing is charged.

    Raises:
        UserError: the backbone, the settings or the data do not allow the run.
    """
    run = Run(config)
    check_fit(config, backbone)
    run.create()
    guesses = guesses_of_public_classes(backbone, config)
    tuner = Tuner(backbone, config, plan)
    require_examples_apart(backbone, tuner.trainable, config)
    tuner.settle(backbone, config, plan)
    latents = private_latents(
        *(config.data, backbone.autoencoder, config.backbone, run.latents),
        tokenize=tokenizer_of(backbone),
        images_per_group=plan.images_per_unit if plan.unit == "group" else None,
        keep=run.started,
    )
    latents = compared(latents, guesses, config)
    if plan.most_records is not None and latents.units > plan.most_records:
        raise UserError("There are more records than privacy.most_records declares: raise it.")
    return tuner, latents


def tokenizer_of(backbone: Backbone) -> Callable[[Sequence[str]], Tensor] | None:
    """Captions to ids (N, T), for a backbone that is told captions."""
    family = backbone.family
    return partial(family.tokens, backbone.denoiser) if family.told == "captions" else None
