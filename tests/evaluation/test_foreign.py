"""Sets of other tools, measured by our protocol; and ours, written for theirs."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.data.export import export_gen_npz
from dpldm.errors import UserError
from dpldm.evaluation import evaluate as module
from dpldm.evaluation.evaluate import evaluate_foreign
from dpldm.evaluation.foreign import foreign_set
from dpldm.run import Run
from dpldm.sampling import load_synthetic
from tiny_runs import Means, write_images


@pytest.fixture(autouse=True)
def cheap_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "extractor_of", lambda config: Means())


@pytest.fixture
def config(raw: dict[str, Any], tmp_path: Path) -> RunConfig:
    """Of a run that never was."""
    raw["data"]["test_path"] = str(write_images(tmp_path / "test", seed=1))
    return RunConfig.model_validate(raw)


def of_benchmark(path: Path, count: int = 60, size: int = 16, **arrays: Any) -> Path:
    """A gen.npz as DPImageBench writes it: dark images are class 0."""
    labels = np.arange(count) % 2
    x = np.clip(
        np.random.default_rng(2).normal(0.25 + 0.5 * labels[:, None, None, None], 0.1, (count, 1, size, size)), 0, 1
    )
    np.savez(path, **({"x": x.astype(np.float32), "y": labels} | arrays))
    return path


def test_a_gen_npz_is_read_as_what_it_is(config: RunConfig, tmp_path: Path) -> None:
    path = of_benchmark(tmp_path / "gen.npz")
    synthetic, foreign = foreign_set(config, path)
    with np.load(path) as arrays:
        assert np.array_equal(synthetic.images, np.rint(arrays["x"] * 255).transpose(0, 2, 3, 1))
        assert np.array_equal(synthetic.labels, arrays["y"])
    assert (foreign.images, foreign.unreadable) == (60, 0)


def test_it_is_measured_without_a_run_and_kept_inside(config: RunConfig, tmp_path: Path) -> None:
    path = of_benchmark(tmp_path / "gen.npz")
    result = evaluate_foreign(config, path)
    assert result.utility is not None
    assert result.utility.scores["cnn"].mean > 0.9, "dark and light are easily told apart"
    private = Run(config).private
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    (kept,) = private.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    stored = json.loads(kept.read_text())
    assert stored["status"] == "INTERNAL: reads private images, do not publish"
    assert stored["synthetic"] == {"path": str(path), "images": 60, "unreadable": 0, "digest": kept.stem.split("-")[1]}
    assert {folder.name for folder in Run(config).directory.iterdir()} == {"private"}


def test_swapped_classes_are_noticed(config: RunConfig, tmp_path: Path) -> None:
    """0 is the first of data.labels: joined otherwise, accuracy would turn around."""
    right = evaluate_foreign(config, of_benchmark(tmp_path / "a.npz"))
    wrong = evaluate_foreign(config, of_benchmark(tmp_path / "b.npz", y=1 - np.arange(60) % 2))
    assert right.utility is not None
    assert wrong.utility is not None
    assert right.utility.scores["cnn"].mean > 0.9 > 0.1 > wrong.utility.scores["cnn"].mean
    assert len(list(Run(config).private.iterdir())) == 2


def test_class_folders_and_other_sizes(config: RunConfig, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "made", seed=5)
    (folder / "dark" / "000.png").write_bytes(b"junk")
    synthetic, foreign = foreign_set(config, folder)
    assert (len(synthetic.labels), foreign.unreadable) == (39, 1)
    assert synthetic.images[synthetic.labels == 0].mean() < 100 < synthetic.images[synthetic.labels == 1].mean()
    assert "1 unreadable left out" in str(foreign)
    synthetic, _ = foreign_set(config, of_benchmark(tmp_path / "large.npz", size=20))
    assert synthetic.images.shape == (60, 16, 16, 1)


def test_a_name_that_is_a_number_is_the_name(config: RunConfig, tmp_path: Path) -> None:
    """Classes called 1 and 0: a set with these names means them, not their places."""
    numbers = config.model_copy(update={"data": config.data.model_copy(update={"labels": ("1", "0")})})
    synthetic, _ = foreign_set(numbers, of_benchmark(tmp_path / "gen.npz"))
    assert np.array_equal(synthetic.labels, 1 - np.arange(60) % 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.full(60, 2)}, "neither among data.labels nor numbers from 0 to 1"),
        ({"y": np.full(60, "grey")}, "neither among data.labels"),
        ({"x": np.full((60, 1, 16, 16), 2.0, np.float32)}, "Fewer than 10 images"),
    ],
)
def test_sets_that_do_not_fit_are_refused(
    arrays: dict[str, Any], message: str, config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_foreign(config, of_benchmark(tmp_path / "gen.npz", **arrays))
    assert not Run(config).directory.exists()


def test_too_few_images_for_the_protocol(config: RunConfig, tmp_path: Path) -> None:
    full = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"protocol": "dpimagebench"})})
    with pytest.raises(UserError, match="needs 60,000 synthetic images and there are 60"):
        evaluate_foreign(full, of_benchmark(tmp_path / "gen.npz"))


def test_ours_goes_out_and_comes_back(finished_copy: RunConfig, tmp_path: Path) -> None:
    drawn = load_synthetic(finished_copy)
    path = tmp_path / "there" / "gen.npz"
    export_gen_npz(path, drawn.images, drawn.labels)
    with np.load(path) as arrays:
        x, y = arrays["x"], arrays["y"]
    assert (x.dtype, x.shape) == (np.float32, (24, 1, 16, 16))
    assert x.min() >= 0
    assert x.max() <= 1
    assert np.array_equal(np.rint(x[:, 0] * 255), drawn.images[..., 0])
    assert y.tolist() == drawn.labels.tolist()
    back, _ = foreign_set(finished_copy, path)
    assert np.array_equal(back.images, drawn.images)
    assert np.array_equal(back.labels, drawn.labels)
    with pytest.raises(UserError, match=r"sample with data\.labels"):
        export_gen_npz(path, drawn.images, np.full(24, -1))


def test_the_commands(finished_copy: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = write_images(tmp_path / "test", seed=1)
    settings = finished_copy.model_dump(mode="json")
    settings["data"]["test_path"] = str(test)
    path, made = tmp_path / "run.yaml", tmp_path / "gen.npz"
    path.write_text(yaml.safe_dump(settings))
    assert main(["sample", "--config", str(path), "--gen-npz", str(made)]) == 0
    assert made.exists()
    shutil.rmtree(Run(finished_copy).synthetic)  # the run's own images are not looked at
    before = (Run(finished_copy).private / "evaluation.json").exists()
    assert main(["evaluate", "--config", str(path), "--synthetic", str(made)]) == 0
    text = capsys.readouterr().out
    assert f"synthetic set: {made} (24 images)" in text.replace("\n", "")
    assert "INTERNAL" in text
    assert (Run(finished_copy).private / "evaluation.json").exists() == before
    assert main(["evaluate", "--config", str(path), "--synthetic", str(tmp_path / "nothing")]) == 2
