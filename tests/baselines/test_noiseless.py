"""Tuning without noise: the run's own code with sigma = 0, in a ledger of its own, and never released."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dpldm.baselines.noiseless import noiseless, noiseless_run
from dpldm.baselines.result import folder_of
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.evaluation import evaluate as evaluation
from dpldm.privacy.ledger import open_ledger, read_ledger
from dpldm.releasing import release
from dpldm.run import Run, plan_of
from dpldm.sampling import sample
from dpldm.train.finetune import finetune
from dpldm.verifying import verify
from tiny_runs import ASKED, Means, write_images


@pytest.fixture(autouse=True)
def cheap_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "extractor_of", lambda config: Means())


@pytest.fixture
def config(raw: dict[str, Any], tmp_path: Path) -> RunConfig:
    raw["data"]["test_path"] = str(write_images(tmp_path / "test", seed=1))
    raw["privacy"]["public_benchmark"] = True
    return RunConfig.model_validate(raw)


def test_the_run_without_noise(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    deviations: list[float] = []

    def heard(total: Tensor, deviation: float, entropy: Any) -> Tensor:
        deviations.append(deviation)
        return total

    monkeypatch.setattr("dpldm.privacy.mechanism.add_gaussian", heard)
    stages: list[tuple[str, int, int]] = []
    found = noiseless(config, lambda *progress: stages.append(progress))
    assert set(deviations) == {0.0}
    assert [stage for stage in stages if stage[0] == "tuning without noise"] == [
        ("tuning without noise", 1, 2),
        ("tuning without noise", 2, 2),
    ]
    assert ("images drawn", 24, 24) in stages
    assert (found.facts["updates"], found.facts["train"], found.test) == (2, 20, 40)
    run, plan = noiseless_run(config)
    entries = read_ledger(run.ledger)
    assert [entry["event"] for entry in entries] == ["created", "plan", "attempt", "attempt"]
    assert entries[1]["constants"] == plan.constants()
    assert plan.noise_multiplier == 0
    assert (plan.steps, plan.max_grad_norm) == (2, plan_of(config).max_grad_norm)
    assert not Run(config).ledger.exists(), "the data set's ledger knows nothing of it"
    stored = json.loads((folder_of(config) / "noiseless.json").read_text())
    assert (stored["kind"], stored["status"]) == ("noiseless", "public benchmark")
    assert "must not be released" in stored["what"]
    assert (run.directory / "contact-sheet.png").exists()
    deviations.clear()
    assert noiseless(config).scores == found.scores
    assert deviations == [], "the same call finds it tuned"


def test_its_model_is_never_released(config: RunConfig) -> None:
    """Not by the run's config, not by its own, and not if its checkpoint is put in the run's place."""
    noiseless(config)
    run, _ = noiseless_run(config)
    with pytest.raises(UserError, match="has no tuned model"):
        release(config, "both")
    for ledger in {run.ledger, Run(config).ledger}:
        with open_ledger(ledger, config.privacy.dataset_id, None) as opened:
            opened.register(plan_of(config))
    for call in (lambda: release(run.config, "both"), lambda: list(sample(run.config))):
        with pytest.raises(UserError, match="made under another privacy plan"):
            call()
    Run(config).checkpoint.write_bytes(run.checkpoint.read_bytes())
    with pytest.raises(UserError, match="made under another privacy plan"):
        release(config, "both")
    assert not list(config.runtime.output.rglob("release*"))


def test_the_run_beside_it_is_left_as_it_was(config: RunConfig) -> None:
    list(finetune(config))
    list(sample(config))
    target, ledger = release(config), Run(config).ledger.read_bytes()
    noiseless(config)
    assert Run(config).ledger.read_bytes() == ledger
    assert release(config) == target
    assert all(check.passed for check in verify(target))


def test_a_histogram_steers_it_as_it_steers_the_run(config: RunConfig) -> None:
    privacy = config.privacy.model_copy(update={**ASKED, "noise": "grid"})
    asking = config.model_copy(update={"privacy": privacy})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpldm.train.asking.class_counts", lambda places, classes: torch.tensor([3e4, 1e4]).double())
        noiseless(asking)
    run, plan = noiseless_run(asking)
    assert plan.noise == "float", "there is no grid without noise"
    labels = [np.load(path)["y"] for path in run.synthetic.glob("batch-*.npz")]
    counts = np.bincount(np.concatenate(labels), minlength=2)
    assert counts.tolist() == [18, 6], "three quarters: the noise of the answer, 30, moves no image"


def test_a_selection_has_no_single_run_to_repeat(config: RunConfig) -> None:
    rates = config.selection.model_copy(update={"learning_rates": (1e-3, 1e-2)})
    with pytest.raises(UserError, match=r"leave selection\.learning_rates out"):
        noiseless(config.model_copy(update={"selection": rates}))
