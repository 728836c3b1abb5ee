"""`report` and `clean`: made from releases that verify accepts, once and again; what is paid for is not thrown away."""

import json
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from dpldm import reporting
from dpldm.cleaning import clean
from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.selection import SelectionPlan
from dpldm.releasing import release
from dpldm.report import page
from dpldm.report.wording import upper
from dpldm.reporting import FILES, report, run_at
from dpldm.run import Run, paid_plan, plan_of
from dpldm.sampling import sample
from dpldm.train import selecting
from dpldm.verdict import Verdict, verdict
from dpldm.verifying import verify

Capture = pytest.CaptureFixture[str]
CHARTS = page._charts


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
    assert (released.directory / "registry-draft.yaml").is_file()
    assert not list(released.release.rglob("registry*"))
    assert "987.6" not in shown
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


def test_a_release_in_the_place_of_its_run_is_refused(released: Run) -> None:
    with pytest.raises(UserError, match=f"is a release: give the folder of its run, {released.directory}"):
        report(released.release)


def test_a_damaged_record_is_named(released: Run) -> None:
    (released.private / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
        report(released.directory)
    assert accepted(released)


# --- a selection ------------------------------------------------------------------------------------------------------


@pytest.fixture
def chosen(selected_copy: RunConfig) -> Run:
    """A selection with a release of its images."""
    release(selected_copy)
    return Run(selected_copy)


def test_a_selection_is_reported_on_as_a_whole(chosen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_charts", CHARTS)
    (chosen.private / "timings.jsonl").write_text('{"stage": "finetune", "seconds": 987.6}\n')
    report(chosen.directory)
    assert accepted(chosen)
    plan, told = paid_plan(chosen.config), json.loads((chosen.release / "report.json").read_text())
    assert isinstance(plan, SelectionPlan)
    for adjacency, key in zip(Adjacency, ("epsilon", "epsilon_replace_one"), strict=True):
        stated = plan.stated_epsilon(adjacency)
        assert stated <= told["guarantee"][key] < stated + 1e-3
        nearest = min(told["curves"][adjacency.value], key=lambda point: abs(point[0] - stated))
        assert nearest == [pytest.approx(stated, abs=1e-3), pytest.approx(plan.delta, rel=0.01)]
    rows = {row["how"]: row["epsilon"] for row in told["accounting"]}
    assert rows["adding or removing one"] == upper(plan.stated_epsilon())
    assert float(rows["one trial alone"]) < float(rows["adding or removing one"]) < float(rows["without amplification"])
    assert told["spending"] is None
    assert told["guarantee"]["mu_without_amplification"] is None
    assert {"name": "selection", "value": CHOICE} in told["public"]
    secret = [row for row in told["assumptions"] if "how many trials" in row["text"] and row["status"] == "not checked"]
    assert len(secret) == 1
    seen = (chosen.release / "report.html").read_text()
    assert "the curves are those of the whole selection, not of a trial".lower() in seen.lower()
    assert "Epsilon over the number of attempts" not in seen
    assert "mu-GDP" not in seen
    inside = (chosen.private / "report.html").read_text()
    assert "How long a selection took tells how many trials there were" in inside
    assert "16 min" in inside
    assert "16 min" not in seen


CHOICE = "learning rate 0.003 of 0.001, 0.003, 0.01; 3 trials on average, each as above; their number is secret"


def test_no_report_of_a_selection_tells_how_many_trials_there_were(
    selected: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for trials in (1, 4):
        output = tmp_path / f"runs-{trials}"
        config = selected.model_copy(
            update={
                "runtime": selected.runtime.model_copy(update={"output": output}),
                "privacy": selected.privacy.model_copy(update={"ledger": output / "scans.jsonl"}),
            }
        )
        monkeypatch.setattr(selecting, "draw_trials", lambda plan, entropy, trials=trials: [1] * trials)
        selecting.select(config)
        list(sample(config))
        release(config)
        report(Run(config).directory)
        told = json.loads((Run(config).release / "report.json").read_text())
        made.append(told | {"ledger": told["ledger"]["head"]["seq"]})
    assert made[0] == made[1]


def test_an_audit_of_a_selections_trial_is_shown_as_that(chosen: Run) -> None:
    part = {"name": "sampling", "violated": False, "shown": ["x"], "ceiling": "y", "figures": {}}
    audit = {"plan": plan_of(chosen.config).constants(), "violated": False, "parts": [part]}
    (chosen.directory / "audit.json").write_text(json.dumps(audit))
    report(chosen.directory)
    assert json.loads((chosen.release / "report.json").read_text())["audit"]["parts"][0]["ceiling"] == "y"
    assert "One trial of the selection was audited." in (chosen.release / "report.html").read_text()


def test_what_is_left_of_a_selection_is_cleaned_away(chosen: Run, capsys: Capture) -> None:
    chosen.selection.mkdir()
    chosen.trials.write_text('{"candidates": [1, 1]}')
    assert main(["clean", str(chosen.directory)]) == 0
    assert f"removed  {chosen.selection}\n" in capsys.readouterr().out
    assert not chosen.selection.exists()
    assert chosen.checkpoint.exists()
    assert accepted(chosen)


# --- without matplotlib -----------------------------------------------------------------------------------------------


def test_without_matplotlib_the_remedy_is_named_and_the_release_stays_good(
    released: Run, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    report(released.directory)
    before = (released.release / "report.html").read_bytes()
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(released.directory)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "needs the package matplotlib: install it with  pip install 'dpldm[report]'" in told.err
    assert (released.release / "report.html").read_bytes() == before
    assert main(["verify", str(released.release)]) == 0


# --- clean ------------------------------------------------------------------------------------------------------------


def test_latents_go_and_weights_that_only_lie_here_stay(released: Run, capsys: Capture) -> None:
    (released.private / "latents.safetensors.partial").write_bytes(b"torn")
    assert main(["clean", str(released.directory)]) == 0
    shown = capsys.readouterr().out
    assert f"removed  {released.latents}\n" in shown
    assert "MB" not in shown, "the size of the latents is the number of records"
    assert f"kept     {released.checkpoint}: paid for" in shown
    assert not released.latents.exists()
    assert not (released.private / "latents.safetensors.partial").exists()
    assert released.checkpoint.exists()
    assert released.ledger.exists()
    assert accepted(released)
    assert main(["clean", str(released.directory)]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_features_of_a_baseline_go_as_well(released: Run, capsys: Capture) -> None:
    """They are a copy of the private images like the latents; what the baseline found is a record."""
    folder = released.private / "baselines" / "classifier" / "private"
    folder.mkdir(parents=True)
    for name in ("features.safetensors", "features.safetensors.partial", "finetune.safetensors"):
        (folder / name).write_bytes(b"encoded")
    assert main(["clean", str(released.directory)]) == 0
    assert f"removed  {folder / 'features.safetensors'}\n" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["finetune.safetensors"]


def test_weights_go_too_if_the_release_holds_them(finished_copy: RunConfig) -> None:
    release(finished_copy, "both")
    run = Run(finished_copy)
    done = clean(run.directory)
    assert done.removed == [run_at(run.directory).latents, run_at(run.directory).checkpoint]
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
