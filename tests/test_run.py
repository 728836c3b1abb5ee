"""A run on disk: its folders, what binds it, its space, its plan; and one whole run, from images to a release."""

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.models.backbone import load_backbone
from dpldm.privacy.ledger import read_ledger
from dpldm.run import Run, default_batch, disk_space, ledger_cap, plan_of
from dpldm.sampling import sample
from dpldm.train.checkpoint import load_checkpoint
from tiny_runs import Means, tiny_settings, write_images


def made(raw: dict[str, Any], **privacy: Any) -> RunConfig:
    raw["privacy"] |= privacy
    return RunConfig.model_validate(raw)


# --- places -------------------------------------------------------------------------------------------------------


def test_everything_lies_below_the_output(raw: dict[str, Any], tmp_path: Path) -> None:
    run = Run(made(raw))
    base = tmp_path / "runs" / "tiny"
    assert run.directory == base
    assert run.private == base / "private"
    assert run.checkpoint.parent == run.latents.parent == run.private
    assert (run.synthetic, run.release) == (base / "synthetic", base / "release")
    assert Run(made(raw, ledger=tmp_path / "l.jsonl")).ledger == tmp_path / "l.jsonl"


def test_another_output_folder_is_not_another_budget(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpldm.run.user_data_path", lambda name: tmp_path / "account" / name)
    first = Run(made(raw, ledger=None))
    raw["runtime"]["output"] = str(tmp_path / "other")
    assert first.ledger == Run(made(raw)).ledger == tmp_path / "account" / "dpldm" / "ledgers" / "scans.jsonl"
    benchmark = Run(made(raw, public_benchmark=True))
    assert benchmark.ledger == tmp_path / "other" / "ledgers" / "scans.jsonl"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 65, "a\nb"])
def test_names_cannot_leave_the_output(raw: dict[str, Any], name: str) -> None:
    for change in ({"name": name}, {"privacy": raw["privacy"] | {"dataset_id": name}}):
        with pytest.raises(ValueError, match="String should match"):
            RunConfig.model_validate(raw | change)


def test_a_run_is_created_with_its_resolved_config(raw: dict[str, Any]) -> None:
    config = made(raw)
    run = Run(config)
    run.create()
    assert stat.S_IMODE(run.private.stat().st_mode) == 0o700
    assert RunConfig.model_validate(yaml.safe_load(run.resolved_config.read_text())) == config
    run.create()
    assert {path.name for path in run.directory.iterdir()} == {"private", "config.resolved.yaml"}


def test_a_folder_that_cannot_be_made_is_refused(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    raw["runtime"]["output"] = str(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be written.*another runtime\.output"):
        Run(made(raw)).create()


# --- what binds a run ---------------------------------------------------------------------------------------------

CHANGES: dict[str, dict[str, Any]] = {
    "data": {"data": {"crop": "none"}},
    "backbone": {"backbone": "elsewhere"},
    "trainable": {"trainable": "condition"},
    "privacy": {"privacy": {"epsilon": 1.0}},
    "optimizer": {"optimizer": {"learning_rate": 0.5}},
    "sampling": {"sampling": {"count": 30}},
    "evaluation": {"evaluation": {"protocol": "screen"}},
    "runtime": {"runtime": {"physical_batch_size": 3}},
    "test images": {"data": {"test_path": "x"}},
    "the ledger's place": {"privacy": {"ledger": "/elsewhere.jsonl"}},
}


def altered(raw: dict[str, Any], change: dict[str, Any]) -> RunConfig:
    merged = {
        key: value | change.get(key, {}) if isinstance(value, dict) else change.get(key, value)
        for key, value in {"trainable": "attention", "optimizer": {}, **raw}.items()
    }
    return RunConfig.model_validate(merged)


@pytest.mark.parametrize("section", CHANGES)
def test_training_settings_bind_from_the_first_checkpoint_on(section: str, raw: dict[str, Any]) -> None:
    config, other = made(raw), altered(raw, CHANGES[section])
    assert config != other
    Run(config).create()
    if section != "backbone":  # that one does not exist
        Run(other).create()
        Run(config).create()
    Run(config).checkpoint.touch()
    if section in ("data", "backbone", "trainable", "privacy", "optimizer"):
        with pytest.raises(UserError, match=f"exists with another section `{section}`: give this run a new name"):
            Run(other).create()
        assert RunConfig.model_validate(yaml.safe_load(Run(config).resolved_config.read_text())) == config
    else:
        Run(other).create()


@pytest.mark.parametrize("damage", [b"", b"data: [", b"\xff", b"name: x\n", None])
def test_a_damaged_resolved_config_is_refused(damage: bytes | None, raw: dict[str, Any]) -> None:
    run = Run(made(raw))
    run.create()
    run.checkpoint.touch()
    if damage is None:
        run.resolved_config.unlink()
    else:
        run.resolved_config.write_bytes(damage)
    with pytest.raises(UserError, match="missing or damaged: restore it from a copy"):
        run.create()


# --- space --------------------------------------------------------------------------------------------------------


def test_enough_space_is_asked_for_but_not_much_more(finished: RunConfig) -> None:
    """Between what training everything leaves on disk (two checkpoints and the latents) and twice as much."""
    denoiser = load_backbone(finished.backbone).denoiser
    parameters = sum(p.numel() for p in denoiser.parameters())
    everything = 2 * 4 * 4 * parameters + 40 * 2 * 4 * (2 * 4 * 4)
    assert everything <= disk_space(finished) < 1.5 * everything
    run = Run(finished)
    assert run.checkpoint.stat().st_size + run.latents.stat().st_size < disk_space(finished)
    twice = finished.model_copy(update={"privacy": finished.privacy.model_copy(update={"records": 80})})
    assert disk_space(twice) - disk_space(finished) == 40 * 2 * 4 * (2 * 4 * 4)
    rates = finished.selection.model_copy(update={"learning_rates": (1e-3, 1e-2)})
    selection = finished.model_copy(update={"selection": rates})
    assert disk_space(selection) - disk_space(finished) >= 4 * 4 * parameters, "the best trial's checkpoint as well"


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_the_free_space_decides(spare: int, fits: bool, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = made(raw)
    free = disk_space(config) + spare
    monkeypatch.setattr("dpldm.run.shutil.disk_usage", lambda path: type("usage", (), {"free": free}))
    if fits:
        Run(config).create()
    else:
        with pytest.raises(UserError, match="too full"):
            Run(config).create()


# --- the plan -----------------------------------------------------------------------------------------------------


def test_the_plan_takes_its_constants_from_the_config(raw: dict[str, Any]) -> None:
    plan = plan_of(made(raw, max_grad_norm=0.5, draws_per_example=3))
    given = (plan.dataset_id, plan.run, plan.epsilon, plan.delta, plan.records, plan.expected_batch_size)
    assert given == ("scans", "tiny", 0.5, 1e-3, 40, 20)
    assert (plan.steps, plan.reserve_steps, plan.max_grad_norm, plan.draws_per_example) == (2, 1, 0.5, 3)
    assert 0.45 < plan.epsilon_after(plan.attempts) <= 0.5
    assert not plan.public_benchmark
    assert plan_of(made(raw, reserve_steps=None)).reserve_steps == 5


@pytest.mark.parametrize(("records", "batch"), [(10, 1), (800, 100), (32_767, 4095), (32_768, 4096), (10**7, 4096)])
def test_default_batch(records: int, batch: int) -> None:
    assert default_batch(records) == batch


def test_the_cap_is_the_runs_own_budget_unless_declared(raw: dict[str, Any]) -> None:
    assert ledger_cap(made(raw)) == (0.5, 1e-3)
    assert ledger_cap(made(raw, cap=(9.0, 1e-2))) == (9.0, 1e-2)
    assert ledger_cap(made(raw, cap=None, public_benchmark=True)) is None


# --- one whole run ------------------------------------------------------------------------------------------------


@pytest.fixture
def cheap_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpldm.evaluation.evaluate.extractor_of", lambda config: Means())


@pytest.mark.parametrize("benchmark", [False, True])
@pytest.mark.usefixtures("cheap_features")
def test_from_images_to_a_verified_release(
    benchmark: bool, tmp_path: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tiny_settings(tmp_path, tiny_backbone, write_images(tmp_path / "images"))
    raw["privacy"]["public_benchmark"] = benchmark
    raw["data"]["test_path"] = str(write_images(tmp_path / "test", seed=1))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))

    assert main(["run", "--config", str(path), "--what", "both"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    run = Run(RunConfig.model_validate(raw))
    internal = json.loads((run.private / "evaluation.json").read_text())
    told = [line for line in shown.out.splitlines() if "instead:" not in line]  # what others measured, in public
    numbers = re.findall(r"accuracy|KID|\d+\.\d %", "\n".join(told))
    if benchmark:
        assert internal["status"] == "public benchmark"
        assert {"accuracy", "KID"} <= set(numbers)
    else:
        assert internal["status"].startswith("INTERNAL")
        assert numbers == []
        assert "evaluation: INTERNAL" in shown.out
    assert internal["utility"]["scores"]["cnn"]["accuracies"], "there was something to hide"
    assert "finetune 1/2" in shown.out
    assert "finetune 2/2" in shown.out

    attempts = [entry for entry in read_ledger(run.ledger) if entry["event"] == "attempt"]
    assert len(attempts) == 2
    assert main(["verify", str(run.release)]) == 0
    verdict = capsys.readouterr().out
    assert "FAILED" not in verdict
    assert "The release is what it says." in verdict

    before = run.checkpoint.read_bytes()
    words = ["run", "--config", str(path), "--what", "both", "--json"]
    assert main(words) == 0, "the same line resumes, also at the end"
    told = json.loads(capsys.readouterr().out)
    assert ("evaluation" in told) == benchmark, "what is told to a program is what is shown"
    assert run.checkpoint.read_bytes() == before
    assert len([entry for entry in read_ledger(run.ledger) if entry["event"] == "attempt"]) == 2


def test_more_images_do_not_reset_the_budget(finished_copy: RunConfig, tmp_path: Path) -> None:
    """The same data set under another run's name: its cap is spent, and nothing is charged."""
    path = tmp_path / "run.yaml"
    other = finished_copy.model_copy(update={"name": "second"})
    path.write_text(yaml.safe_dump(other.model_dump(mode="json")))
    lines = len(read_ledger(Run(other).ledger))
    assert main(["finetune", "--config", str(path)]) == 2
    assert len(read_ledger(Run(other).ledger)) == lines


def test_the_finished_runs_checkpoint_names_its_plan(finished: RunConfig) -> None:
    _, facts = load_checkpoint(Run(finished).checkpoint)
    assert facts["plan"] == plan_of(finished).digest()
    assert facts["updates"] == 2


def test_the_resolved_config_shows_what_the_last_stage_was_called_with(finished_copy: RunConfig) -> None:
    run = Run(finished_copy)
    other = finished_copy.model_copy(update={"sampling": finished_copy.sampling.model_copy(update={"guidance": 2.5})})
    list(sample(other))
    assert yaml.safe_load(run.resolved_config.read_text())["sampling"]["guidance"] == 2.5
