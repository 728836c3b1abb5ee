"""`verify`: check a release without the private data, without torch and without trusting its author's numbers.

Epsilon is recomputed by dp-accounting from the plan in `privacy.json`; the cards must state that epsilon; every
file's hash is compared; files and statements of a kind that no release holds are refused.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpldm.data.names import printable
from dpldm.errors import UserError
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.selection import Plan, SelectionPlan, plan_of_constants, trial_of
from dpldm.report.wording import guarantee_sentence

NOT_HASHED = {"privacy.json"}
SECTIONS = {
    *("format", "guarantee", "plan", "plan_digest", "updates", "ledger", "mechanism", "declared_constants"),
    *("backbone", "software", "files"),
}
INSIDE = {
    "guarantee": {"epsilon", "epsilon_replace_one", "delta", "adjacency", "unit", "covers", "public_benchmark"},
    "ledger": {"dataset_id", "head", "plans_on_this_data_set"},
    "declared_constants": {
        *("records", "labels", "image_size", "channels", "crop", "window", "trainable", "tune_embedder"),
        *("optimizer", "sampling"),
    },
    "backbone": {"name", "sha256"},
}
"""What these sections hold; versions of software and files are checked elsewhere or free."""
ALLOWED_FILES = re.compile(
    r"README\.md|synthetic\.npz|synthetic/(README\.md|metadata\.csv|([^/]+/)?\d{6,}\.png)"
    r"|model/(backbone|model_index)\.json|model/scheduler/scheduler_config\.json"
    r"|model/(vae|vqvae|unet|transformer)/(config\.json|diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?)"
    r"|model/(text_encoder|bert)/((generation_)?config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?)"
    r"|model/tokenizer/((tokenizer(_config)?|vocab|special_tokens_map|added_tokens)\.json|(merges|vocab)\.txt)"
)
"""Everything a release may hold, beside privacy.json."""


@dataclass(frozen=True)
class Check:
    """One thing that was verified, or was not."""

    name: str
    passed: bool
    detail: str


def verify(directory: Path) -> list[Check]:
    """All checks of a release directory, in a fixed order.

    Raises:
        UserError: it holds no readable privacy.json of ours.
    """
    statement = read_statement(directory)
    try:
        return _checks(directory, statement)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(
            f"The statement in {directory} lacks a value, or has one that cannot be: ask for the release again."
        ) from error


def _checks(directory: Path, statement: dict[str, Any]) -> list[Check]:
    try:
        plan = plan_of_constants(statement["plan"])
    except ValueError as error:
        return [Check("plan", False, str(error))]
    claimed, trial = statement["guarantee"], trial_of(plan)
    return [
        Check("statement", _is_closed(statement, plan), "the sections of format dpldm-privacy-1, and no other"),
        Check("plan digest", plan.digest() == statement["plan_digest"], "plan and digest belong together"),
        _epsilon("epsilon", claimed["epsilon"], plan, Adjacency.ADD_OR_REMOVE_ONE),
        _epsilon("epsilon, replace one", claimed["epsilon_replace_one"], plan, Adjacency.REPLACE_ONE),
        Check("delta", claimed["delta"] == plan.delta < 1 / trial.records, f"{plan.delta:g} < 1/records"),
        Check("updates", 0 <= statement["updates"] <= trial.steps, f"{statement['updates']} of {trial.steps}"),
        Check("ledger", _fits(statement, plan), "its head lies beyond as many attempts as there were updates"),
        Check("unit and adjacency", _same_unit(claimed, plan), f"one {trial.unit}, added or removed"),
        Check("public benchmark", claimed["public_benchmark"] == plan.public_benchmark, f"{plan.public_benchmark}"),
        *_files(directory, statement["files"]),
        Check("cards", _cards_agree(directory, statement), "they state this guarantee"),
        Check("public weights", _public_weights(statement), "the autoencoder is the public backbone's"),
    ]


def read_statement(directory: Path) -> dict[str, Any]:
    """The content of a release's `privacy.json`, unchecked but for its format.

    Raises:
        UserError: there is none of ours.
    """
    path = directory / "privacy.json"
    try:
        statement: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if statement["format"] != "dpldm-privacy-1":
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is no privacy statement of dpldm: give the directory that `dpldm release` made."
        ) from error
    return statement


def _epsilon(name: str, claimed: float, plan: Plan, adjacency: Adjacency) -> Check:
    recomputed = plan.stated_epsilon(adjacency)
    return Check(name, claimed >= recomputed * (1 - 1e-6), f"claimed {claimed:.4f}, recomputed {recomputed:.4f}")


def _same_unit(claimed: dict[str, Any], plan: Plan) -> bool:
    """The plan's unit, which is one that this format knows, and the one adjacency."""
    return bool(claimed["unit"] == trial_of(plan).unit and claimed["adjacency"] == Adjacency.ADD_OR_REMOVE_ONE.value)


def _is_closed(statement: dict[str, Any], plan: Plan) -> bool:
    """Nothing missing, and no section of one's own to show a loss or a count in."""
    further = {"learning_rates"} if isinstance(plan, SelectionPlan) else set()
    further |= {"caption_template"} & set(statement["declared_constants"])
    inside = INSIDE | {"declared_constants": INSIDE["declared_constants"] | further}
    return set(statement) == SECTIONS and all(set(statement[name]) == keys for name, keys in inside.items())


def _fits(statement: dict[str, Any], plan: Plan) -> bool:
    """A ledger holds two lines (created, plan) before the first attempt, and at least one for every query; a selection
    has one line whatever its trials did, and keeps one of its candidates."""
    ledger, declared, trial = statement["ledger"], statement["declared_constants"], trial_of(plan)
    lines = len(trial.queries) + statement["updates"]
    if isinstance(plan, SelectionPlan):
        lines, rates = 1, declared["learning_rates"]
        if len(rates) != plan.candidates or declared["optimizer"]["learning_rate"] not in rates:
            return False
    long_enough = ledger["head"]["seq"] >= 1 + lines
    return bool(long_enough and ledger["dataset_id"] == plan.dataset_id and declared["records"] == trial.records)


def _cards_agree(directory: Path, statement: dict[str, Any]) -> bool:
    """Every card that a person reads holds the sentence that follows from the checked numbers."""
    cards = [directory / name for name in ("README.md", *statement["files"]) if name.endswith("README.md")]
    try:
        sentence = guarantee_sentence(statement)
        return all(sentence in card.read_text(encoding="utf-8") for card in cards)
    except (OSError, ValueError, LookupError):
        return False


def _public_weights(statement: dict[str, Any]) -> bool:
    """What is released as a model was tuned in its denoiser alone."""
    released = {name.removeprefix("model/"): digest for name, digest in statement["files"].items()}
    weights = (name for name in released if re.fullmatch(r"(vae|vqvae)/[^/]*\.safetensors", name))
    return all(released[name] == statement["backbone"]["sha256"][name] for name in weights)


def _files(directory: Path, expected: dict[str, str]) -> list[Check]:
    found = [p for p in directory.rglob("*") if p.is_symlink() or not p.is_dir()]
    present = {p.relative_to(directory).as_posix() for p in found} - NOT_HASHED
    changed = [name for name in sorted(expected) if name in present and _digest(directory / name) != expected[name]]
    missing, undeclared = sorted(set(expected) - present), sorted(present - set(expected))
    foreign = [name for name in sorted(expected) if not ALLOWED_FILES.fullmatch(name)]
    return [
        Check("files unchanged", not changed, _first(changed, f"{len(expected)} files")),
        Check("files complete", not missing, _first(missing, "none missing")),
        Check("nothing undeclared", not undeclared, _first(undeclared, "no other file")),
        Check("nothing foreign", not foreign, _first(foreign, "only files that a release may hold")),
    ]


def _first(names: list[str], otherwise: str) -> str:
    return f"{printable(names[0])} and {len(names) - 1} more" if names else otherwise


def _digest(path: Path) -> str:
    """The sha256 of a file; nothing for what is none of its own, such as a link."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
