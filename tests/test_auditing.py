"""`dpldm audit`: what it prints, how it ends, and that it opens nothing private."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dpldm import auditing
from dpldm.auditing import Effort, audit, planned
from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.privacy import audit as statistics
from dpldm.privacy import clipping, mechanism, sampling, trials
from dpldm.privacy.noise import add_gaussian
from dpldm.releasing import release
from dpldm.train import replay as replaying

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
SMALL = Effort(attempts=300, sampler_rounds=100, canaries=500)
PARTS = ["clipping and noise", "sampling", "replay of the trainer", "canaries in one run"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: Patch) -> None:
    """Entropy is the system's, and a correct part fails with probability 1e-3 at any effort: tests that need a verdict
    use `sure`, or defects that cannot be missed."""
    monkeypatch.setattr(auditing, "Effort", lambda: SMALL)


@pytest.fixture
def config_file(raw: dict[str, Any], tmp_path: Path) -> Path:
    raw["data"]["path"] = str(tmp_path / "there-is-nothing-here")
    raw["trainable"] = "condition"
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def sure(monkeypatch: Patch) -> Callable[[bool], None]:
    """Fix the verdict of the parts with chance in them: what the command does with it must not depend on that."""

    def verdict(found: bool) -> None:
        for name in ("MechanismAudit", "SamplerAudit"):
            monkeypatch.setattr(getattr(statistics, name), "violated", property(lambda _: found))

    return verdict


def test_a_run_is_audited_without_its_images_and_leaves_no_trace(
    config_file: Path, tmp_path: Path, account: Path, capsys: Capture, sure: Callable[[bool], None]
) -> None:
    sure(False)
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["audit", "--config", str(config_file), "--json", str(tmp_path / "audit.json")]) == 0
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [tmp_path / "audit.json"]
    assert list(account.rglob("*")) == []
    shown = capsys.readouterr().out
    assert [line[8:] for line in shown.splitlines() if line.startswith("ok    ")] == PARTS
    assert shown.count("could have shown: ") == len(PARTS)
    assert "No violation found, which proves nothing." in shown
    assert "safe" not in shown
    report = json.loads((tmp_path / "audit.json").read_text())
    assert (report["format"], report["violated"]) == ("dpldm-audit-1", False)
    assert [part["name"] for part in report["parts"]] == PARTS
    assert report["plan"]["dataset_id"] == "scans"
    assert len(report["parts"][2]["figures"]["pairs"]) == 11


def test_a_release_is_audited_without_its_config(
    finished: RunConfig, tmp_path: Path, capsys: Capture, finished_copy: RunConfig, sure: Callable[[bool], None]
) -> None:
    sure(False)
    made = release(finished_copy, "data")
    assert main(["audit", "--release", str(made)]) == 0
    assert [line[8:] for line in capsys.readouterr().out.splitlines() if line.startswith("ok    ")] == [
        name for name in PARTS if "replay" not in name
    ]
    assert planned(made, None).noise_multiplier > 0


def test_a_violation_ends_with_1(
    finished_copy: RunConfig, capsys: Capture, tmp_path: Path, sure: Callable[[bool], None]
) -> None:
    sure(True)
    made = release(finished_copy, "data")
    assert main(["audit", "--release", str(made), "--json", str(tmp_path / "audit.json")]) == 1
    shown = capsys.readouterr().out
    assert shown.count("FAILED  ") == 2
    assert "VIOLATION FOUND: do not rely on this guarantee." in shown
    assert json.loads((tmp_path / "audit.json").read_text())["violated"] is True


def test_defects_of_the_code_are_found_end_to_end(config_file: Path, monkeypatch: Patch) -> None:
    """Clipping off and hardly any noise: every part but the sampler's sees it, however the coins fall."""
    monkeypatch.setitem(clipping.RULES, "flat", lambda norms, clip_norm: torch.ones_like(norms))
    monkeypatch.setattr(
        mechanism, "add_gaussian", lambda total, deviation, entropy: add_gaussian(total, deviation / 20, entropy)
    )
    config = RunConfig.model_validate(yaml.safe_load(config_file.read_text()))
    effort = replace(SMALL, canaries=2000)  # 200 guesses, some 188 of them right; with 50 the canaries miss it at times
    found = {part.name: part for part in audit(planned(None, config), config, effort)}
    assert {name for name, part in found.items() if part.violated} >= set(PARTS) - {"sampling"}
    assert "the sums differ; sums" in " ".join(found["replay of the trainer"].shown)


def test_no_evidence_is_called_that() -> None:
    assert auditing._evidence(0.0) == "0.0 (no evidence found)"
    assert auditing._evidence(0.009) == "0.0 (no evidence found)"
    assert auditing._evidence(1.239) == "1.23"


@pytest.mark.parametrize(
    ("sigma", "said"),
    [
        (0.5, "not even then would it be a violation"),
        (1.0, "hardly a guess is wrong, that is by a catastrophe"),
        (20.0, "right"),
    ],
)
def test_what_the_canaries_cannot_refute_is_said(config_file: Path, sigma: float, said: str) -> None:
    plan = planned(None, RunConfig.model_validate(yaml.safe_load(config_file.read_text())))
    ceiling = auditing._canaries(replace(plan, noise_multiplier=sigma), SMALL).ceiling
    assert "with every guess right" in ceiling
    assert ceiling.endswith(said)


def test_a_long_plan_is_not_played_to_its_end(config_file: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(auditing, "MOST_STEPS", 1)
    config = RunConfig.model_validate(yaml.safe_load(config_file.read_text()))
    assert "2 of 3 attempts were left out" in auditing._canaries(planned(None, config), SMALL).ceiling


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give either --config .* or --release"),
        (["--release", "nowhere"], "is no privacy statement of dpldm"),
        (["--config", "nowhere.yaml"], "cannot be read"),
        (["--config", "FILE", "--json", "no/such/folder/audit.json"], "The folder of .* does not exist"),
        (["--config", "FILE", "--data.image_size", "64"], "takes 13 to 16 pixels"),
        (["--config", "FILE", "--private", "images"], "private is not a setting"),
        (["--config", "FILE", "--privacy.records", "null"], "privacy.records is blank"),
        (["--release", "RELEASE", "--privacy.epsilon", "1"], "A release has its plan already"),
        (["--release", "RELEASE", "--config", "FILE"], "Give either"),
    ],
)
def test_mistakes_end_with_2_and_one_sentence(
    config_file: Path, tmp_path: Path, capsys: Capture, words: list[str], message: str
) -> None:
    given = [{"FILE": str(config_file), "RELEASE": str(tmp_path)}.get(word, word) for word in words]
    assert main(["audit", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dpldm: ")
    assert error.count("\n") == 1
    assert re.search(message, error)


@pytest.mark.parametrize("flag", ["--private", "--images", "--data", "--on-private-data"])
def test_an_audit_on_private_images_is_refused(
    config_file: Path, image_folder: Path, account: Path, capsys: Capture, flag: str
) -> None:
    """It would be an event of its own, with a charge; there is none, and no way to name images."""
    assert main(["audit", "--config", str(config_file), flag, str(image_folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(account.rglob("*")) == []


def test_batches_that_a_plan_cuts_are_audited(raw: dict[str, Any], monkeypatch: Patch) -> None:
    coins = sampling._bernoulli
    raw["privacy"] |= {"max_batch_size": 60, "most_records": 60}
    plan = planned(None, RunConfig.model_validate(raw))
    part = auditing._sampler(plan, SMALL)
    assert "and as many cut to 1,000" in part.shown[0]
    assert "units of cut batches" in part.figures["p_values"]
    assert "favour units" in part.ceiling
    uncut = auditing._sampler(replace(plan, max_batch_size=None, most_records=None), SMALL)
    assert "cut" not in uncut.shown[0] + uncut.ceiling
    monkeypatch.setattr(trials, "poisson_batch", lambda units, q, entropy, largest: coins(units, q, entropy)[:largest])
    assert auditing._sampler(plan, replace(SMALL, sampler_rounds=1000)).violated  # so many see it for certain


def test_a_plan_without_noise_is_refused(config_file: Path) -> None:
    config = RunConfig.model_validate(yaml.safe_load(config_file.read_text()))
    with pytest.raises(UserError, match="has no noise"):
        next(audit(replace(planned(None, config), noise_multiplier=0.0)))


def test_replay_is_part_of_it_only_with_a_config(config_file: Path, monkeypatch: Patch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a replay without a config")

    monkeypatch.setattr(replaying, "replay", never)
    config = RunConfig.model_validate(yaml.safe_load(config_file.read_text()))
    assert len(list(audit(planned(None, config), None, SMALL))) == 3
