"""The tuned model of a finished run, or its portraits: the one gate between what sees private images and what follows.

They are handed out only together with the plan they were paid by, so that no statement can name another one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.models.backbone import Backbone, read_card, weights_digest
from dpldm.models.lora import merge_adapters
from dpldm.models.public_classes import adapt
from dpldm.privacy.ledger import Ledger, LedgerError, read_ledger
from dpldm.privacy.queries import shares_within_classes
from dpldm.privacy.questions import ClassHistogram, PublicClassHistogram
from dpldm.privacy.selection import Plan, trial_of
from dpldm.run import Run, paid_plan
from dpldm.train.asking import Kind, answered
from dpldm.train.checkpoint import load_checkpoint
from dpldm.train.portraits import Portraits
from dpldm.train.vouching import vouched


@dataclass(frozen=True)
class Finished:
    """What a finished run rests on."""

    plan: Plan
    updates: int
    backbone: str  # digest
    candidate: int | None  # which learning rate a selection kept


def finished(config: RunConfig) -> Finished:
    """The plan that the run's model was trained under, and how its training ended.

    Raises:
        UserError: the run has no model, has not come to its end, or was trained with other settings than `config` or
            from another backbone.
    """
    run = Run(config)
    if not run.checkpoint.exists():
        raise UserError(
            f"The run {config.name!r} has no tuned model or portraits: run `dpldm finetune` first, which goes on with "
            "what was begun, or put the run's folder back if that was done."
        )
    run.require_same_training()
    plan = paid_plan(config)
    backbone = weights_digest(read_card(config.backbone)["sha256"])
    ledger = Ledger(run.ledger, ledger_entries(config))
    _, facts = vouched(run.checkpoint, "the checkpoint", run, ledger, backbone, {"plan": plan.digest()})
    if facts["updates"] < trial_of(plan).steps and ledger.attempts(plan) < plan.attempts:
        raise UserError(f"The run {config.name!r} has not come to its end: run `dpldm finetune` again, it continues.")
    return Finished(plan, int(facts["updates"]), backbone, facts.get("candidate"))


def portraits_of(config: RunConfig) -> Portraits:
    """The portraits that the run's images are drawn from, of a run with `method: portraits`.

    Raises:
        UserError: see `finished`.
    """
    finished(config)
    groups, _ = load_checkpoint(Run(config).checkpoint, paid_for=True)
    return Portraits(**groups["portraits"])


def tuned_network(config: RunConfig, backbone: Backbone) -> nn.Module:
    """The denoiser that was trained: averaged weights where it was tuned, public ones everywhere else.

    Raises:
        UserError: see `finished`.
    """
    return with_weights(backbone.denoiser, config, tuned_weights(config))


def tuned_weights(config: RunConfig) -> dict[str, Tensor]:
    """The averaged weights that were tuned, by their names in the network; adapters by peft's.

    Raises:
        UserError: see `finished`.
    """
    finished(config)
    groups, _ = load_checkpoint(Run(config).checkpoint, paid_for=True)
    return groups["average"]


@torch.no_grad()
def with_weights(network: nn.Module, config: RunConfig, weights: Mapping[str, Tensor]) -> nn.Module:
    """A public denoiser, adapted to the run's classes, with its tuned parameters in place and adapters merged."""
    adapt(network, config)
    parameters = dict(network.named_parameters())
    for name, tensor in merge_adapters(weights, parameters).items():
        parameters[name].copy_(tensor)
    return network.eval().requires_grad_(False)


def noised_histogram(config: RunConfig) -> Tensor | None:
    """The answer to the run's class histogram, (K,); None if the plan does not ask for it.

    Raises:
        UserError: see `finished`; or the answer is gone, or not this plan's.
    """
    answered = _answer(config, ClassHistogram)
    return None if answered is None else answered[1]


def public_class_shares(config: RunConfig) -> Tensor | None:
    """How often each class is found within each public one, (K, C), of the run's answer; None if it did not ask.

    Raises:
        UserError: see `finished`; or the answer is gone, or not this plan's.
    """
    answered = _answer(config, PublicClassHistogram)
    return None if answered is None else shares_within_classes(*answered)


def _answer(config: RunConfig, kind: type[Kind]) -> tuple[Kind, Tensor] | None:
    end = finished(config)
    ledger = Ledger(Run(config).ledger, ledger_entries(config))
    return answered(kind, Run(config), end.plan, ledger, end.backbone)


def ledger_entries(config: RunConfig) -> list[dict[str, Any]]:
    """All lines of the ledger of the run's data set, checked.

    Raises:
        UserError: it is missing or was changed.
    """
    ledger = Run(config).ledger
    try:
        return read_ledger(ledger)
    except LedgerError as error:
        raise UserError(str(error)) from error
