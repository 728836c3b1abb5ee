"""The benchmark runs, compares only equal sums, and its report says what its results say."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial in this process, whose memory is no arm's: see the test of a child."""
    directory = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.syspath_prepend(str(BENCHMARKS))
        import measure
        import run

        patch.setattr(measure, "memory_in_a_child", lambda case, arm, quick: measure.memory_here(case.name, arm))
        run.main(["--quick", "--output", str(directory)])
        run.main(["--quick", "--profile", "--output", str(directory)])
    return directory


@pytest.fixture(scope="module")
def results(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


def test_every_arm_was_checked_before_it_was_timed(results: dict[str, Any]) -> None:
    first = results["passes"][0]["arms"]
    assert {"non-private", "dpldm", "Opacus hooks", "Opacus ghost", "vmap"} <= set(first)
    for result in results["passes"]:
        for name, arm in result["arms"].items():
            assert (len(arm["seconds"]) > 0) == (name == "non-private, all weights" or arm["error"] <= 1e-3), name
        assert {"non-private", "dpldm"} <= {name for name, arm in result["arms"].items() if arm["seconds"]}


def test_machine_facts_name_no_host(results: dict[str, Any]) -> None:
    assert set(results["machine"]) == {"cores", "threads", "architecture", "load_at_start", "date", "versions"}


def test_report_and_picture_are_written_and_say_that_it_was_a_trial(output: Path) -> None:
    text = (output / "README.md").read_text()
    assert "these times say nothing" in text
    assert "| tiny UNet, 4x4 latents: whole update | at most 1.15 |" in text
    assert (output / "ratios.svg").read_text().startswith("<?xml")


def test_parts_of_a_pass_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch, results: dict[str, Any]) -> None:
    assert {"non-private", "frozen", "to the clip factors", "dpldm"} == set(results["profile"]["passes"][0]["seconds"])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report

    seconds = {"non-private": [1.0, 2.0], "frozen": [0.9, 1.8], "to the clip factors": [1.0, 2.0], "dpldm": [1.25, 2.5]}
    lines = report.profile_table({**results["profile"], "passes": [{"case": "4M UNet", "seconds": seconds}]})
    assert lines[-1] == "| 4M UNet | 0.90 | 0.10 | 0.25 | 1.25 |"


@pytest.mark.slow
def test_memory_is_that_of_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure
    from cases import QUICK_CASES

    weights = sum(p.numel() for p in QUICK_CASES[0].network().parameters())
    taken = measure.memory_in_a_child(QUICK_CASES[0], "dpldm", quick=True)
    assert taken is None or 4 * weights < taken < 2**30


def test_targets_are_judged_by_medians_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report

    def arms(**seconds: list[float]) -> dict[str, Any]:
        return {
            name.replace("_", " "): {"seconds": s, "error": 0.0, "memory": 100 if name == "dpldm" else 80}
            for name, s in seconds.items()
        }

    # Rounds that were slow for everybody change no ratio.
    passes = arms(dpldm=[1.05, 10.5, 1.2], Opacus_hooks=[2.0, 30.0, 2.0], Opacus_ghost=[3.0, 20.0, 3.0])
    passes["non-private"] = {"seconds": [1.0, 10.0, 1.0], "error": 0.0, "memory": 80}
    result = {"case": "4M UNet", "draws": 1, "arms": passes}
    rows = report.targets({"passes": [result], "whole_steps": []})
    assert [(text, round(value, 3), met) for text, _, value, met in rows] == [
        ("4M UNet: time", 1.05, True),
        ("4M UNet: memory", 1.25, False),
        ("4M UNet: fastest Opacus to dpldm", 1.905, True),
    ]
