"""`report` and `clean`: made from releases that verify accepts, once and again; what is paid for is not thrown away."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from dpldm import reporting
from dpldm.cleaning import clean
from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.releasing import release
from dpldm.report import page
from dpldm.reporting import FILES, report, run_at
from dpldm.run import Run, plan_of
from dpldm.verdict import Verdict, verdict
from dpldm.verifying import verify

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take seconds, and are the affair of report/test_page.py."""
    drawn = dict.fromkeys(("guesses", "delta", "attack", "spending"), "<svg></svg>")
    monkeypatch.setattr(page, "_charts", lambda report: drawn)


@pytest.fixture
def released(finished_copy: RunConfig) -> Run:
    """A run with a release of its images."""
    release(finished_copy)
    return Run(finished_copy)


def accepted(run: Run) -> bool:
    return verdict(verify(run.release)) is Verdict.VERIFIED


# --- report -----------------------------------------------------------------------------------------------------------


def test_both_editions_are_where_they_belong(released: Run, capsys: Capture) -> None:
    (released.private / "timings.jsonl").write_text('{"stage": "finetune", "seconds": 987.6}\n')
    assert main(["report", str(released.directory)]) == 0
    shown = capsys.readouterr().out
    assert str(released.release / "report.html") in shown
    assert "987" not in shown
    for folder, mode, edition in ((released.release, 0o644, "release"), (released.private, 0o600, "internal")):
        for name in FILES:
            assert stat.S_IMODE((folder / name).stat().st_mode) == mode
        assert json.loads((folder / "report.json").read_text())["edition"] == edition
    assert set(FILES) <= set(json.loads((released.release / "privacy.json").read_text())["files"])
    assert accepted(released)


def test_made_again_it_is_the_same_and_so_is_the_release(released: Run) -> None:
    report(released.directory)
    before = {path: path.read_bytes() for path in released.release.rglob("*") if path.is_file()}
    report(released.directory)
    assert {path: path.read_bytes() for path in released.release.rglob("*") if path.is_file()} == before
    assert release(released.config) == released.release, "a report does not make it another release"
    assert {path: path.read_bytes() for path in released.release.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("last", range(1, 7))
def test_interrupted_at_any_write_the_same_call_puts_it_right(
    last: int, released: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(released.directory)
    calls, original = 0, reporting.replace_file

    def interrupted(path: Path, payload: bytes, mode: int = 0o600) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        original(path, payload, mode)

    monkeypatch.setattr(reporting, "replace_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report(released.directory)
    monkeypatch.undo()
    report(released.directory)
    assert accepted(released)


def test_an_audit_is_shown_only_if_it_was_of_this_plan(released: Run) -> None:
    part = {"name": "sampling", "violated": False, "shown": ["x"], "ceiling": "y", "figures": {}}
    audit: dict[str, Any] = {"plan": plan_of(released.config).constants(), "violated": False, "parts": [part]}

    def audited() -> Any:
        (released.directory / "audit.json").write_text(json.dumps(audit))
        report(released.directory)
        return json.loads((released.release / "report.json").read_text())["audit"]

    assert audited()["parts"][0]["ceiling"] == "y"
    audit["plan"]["noise_multiplier"] = 99.0
    assert audited() is None


def test_a_release_that_was_changed_is_not_reported_on(released: Run) -> None:
    (released.release / "README.md").write_text("differentially very private")
    with pytest.raises(UserError, match="is not what it says"):
        report(released.directory)
    assert not (released.release / "report.html").exists()


def test_a_run_that_was_moved_is_found_and_a_renamed_one_refused(released: Run, tmp_path: Path) -> None:
    moved = Path(shutil.move(released.directory, tmp_path / "elsewhere" / "tiny"))
    report(moved)
    assert run_at(moved).release == moved.resolve() / "release"
    renamed = moved.rename(moved.with_name("other"))
    with pytest.raises(UserError, match="is the run 'tiny' under another name"):
        report(renamed)


def test_what_is_no_released_run_is_refused(finished_copy: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no release yet: run `dpldm release` first"):
        report(Run(finished_copy).directory)
    with pytest.raises(UserError, match="is no folder of a run"):
        report(tmp_path)
    (Run(finished_copy).directory / "config.resolved.yaml").write_text("[")
    with pytest.raises(UserError, match="is no folder of a run"):
        report(Run(finished_copy).directory)


def test_a_damaged_record_is_named(released: Run) -> None:
    (released.private / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
        report(released.directory)
    assert accepted(released)


# --- clean ------------------------------------------------------------------------------------------------------------


def test_latents_go_and_weights_that_only_lie_here_stay(released: Run, capsys: Capture) -> None:
    size = released.latents.stat().st_size
    (released.private / "latents.safetensors.partial").write_bytes(b"torn")
    assert main(["clean", str(released.directory)]) == 0
    shown = capsys.readouterr().out
    assert f"removed  {released.latents} ({size / 1e6:,.1f} MB)" in shown
    assert f"kept     {released.checkpoint}: paid for" in shown
    assert not released.latents.exists()
    assert not (released.private / "latents.safetensors.partial").exists()
    assert released.checkpoint.exists()
    assert released.ledger.exists()
    assert accepted(released)
    assert main(["clean", str(released.directory)]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_weights_go_too_if_the_release_holds_them(finished_copy: RunConfig) -> None:
    release(finished_copy, "both")
    run = Run(finished_copy)
    done = clean(run.directory)
    assert [path for path, _ in done.removed] == [run_at(run.directory).latents, run_at(run.directory).checkpoint]
    assert not run.checkpoint.exists()
    report(run.directory)
    assert accepted(run), "a report needs neither"


def test_an_unreleased_run_is_left_alone_unless_it_is_given_up(finished_copy: RunConfig, capsys: Capture) -> None:
    run = Run(finished_copy)
    assert main(["clean", str(run.directory)]) == 2
    assert "is not released, and what its caches hold is paid for" in capsys.readouterr().err
    assert run.latents.exists()
    assert run.checkpoint.exists()
    assert main(["clean", str(run.directory), "--force"]) == 0
    assert not run.latents.exists()
    assert not run.checkpoint.exists()
    assert run.ledger.exists(), "what was spent stays spent"


def test_a_release_that_was_changed_is_no_reason_to_throw_anything_away(released: Run) -> None:
    next((released.release / "synthetic").rglob("*.png")).unlink()
    with pytest.raises(UserError, match="is not what it says"):
        clean(released.directory)
    assert released.latents.exists()
