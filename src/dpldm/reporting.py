"""`report`: what people see of a release, as a page and as data, in two editions.

    release/report.html, report.json   may leave; hashed in privacy.json like every file of the release
    private/report.html, report.json   INTERNAL: also what was measured on private images
    registry-draft.yaml                a draft for the registry of deployments, to be filled in; no part of the release

Both are made from a release that `verify` accepts, never from what a run's config claims.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.models.backbone import read_card, sha256_of
from dpldm.privacy.durable import replace_file
from dpldm.privacy.ledger import LedgerError, read_ledger
from dpldm.report.charts import require_matplotlib
from dpldm.report.document import BASELINES, Edition, Recorded, report_of
from dpldm.report.page import page
from dpldm.report.registry import registry_draft
from dpldm.report.samples import load_samples
from dpldm.report.wording import trial_constants
from dpldm.run import Run
from dpldm.verdict import Verdict, verdict
from dpldm.verifying import read_statement, verify

FILES = ("report.html", "report.json")


@dataclass(frozen=True)
class Reports:
    """Where the pages are."""

    release: Path
    internal: Path
    registry: Path


def report(directory: Path) -> Reports:
    """Write both editions for a run's folder, and the draft for the registry; earlier ones are replaced.

    Args:
        directory: runs/NAME of a run that was released.

    Raises:
        UserError: it is no run, was not released, or its release is not what it says; or it is what a baseline
            released, of which there is no report.
        MissingExtra: matplotlib is not installed.
    """
    _require_run(directory)
    run = run_at(directory)
    require_release(run)
    require_matplotlib()
    _take_away(run.release)
    require_intact(run.release)
    statement = read_statement(run.release)
    recorded = _recorded(run, statement)
    samples = load_samples(run.release / "synthetic.npz", statement["declared_constants"]["labels"])
    made: dict[Edition, dict[str, bytes]] = {}
    for edition in Edition:
        content = report_of(statement, edition, recorded)
        data = (json.dumps(content, indent=1) + "\n").encode()
        made[edition] = dict(zip(FILES, (page(content, samples).encode(), data), strict=True))
    run.private.mkdir(mode=0o700, exist_ok=True)
    for name, payload in made[Edition.INTERNAL].items():
        replace_file(run.private / name, payload)
    _put(run.release, statement, made[Edition.RELEASE])
    draft = run.directory / "registry-draft.yaml"
    replace_file(draft, registry_draft(statement).encode(), mode=0o644)
    return Reports(run.release / FILES[0], run.private / FILES[0], draft)


def run_at(directory: Path) -> Run:
    """The run whose folder this is, wherever it was moved to.

    Raises:
        UserError: it is no run's folder.
    """
    path = directory / "config.resolved.yaml"
    try:
        config = RunConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{directory} is no folder of a run: give runs/NAME, as `dpldm run` made it.") from error
    output = directory.resolve().parent
    if config.name != directory.resolve().name:
        raise UserError(f"{directory} is the run {config.name!r} under another name: give the folder its name back.")
    return Run(config.model_copy(update={"runtime": config.runtime.model_copy(update={"output": output})}))


def _require_run(directory: Path) -> None:
    """Refuse a release in the place of its run.

    Raises:
        UserError: it is one.
    """
    if not (directory / "privacy.json").is_file():
        return
    if "/" in str(read_statement(directory)["plan"].get("run")):  # no run's own name holds one
        raise UserError(
            f"{directory} is what a baseline released, and reports are for runs: its README.md states the guarantee, "
            "and `dpldm verify` checks it."
        )
    raise UserError(f"{directory} is a release: give the folder of its run, {directory.resolve().parent}.")


def require_release(run: Run) -> None:
    """Refuse a run that was not released.

    Raises:
        UserError: there is no release directory.
    """
    if not run.release.is_dir():
        raise UserError(f"The run {run.config.name!r} has no release yet: run `dpldm release` first.")


def require_intact(release: Path) -> None:
    """Refuse a release that is not what it says.

    Raises:
        UserError: a check of `verify` fails.
    """
    if verdict(verify(release)) is not Verdict.VERIFIED:
        raise UserError(f"{release} is not what it says: `dpldm verify {release}` tells what was changed.")


def _take_away(release: Path) -> None:
    """Remove an earlier report, first from the statement. An interruption at any point leaves what this removes."""
    statement = read_statement(release)
    kept = {name: digest for name, digest in statement["files"].items() if name not in FILES}
    if kept != statement["files"]:
        _state(release, statement | {"files": kept})
    for name in FILES:
        (release / name).unlink(missing_ok=True)


def _put(release: Path, statement: dict[str, Any], files: Mapping[str, bytes]) -> None:
    """Add the files, then their hashes."""
    for name, payload in files.items():
        replace_file(release / name, payload, mode=0o644)
    hashes = statement["files"] | {name: sha256_of(release / name) for name in files}
    _state(release, statement | {"files": dict(sorted(hashes.items()))})


def _state(release: Path, statement: Mapping[str, Any]) -> None:
    replace_file(release / "privacy.json", (json.dumps(statement, indent=2) + "\n").encode(), mode=0o644)


def _recorded(run: Run, statement: Mapping[str, Any]) -> Recorded:
    """What lies in the run's folder. Nothing is required to be there, and an audit of another plan is not shown."""
    audit = _json(run.directory / "audit.json")
    of_this_plan = audit is not None and audit.get("plan") == trial_constants(statement["plan"])
    timings = run.private / "timings.jsonl"
    lines = timings.read_text(encoding="utf-8").splitlines() if timings.is_file() else []
    try:
        ledger = read_ledger(run.ledger)
    except LedgerError:  # it may have been left on another machine
        ledger = []
    return Recorded(
        audit=audit if of_this_plan else None,
        backbone=_backbone(run),
        evaluation=_json(run.private / "evaluation.json"),
        baselines=[found for kind in BASELINES if (found := _json(run.private / "baselines" / f"{kind}.json"))],
        memorisation=_json(run.private / "memorisation.json"),
        durations=[json.loads(line) for line in lines],
        ledger=ledger,
    )


def _backbone(run: Run) -> dict[str, Any] | None:
    """The card of the public backbone, if it is still at hand."""
    try:
        return read_card(run.config.backbone)
    except UserError:
        return None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged: make it again, or move it away.") from error
    return loaded
