"""Go or no-go: every figure is of results/, and a verdict follows from what was measured and from nothing else."""

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dpldm.models.backbone import load_backbone
from dpldm.models.trainable import choose_trainable
from dpldm.outlook import (
    HARD_TO_LEARN,
    HARDER,
    MEASURED,
    PORTRAYED,
    Measured,
    Portrayed,
    Start,
    Verdict,
    alternatives,
    is_learnt,
    of_rehearsal,
    outlook,
    outlook_of_portraits,
)
from dpldm.report.forecast import outlook_lines

RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture(scope="module")
def network() -> Any:
    backbone = load_backbone("grey32")
    backbone.family.adapt(backbone.denoiser, 10)
    return backbone.denoiser


@pytest.mark.parametrize("run", MEASURED, ids=lambda run: run.manifest)
def test_what_is_said_of_a_run_is_what_was_recorded(run: Measured, network: Any) -> None:
    recorded = json.loads((RESULTS / run.manifest).read_text())
    config, plan = recorded["config"], recorded["plan"]
    chosen = choose_trainable(deepcopy(network), config["trainable"], embedder=config.get("tune_embedder", True))
    tuned = sum(p.numel() for p in chosen.values())
    ratio = plan["noise_multiplier"] * math.sqrt(tuned) / plan["expected_batch_size"]
    assert config["backbone"] == "grey32"
    assert run.records == plan["records"]
    assert run.classes == len(config["data"]["labels"])
    if not config["optimizer"].get("warm_start_steps"):
        assert run.start is Start.NOTHING
    else:
        drawn = config["privacy"].get("class_spreads_noise") is not None
        assert run.start is (Start.PORTRAITS if drawn else Start.CLASS_MEANS)
    assert run.accuracy == pytest.approx(recorded["evaluation"]["utility"]["scores"]["cnn"]["mean"], abs=5e-5)
    off = run.noise_to_signal - ratio
    assert 0 <= (off if run.learnt else -off) < 0.01, "rounded so that it is an example of itself"


@pytest.mark.parametrize("run", MEASURED, ids=lambda run: run.manifest)
def test_a_run_that_was_measured_is_told_what_came_of_it(run: Measured) -> None:
    found = outlook(run.records, run.noise_to_signal, run.start, run.classes)
    assert found.verdict is (Verdict.LEARNT if run.learnt else Verdict.NO)
    assert bool(found.alternatives) != run.learnt


@pytest.mark.parametrize(
    ("records", "noise", "start", "verdict"),
    [
        (100_000, 0.1, Start.NOTHING, Verdict.LEARNT),  # easier than Fashion-MNIST at epsilon 1
        (60_000, 1.4, Start.NOTHING, Verdict.UNKNOWN),  # noisier than anything that learnt
        (60_000, 3.4, Start.PORTRAITS, Verdict.NO),
        (60_000, 1.4, Start.PORTRAITS, Verdict.LEARNT),
        (4_000, 1.0, Start.CLASS_MEANS, Verdict.LEARNT),
        (4_000, 1.5, Start.CLASS_MEANS, Verdict.NO),  # letters failed with less noise and a better start
        (4_000, 0.2, Start.NOTHING, Verdict.UNKNOWN),
        (300, 2.0, Start.NOTHING, Verdict.NO),
        (20_000, 0.5, Start.NOTHING, Verdict.UNKNOWN),
    ],
)
def test_easier_than_what_learnt_harder_than_what_did_not_or_unknown(
    records: int, noise: float, start: Start, verdict: Verdict
) -> None:
    assert outlook(records, noise, start, 10).verdict is verdict


def test_of_public_classes_that_are_told_too_no_failure_was_measured() -> None:
    assert outlook(4_000, 1.1, Start.NOTHING, 10).verdict is Verdict.NO
    assert outlook(4_000, 1.1, Start.NOTHING, 10, public_classes=True).verdict is Verdict.UNKNOWN
    assert outlook(4_000, 4.0, Start.NOTHING, 10, public_classes=True).verdict is Verdict.NO


def test_no_run_is_both_an_example_and_a_counterexample() -> None:
    for good in (run for run in MEASURED if run.learnt):
        for bad in (run for run in MEASURED if not run.learnt):
            harder = good.records <= bad.records and good.noise_to_signal >= bad.noise_to_signal
            assert not (harder and good.start <= bad.start), (good, bad)


def test_the_limit_is_beyond_all_that_learnt() -> None:
    assert max(run.noise_to_signal for run in MEASURED if run.learnt) * 2 < HARD_TO_LEARN


def test_learnt_is_half_way_from_guessing_to_always_right() -> None:
    assert is_learnt(0.56, 10)
    assert not is_learnt(0.54, 10)
    assert not is_learnt(0.74, 2), "half of two classes are guessed"


def test_alternatives_are_those_that_there_are() -> None:
    assert any("baseline classifier" in other for other in alternatives(Start.NOTHING, 10))
    assert any("class_means_noise" in other for other in alternatives(Start.NOTHING, 10))
    assert not any("class_means_noise" in other for other in alternatives(Start.CLASS_MEANS, 10))
    assert len(alternatives(Start.NOTHING, 0)) == 2, "without classes there is neither a classifier nor a mean"


def test_a_rehearsal_says_whether_to_go_on() -> None:
    assert of_rehearsal(0.7, Start.NOTHING, 10).verdict is Verdict.LEARNT
    found = of_rehearsal(0.26, Start.NOTHING, 10)
    assert found.verdict is Verdict.NO
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(outlook_lines(found))
    shown = console.export_text()
    assert "recognises 26.0% of them, where guessing one of 10 classes gives 10.0%" in shown
    assert "instead: a private classifier instead of images" in shown


# --- portraits alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [*PORTRAYED, HARDER], ids=lambda run: run.manifest)
def test_what_is_said_of_portraits_is_what_was_recorded(run: Portrayed) -> None:
    recorded = json.loads((RESULTS / run.manifest).read_text())
    plan = recorded["plan"]
    assert recorded["config"]["backbone"] == "grey32"
    assert plan["steps"] == 0
    assert [query["noise_multiplier"] for query in plan["queries"]] == [run.noise_multiplier] * 2
    assert run.classes == len(recorded["config"]["data"]["labels"])
    assert run.parts == plan["queries"][0]["parts"]
    assert run.per_class == plan["records"] / run.classes
    assert run.accuracy == pytest.approx(recorded["evaluation"]["scores"]["cnn"]["mean"], abs=5e-5)
    assert is_learnt(run.accuracy, run.classes) == (run is not HARDER)


@pytest.mark.parametrize("run", PORTRAYED, ids=lambda run: run.manifest)
def test_portraits_that_were_measured_are_told_what_came_of_them(run: Portrayed) -> None:
    assert (
        outlook_of_portraits(run.per_class * run.classes, run.noise_multiplier, run.parts, run.classes).verdict
        is Verdict.LEARNT
    )


@pytest.mark.parametrize(
    ("records", "noise", "parts", "verdict"),
    [
        (60_000, 9.0, 16, Verdict.LEARNT),
        (60_000, 9.5, 16, Verdict.UNKNOWN),  # noisier than all that learnt
        (60_000, 5.0, 256, Verdict.UNKNOWN),  # so many parts learnt with less noise alone
        (4_000, 5.0, 1, Verdict.LEARNT),
        (4_000, 5.0, 16, Verdict.NO),  # letters failed with less noise and one part
        (3_990, 0.8, 1, Verdict.NO),
        (3_990, 0.5, 1, Verdict.UNKNOWN),
        (20_000, 0.5, 16, Verdict.UNKNOWN),
    ],
)
def test_easier_portraits_than_those_that_learnt_harder_than_those_that_did_not_or_unknown(
    records: int, noise: float, parts: int, verdict: Verdict
) -> None:
    found = outlook_of_portraits(records, noise, parts, 10)
    assert found.verdict is verdict
    assert bool(found.alternatives) == (verdict is Verdict.NO)


def test_that_images_were_harder_is_said_where_it_rests_on_few_of_them() -> None:
    assert "as were letters" in outlook_of_portraits(4_000, 1.0, 1, 10).reason
    assert "letters" not in outlook_of_portraits(60_000, 1.0, 1, 10).reason


def test_alternatives_to_portraits_tune_nothing() -> None:
    found = of_rehearsal(0.2, Start.PORTRAITS, 10, tunes=False)
    assert found.verdict is Verdict.NO
    assert found.reason.endswith("images decide as well: 79.1% of digits where it was 41.6% of letters")
    assert not any(word in other for word in ("trainable", "batch", "method") for other in found.alternatives)
    assert any("method: portraits" in other for other in alternatives(Start.NOTHING, 10))
    assert not any("method: portraits" in other for other in alternatives(Start.NOTHING, 0))
