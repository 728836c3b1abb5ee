"""`verify`: check a release without the private data, without torch and without trusting its author's numbers.

Epsilon is recomputed by dp-accounting from the plan in `privacy.json`; the cards must state that epsilon; every
file's hash is compared; files and statements of a kind that no release holds are refused. What the files hold is looked
at by `scanning`.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from dpldm.data.names import printable
from dpldm.errors import UserError
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import ClassMeans
from dpldm.privacy.selection import Plan, SelectionPlan, plan_of_constants, trial_of
from dpldm.report.wording import covers, guarantee_sentence, is_evolution, mechanism
from dpldm.scanning.kinds import OWN, Kind, kind_of_statement
from dpldm.scanning.release import content_checks
from dpldm.scanning.settings import settings_are_plain
from dpldm.scanning.texts import parsed
from dpldm.verdict import Check

NOT_HASHED = {"privacy.json"}
SECTIONS = {
    *("format", "guarantee", "plan", "plan_digest", "updates", "ledger", "mechanism", "declared_constants"),
    *("backbone", "software", "files"),
}
INSIDE = {
    "guarantee": {"epsilon", "epsilon_replace_one", "delta", "adjacency", "unit", "covers", "public_benchmark"},
    "ledger": {"dataset_id", "head", "plans_on_this_data_set"},
    "declared_constants": {"records", "labels", "image_size", "channels", "crop", "window", "sampling"},
    "backbone": {"name", "sha256"},
    "software": {"dpldm", "torch", "diffusers", "dp-accounting"},
}
"""What these sections hold."""
TUNED, EVOLVED = {"trainable", "tune_embedder", "optimizer"}, {"evolution"}
"""What is declared beside that where a backbone was tuned, and where it was asked for candidates as it is."""
HEX = re.compile(r"[0-9a-f]{64}")
VERSION = re.compile(r"[\w.+-]{1,40}")
ALLOWED_FILES = re.compile(
    r"README\.md|report\.(html|json)|synthetic\.npz|synthetic/(README\.md|metadata\.csv|([^/]+/)?\d{6,}\.png)"
)
"""Everything a release may hold, beside privacy.json and the files of its kind of model."""


def verify(directory: Path, backbone: Path | None = None) -> list[Check]:
    """All checks of a release directory, in a fixed order.

    Args:
        backbone: directory of the public backbone, to compare weights with that were not tuned. A bundled one is found
            by its name.

    Raises:
        UserError: it holds no readable privacy.json of ours, or `backbone` is no backbone.
    """
    statement = read_statement(directory)
    try:
        return _checks(directory, statement, backbone)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(
            f"The statement in {directory} lacks a value, or has one that cannot be: ask for the release again."
        ) from error


def _checks(directory: Path, statement: dict[str, Any], backbone: Path | None) -> list[Check]:
    try:
        plan = plan_of_constants(statement["plan"])
    except ValueError as error:
        return [Check("plan", False, str(error))]
    claimed, trial = statement["guarantee"], trial_of(plan)
    words = claimed["covers"] == covers(statement["plan"]) and statement["mechanism"] == mechanism(statement["plan"])
    closed = "the sections of format dpldm-privacy-1, and no other"
    return [
        Check("statement", _is_closed(statement, plan), closed, taints=True),
        Check("plan digest", plan.digest() == statement["plan_digest"], "plan and digest belong together"),
        _epsilon("epsilon", claimed["epsilon"], plan, Adjacency.ADD_OR_REMOVE_ONE),
        _epsilon("epsilon, replace one", claimed["epsilon_replace_one"], plan, Adjacency.REPLACE_ONE),
        Check("delta", claimed["delta"] == plan.delta < 1 / trial.records, f"{plan.delta:g} < 1/records"),
        Check("updates", 0 <= statement["updates"] <= trial.steps, f"{statement['updates']} of {trial.steps}"),
        Check("ledger", _fits(statement, plan), "its head lies beyond as many attempts as there were updates"),
        Check("unit and adjacency", _same_unit(claimed, plan), f"one {trial.unit}, added or removed"),
        Check("what it covers", words, "mechanism and coverage are those of the plan"),
        Check("model", _has_tuned_what_it_holds(statement, trial), "one only where the plan tunes"),
        Check("start", _start_is_paid_for(statement, trial), "only from class means that the plan has asked for"),
        Check("public benchmark", claimed["public_benchmark"] == plan.public_benchmark, f"{plan.public_benchmark}"),
        *_files(directory, statement["files"], kind_of_statement(statement) or OWN),
        Check("cards", _cards_agree(directory, statement), "they state this guarantee"),
        Check("public parts", _public_parts(statement), "what is never tuned is the public backbone's", taints=True),
        *content_checks(directory, statement, backbone),
    ]


def read_statement(directory: Path) -> dict[str, Any]:
    """The content of a release's `privacy.json`, unchecked but for its format.

    Raises:
        UserError: there is none of ours.
    """
    path = directory / "privacy.json"
    try:
        statement: dict[str, Any] = parsed(path.read_text(encoding="utf-8"))
        if statement["format"] != "dpldm-privacy-1":
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is no privacy statement of dpldm: give the directory that `dpldm release` made."
        ) from error
    return statement


def _has_tuned_what_it_holds(statement: dict[str, Any], trial: PrivacyPlan) -> bool:
    """Weights come from gradients: a plan without them accounts for no model."""
    return trial.tunes or not any(name.startswith("model/") for name in statement["files"])


def _epsilon(name: str, claimed: float, plan: Plan, adjacency: Adjacency) -> Check:
    recomputed = plan.stated_epsilon(adjacency)
    return Check(name, claimed >= recomputed * (1 - 1e-6), f"claimed {claimed:.4f}, recomputed {recomputed:.4f}")


def _same_unit(claimed: dict[str, Any], plan: Plan) -> bool:
    """The plan's unit, which is one that this format knows, and the one adjacency."""
    return bool(claimed["unit"] == trial_of(plan).unit and claimed["adjacency"] == Adjacency.ADD_OR_REMOVE_ONE.value)


def _is_closed(statement: dict[str, Any], plan: Plan) -> bool:
    """Nothing missing, and neither a section nor a value of one's own to show a loss, a seed or a count in."""
    kind, declared = kind_of_statement(statement), set(statement["declared_constants"])
    further = TUNED if trial_of(plan).tunes else EVOLVED if is_evolution(plan.constants()) else set[str]()
    if isinstance(plan, SelectionPlan):
        further = further | {"learning_rates"}
    if kind is not None and kind.text_encoder is not None:
        further = further | {"caption_template", "prompts"} & declared
    inside = INSIDE | {"declared_constants": INSIDE["declared_constants"] | further}
    sections = set(statement) == SECTIONS and all(set(statement[name]) == keys for name, keys in inside.items())
    return sections and settings_are_plain(statement["declared_constants"]) and _identities_are_plain(statement)


def _identities_are_plain(statement: dict[str, Any]) -> bool:
    """Hashes, versions, counts and a line number look like that."""
    head, backbone = statement["ledger"]["head"], statement["backbone"]
    counts = (statement["updates"], statement["ledger"]["plans_on_this_data_set"])
    hashes = [head["hash"], statement["plan_digest"], *backbone["sha256"].values(), *statement["files"].values()]
    return bool(
        set(head) == {"seq", "hash"}
        and all(type(number) is int for number in (head["seq"], *counts))
        and kind_of_statement(statement) is not None
        and all(HEX.fullmatch(digest) for digest in hashes)
        and all(VERSION.fullmatch(version) for version in statement["software"].values())
    )


def _fits(statement: dict[str, Any], plan: Plan) -> bool:
    """A ledger holds two lines (created, plan) before the first attempt, and at least one for every answer; a selection
    has two lines whatever its trials did, and keeps one of its candidates."""
    ledger, declared, trial = statement["ledger"], statement["declared_constants"], trial_of(plan)
    lines = sum(question.answers for question in trial.queries) + statement["updates"]
    if isinstance(plan, SelectionPlan):
        lines, rates = plan.attempts, declared["learning_rates"]
        if len(rates) != plan.candidates or declared["optimizer"]["learning_rate"] not in rates:
            return False
    long_enough = ledger["head"]["seq"] >= 1 + lines
    return bool(long_enough and ledger["dataset_id"] == plan.dataset_id and declared["records"] == trial.records)


def _start_is_paid_for(statement: dict[str, Any], trial: PrivacyPlan) -> bool:
    """A start from class means needs means with noise, which are a question of the plan."""
    asked = any(isinstance(question, ClassMeans) for question in trial.queries)
    return asked or not statement["declared_constants"].get("optimizer", {}).get("warm_start_steps", 0)


def _cards_agree(directory: Path, statement: dict[str, Any]) -> bool:
    """Every text that a person reads holds the sentence that follows from the checked numbers."""
    names = ("README.md", *statement["files"])
    cards = [directory / name for name in names if name.endswith(("README.md", "report.html", "report.json"))]
    try:
        sentence = guarantee_sentence(statement)
        return all(sentence in card.read_text(encoding="utf-8") for card in cards)
    except (OSError, ValueError, LookupError):
        return False


def _public_parts(statement: dict[str, Any]) -> bool:
    """Autoencoder and tokenizer of a released model are the backbone's, file for file. Adapters come without."""
    kind, public = kind_of_statement(statement), statement["backbone"]["sha256"]
    if kind is None:
        return False
    released = {name.removeprefix("model/"): sha256 for name, sha256 in statement["files"].items()}

    def never_tuned(files: dict[str, str]) -> dict[str, str]:
        return {
            name: digest
            for name, digest in files.items()
            if kind.is_bound(name) and name.partition("/")[0] not in kind.tuned_parts
        }

    found = never_tuned(released)
    return not found or found == never_tuned(public)


def _files(directory: Path, expected: dict[str, str], kind: Kind) -> list[Check]:
    found = [p for p in directory.rglob("*") if p.is_symlink() or not p.is_dir()]
    present = {p.relative_to(directory).as_posix() for p in found} - NOT_HASHED
    changed = [name for name in sorted(expected) if name in present and _digest(directory / name) != expected[name]]
    missing, undeclared = sorted(set(expected) - present), sorted(present - set(expected))
    foreign = [name for name in sorted(expected) if not _may_be_released(name, kind)]
    return [
        Check("files unchanged", not changed, _first(changed, f"{len(expected)} files")),
        Check("files complete", not missing, _first(missing, "none missing")),
        Check("nothing undeclared", not undeclared, _first(undeclared, "no other file"), taints=True),
        Check("nothing foreign", not foreign, _first(foreign, "only files that a release may hold"), taints=True),
    ]


def _may_be_released(name: str, kind: Kind) -> bool:
    of_model = name.startswith("model/") and kind.may_hold(name.removeprefix("model/"))
    return of_model or ALLOWED_FILES.fullmatch(name) is not None


def _first(names: list[str], otherwise: str) -> str:
    return f"{printable(names[0])} and {len(names) - 1} more" if names else otherwise


def _digest(path: Path) -> str:
    """The sha256 of a file; nothing for what is none of its own, such as a link."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
