"""The results page is what its manifests say, and published figures stand only beside numbers of their own protocol."""

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dpldm.reproduction.comparison import comparison, costs_of, ours
from dpldm.reproduction.figures import SOURCES, published_figures
from dpldm.reproduction.manifest import config_hash, data_fingerprint, shown
from dpldm.reproduction.page import results_page
from dpldm.reproduction.rows import PAIRS, row_of

RESULTS = Path(__file__).parents[2] / "results"
EPSILONS = {1, 5, 10}


@pytest.fixture
def manifest() -> dict[str, Any]:
    """A real one: full protocol, EfficientNet's distances."""
    found: dict[str, Any] = json.loads((RESULTS / "fashion-eps10.json").read_text())
    return found | {"row": "fashion-mnist/eps10", "scale": "paper"}


def test_the_committed_page_is_the_one_that_the_manifests_make() -> None:
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == results_page(RESULTS), "run python tools/results.py"


def test_every_manifest_is_on_the_page_with_what_made_it() -> None:
    page = results_page(RESULTS)
    runs = [path for path in RESULTS.glob("*.json") if "plan" in json.loads(path.read_text())]
    assert len(runs) >= 7
    for path in runs:
        run = json.loads(path.read_text())
        assert f"]({path.name})" in page
        assert config_hash(run) in page
        assert run["commit"][:7] in page
        found = run["evaluation"]
        utility = found.get("utility", found) or {"scores": {}}  # a baseline's lie beside its facts; captions have none
        for score in utility["scores"].values():
            assert f"{100 * score['mean']:.1f}" in page


def test_what_was_measured_before_tuning_is_on_the_page() -> None:
    page, before = results_page(RESULTS), list(RESULTS.glob("*-untuned.json"))
    assert before
    for path in before:
        value = json.loads(path.read_text())["distances"][0]["value"]
        assert f"]({path.name})" in page
        assert f"KID {value:.4g}" in page


def test_an_accuracy_that_one_answer_would_have_is_marked(manifest: dict[str, Any], tmp_path: Path) -> None:
    for guessing, marked in ((0.1, False), (0.64, True)):
        utility = manifest["evaluation"]["utility"] | {"guessing": guessing}
        (tmp_path / "one.json").write_text(
            json.dumps(manifest | {"evaluation": manifest["evaluation"] | {"utility": utility}})
        )
        assert ("(one answer: 64.0)" in results_page(tmp_path)) == marked


def test_a_number_without_a_manifest_is_on_no_page(tmp_path: Path) -> None:
    """The page of an empty folder shows no number of ours."""
    page = results_page(tmp_path)
    assert "**ours**" not in page
    assert "DP-LDM" in page


def test_a_smaller_run_has_no_number_beside_published_ones(manifest: dict[str, Any], tmp_path: Path) -> None:
    shutil.copy(RESULTS / "benchmark-looks.jsonl", tmp_path)
    for scale, expected in (("paper", 1), ("laptop", 0), ("smoke", 0)):
        (tmp_path / "one.json").write_text(json.dumps(manifest | {"scale": scale}))
        page = results_page(tmp_path)
        assert page.count("**ours**") == expected
        assert page.count("**80.6**") == expected
        assert "cnn 80.6" in page, "as a number of its own it is shown"
        assert ours(manifest | {"scale": scale}, "papers-cnn") == ("80.6" if expected else "-")


def test_only_the_protocol_of_a_figure_may_stand_beside_it(manifest: dict[str, Any]) -> None:
    """Not a screen, not another network's features, not DPImageBench's choice of the best."""
    assert [name for name in published_figures().protocols if ours(manifest, name) != "-"] == ["papers-cnn"]
    screen = copy.deepcopy(manifest)
    screen["evaluation"]["utility"]["protocol"] = "screen"
    assert ours(screen, "papers-cnn") == "-"
    seen = copy.deepcopy(manifest)
    seen["evaluation"]["distances"][1]["text"] = "FID (inception-v3) = 31.4 (10,000 real, 10,000 synthetic images)"
    seen["evaluation"]["distances"][1]["value"] = 31.4
    assert ours(seen, "fid") == "31.4"


def test_what_is_printed_of_a_row(manifest: dict[str, Any]) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    costs = manifest | {
        "pretraining": [{"stage": "pretrain", "seconds": 7200, "peak_bytes": 3_000_000_000}],
        "seconds": [{"stage": "finetune", "seconds": 3600, "peak_bytes": 1}, {"stage": "finetune", "seconds": 1800}],
    }
    console.print(comparison(costs))
    text = console.export_text()
    line = next(line for line in text.splitlines() if "CNN, %" in line and "DPDM" in line)
    assert "86.2" in line
    assert "80.6" in line
    assert "read in the paper" in line
    for expected in ("fine-tuning", "1.5", "pre-training", "3.0 GB", "15, and 192 of pre-training", "500", "1,250"):
        assert expected in text
    assert costs_of(costs)["pre-training"] == pytest.approx(2)
    console.print(comparison(costs | {"scale": "laptop"}))
    text = console.export_text()
    assert "80.6" not in text
    assert "at scale laptop, so it has no number here" in text


# --- the table of figures ---------------------------------------------------------------------------------------------


def test_every_figure_is_of_a_known_pair_protocol_and_source() -> None:
    known = published_figures()
    assert len(known.figures) > 50
    for figure in known.figures:
        assert figure.pair in PAIRS
        assert figure.protocol in known.protocols
        assert figure.source in SOURCES
        assert figure.reference
        assert set(figure.values) <= EPSILONS
    assert {cost.method for cost in known.costs} >= {"DP-LDM", "DP-API (PE)", "DP-Diffusion"}
    once = [(f.pair, f.method, f.protocol, e) for f in known.figures for e in f.values]
    assert len(once) == len(set(once)), "no figure stands twice"


def test_values_are_written_as_tables_print_them() -> None:
    by_method = {(f.method, f.protocol): f for f in published_figures().of("mnist")}
    assert by_method["PrivImage", "dpimagebench"].text(1) == "94.0"
    assert by_method["DPDM", "fid"].text(10) == "5.01"


# --- manifests --------------------------------------------------------------------------------------------------------


def test_a_manifest_has_no_place_of_this_machine(tmp_path: Path) -> None:
    for name in ("mnist/eps10", "celebahq-text/eps1"):
        row = row_of(name, "paper", tmp_path / "data", tmp_path / "made")
        assert str(tmp_path) not in json.dumps(shown(row.run))


def test_no_fingerprint_of_private_images(tmp_path: Path) -> None:
    row = row_of("mnist/eps10", "smoke", tmp_path, tmp_path)
    private = row.run.model_copy(update={"privacy": row.run.privacy.model_copy(update={"public_benchmark": False})})
    with pytest.raises(ValueError, match="only published sets"):
        data_fingerprint(private)
