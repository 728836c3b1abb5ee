"""`verify`: check a release without the private data, without torch and without trusting its author's numbers.

Epsilon is recomputed by dp-accounting from the plan in `privacy.json`; every file's hash is compared; files that
nobody declared are refused.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpldm.data.names import printable
from dpldm.errors import UserError
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.plan import PrivacyPlan

NOT_HASHED = {"privacy.json"}


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
    statement = _read(directory / "privacy.json")
    try:
        return _checks(directory, statement)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise UserError(
            f"The statement in {directory} lacks a value, or has one that cannot be: ask for the release again."
        ) from error


def _checks(directory: Path, statement: dict[str, Any]) -> list[Check]:
    plan = PrivacyPlan(**statement["plan"])
    claimed = statement["guarantee"]
    return [
        Check("plan digest", plan.digest() == statement["plan_digest"], "the plan is the one that was trained"),
        _epsilon("epsilon", claimed["epsilon"], plan, Adjacency.ADD_OR_REMOVE_ONE),
        _epsilon("epsilon, replace one", claimed["epsilon_replace_one"], plan, Adjacency.REPLACE_ONE),
        Check("delta", claimed["delta"] == plan.delta < 1 / plan.records, f"{plan.delta:g} < 1/records"),
        Check("updates", statement["updates"] <= plan.steps, f"{statement['updates']} of {plan.steps}"),
        Check("unit and adjacency", _same_unit(claimed, plan), f"one {plan.unit}, added or removed"),
        Check("public benchmark", claimed["public_benchmark"] == plan.public_benchmark, f"{plan.public_benchmark}"),
        *_files(directory, statement["files"]),
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        statement: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if statement["format"] != "dpldm-privacy-1":
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is no privacy statement of dpldm: give the directory that `dpldm release` made."
        ) from error
    return statement


def _epsilon(name: str, claimed: float, plan: PrivacyPlan, adjacency: Adjacency) -> Check:
    recomputed = plan.epsilon_after(plan.attempts, adjacency)
    return Check(name, claimed >= recomputed * (1 - 1e-6), f"claimed {claimed:.4f}, recomputed {recomputed:.4f}")


def _same_unit(claimed: dict[str, Any], plan: PrivacyPlan) -> bool:
    return bool(claimed["unit"] == plan.unit and claimed["adjacency"] == Adjacency.ADD_OR_REMOVE_ONE.value)


def _files(directory: Path, expected: dict[str, str]) -> list[Check]:
    found = [p for p in directory.rglob("*") if p.is_symlink() or not p.is_dir()]
    present = {p.relative_to(directory).as_posix() for p in found} - NOT_HASHED
    changed = [name for name in sorted(expected) if name in present and _digest(directory / name) != expected[name]]
    missing, undeclared = sorted(set(expected) - present), sorted(present - set(expected))
    return [
        Check("files unchanged", not changed, _first(changed, f"{len(expected)} files")),
        Check("files complete", not missing, _first(missing, "none missing")),
        Check("nothing undeclared", not undeclared, _first(undeclared, "no other file")),
    ]


def _first(names: list[str], otherwise: str) -> str:
    return f"{printable(names[0])} and {len(names) - 1} more" if names else otherwise


def _digest(path: Path) -> str:
    """The sha256 of a file; nothing for what is none of its own, such as a link."""
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
