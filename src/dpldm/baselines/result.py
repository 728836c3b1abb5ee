"""What a baseline found, and who may see it. Only published images may be used without privacy."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpldm.config import OF_DIFFUSION, OF_PORTRAITS, OptimizerConfig, PrivacyConfig, RunConfig, SelectionConfig
from dpldm.errors import UserError
from dpldm.evaluation.utility import Score
from dpldm.models.autoencoder import Posterior
from dpldm.privacy.durable import replace_file
from dpldm.privacy.ledger import LedgerError, read_ledger
from dpldm.privacy.plan import PrivacyPlan, asking_alone
from dpldm.privacy.questions import Question
from dpldm.run import Run, declared_constants


@dataclass(frozen=True)
class Baseline:
    """Accuracy on real test images. INTERNAL unless `public`."""

    kind: str
    what: str  # in a sentence
    public: bool
    test: int  # images
    scores: Mapping[str, Score]  # by classifier
    facts: Mapping[str, str | int | float] = field(default_factory=dict)  # what else a reader must know

    @property
    def status(self) -> str:
        """Whether it may be shown."""
        return "public benchmark" if self.public else "INTERNAL: reads private images, do not publish"

    def to_json(self) -> dict[str, Any]:
        """Plain values, headed by their status."""
        return {"status": self.status, **asdict(self)}

    def keep(self, config: RunConfig) -> Path:
        """Write `private/baselines/KIND.json`, and return its place."""
        path = folder_of(config) / f"{self.kind}.json"
        replace_file(path, json.dumps(self.to_json(), indent=2).encode())
        return path


def folder_of(config: RunConfig) -> Path:
    """INTERNAL like all that is private; made if it is missing."""
    folder = Run(config).private / "baselines"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_of(config: RunConfig, kind: str, ledger: Path, **sections: Any) -> Run:
    """A run of its own for a baseline, in the folder of the run that it stands beside.

    Args:
        ledger: where its attempts are charged.
        sections: settings that differ from the config's.
    """
    privacy = sections.pop("privacy", config.privacy)
    changes = {
        "name": kind,
        "privacy": privacy.model_copy(update={"ledger": ledger.absolute()}),
        "runtime": config.runtime.model_copy(update={"output": folder_of(config)}),
    }
    return Run(config.model_copy(update=changes | sections))


def run_that_asks(
    config: RunConfig, kind: str, privacy: PrivacyConfig, questions: tuple[Question, ...] = (), **changes: Any
) -> tuple[Run, PrivacyPlan]:
    """The run of a baseline that asks and tunes nothing, in the config's folder and ledger, and its plan: unit,
    records, epsilon, delta and kind of noise as declared, the same noise for all questions, enough for all attempts.

    Args:
        privacy: in place of the config's.
        questions: what is asked, their noise not yet calibrated. Left out: what the settings ask.
        changes: further settings that differ from the config's.

    Raises:
        UserError: see `plan_of`; or see `require_cap`.
    """
    sections = {"privacy": privacy, "optimizer": OptimizerConfig(), "selection": SelectionConfig(), **changes}
    constants = declared_constants(config.model_copy(update=sections))
    try:
        plan = asking_alone(
            replace(constants, run=f"{config.name}/{kind}", queries=questions or constants.queries),
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    require_cap(config, kind)
    Run(config).create()
    return run_of(config, kind, Run(config).ledger, **sections), plan


def untuned(privacy: PrivacyConfig) -> PrivacyConfig:
    """What is promised of whom, as declared; all that is about tuning a backbone, or about portraits, at rest."""
    at_rest = PrivacyConfig(dataset_id=privacy.dataset_id)
    return privacy.model_copy(update={name: getattr(at_rest, name) for name in (*OF_DIFFUSION, *OF_PORTRAITS)})


def require_cap(config: RunConfig, kind: str) -> None:
    """A first plan sets the cap of all that follow to its own budget: the run itself could never be paid for.

    Raises:
        UserError: this baseline would be the first, and no cap is declared.
    """
    privacy = config.privacy
    if not privacy.public_benchmark and privacy.cap is None and not Run(config).ledger.exists():
        raise UserError(
            f"The baseline {kind} costs as much as the run itself, and the first plan on a data set fixes what all may "
            "cost: declare privacy.cap, the total (epsilon, delta) of both."
        )


def without_spread(features: Tensor) -> Posterior:
    """Features (N, d) in the shape that private records are kept in: there is nothing to draw."""
    return Posterior(features, torch.full((len(features), 1), -torch.inf))


def require_published(config: RunConfig, kind: str) -> None:
    """Refuse to look at private images without noise, also INTERNALLY.

    What would be found is a function of private images outside every budget, and it is for choosing: epsilon, settings,
    whether to release at all. Whatever is released after such a choice depends on them in a way that no ledger knows.

    Raises:
        UserError: the images are not declared to be published, or a ledger says otherwise.
    """
    if not config.privacy.public_benchmark:
        raise UserError(
            f"`dpldm baseline {kind}` uses images without any privacy: add --stand-in for public ones in their place, "
            "or declare privacy.public_benchmark if they are published."
        )
    private = config.privacy.model_copy(update={"public_benchmark": False})
    ledger = Run(config.model_copy(update={"privacy": private})).ledger
    try:
        capped = ledger.exists() and read_ledger(ledger)[0]["cap"] is not None
    except LedgerError as error:
        raise UserError(str(error)) from None
    if capped:
        raise UserError(
            f"The data set {config.privacy.dataset_id!r} has a ledger with a cap, so it is no public benchmark: add "
            "--stand-in for public images in its place."
        )


def require_classes(config: RunConfig) -> None:
    """Refuse what has no classes to tell apart.

    Raises:
        UserError: data.labels is empty.
    """
    if not config.data.labels:
        raise UserError("A baseline is the accuracy of a classifier: declare the classes with data.labels.")
