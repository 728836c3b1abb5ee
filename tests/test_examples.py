"""The scripts in examples/ do what they say."""

import csv
import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dpldm import load_backbone
from dpldm.config import RunConfig, SamplingConfig
from dpldm.loading import load_config
from dpldm.releasing import release
from dpldm.run import plan_of
from dpldm.sampling import Sampler
from tiny_runs import cheap_features, write_images

EXAMPLES = Path(__file__).parents[1] / "examples"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a script with these words behind it, and gives its names."""
    monkeypatch.chdir(tmp_path)

    def script(name: str, *words: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return script


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_has_a_plan_that_keeps_its_promise(path: Path) -> None:
    config = load_config(RunConfig, path)
    plan = plan_of(config)
    assert 0.95 * config.privacy.epsilon < plan.stated_epsilon() <= config.privacy.epsilon
    assert plan.delta == config.privacy.delta


@pytest.mark.parametrize(
    ("recipe", "example"),
    [
        ("fashion-mnist/eps10", "fashion-mnist-diffusion.yaml"),
        ("fashion-mnist/eps1", "fashion-mnist-diffusion-epsilon-1.yaml"),
    ],
)
def test_recipes_of_garments_are_the_examples(recipe: str, example: str) -> None:
    ours, theirs = load_config(RunConfig, Path(recipe)), load_config(RunConfig, EXAMPLES / example)
    assert ours.privacy == theirs.privacy
    assert ours.optimizer == theirs.optimizer


def test_dpimagebench_keeps_its_part_of_the_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records, delta = 55_000, load_config(RunConfig, EXAMPLES / "fashion-mnist-dpimagebench.yaml").privacy.delta
    assert delta == pytest.approx(1 / (records * math.log(records)), rel=1e-5)
    pixels, labels = np.arange(30, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8), np.arange(30) % 10
    arrays = {
        f"{part}_{kind}": array
        for part in ("train", "test")
        for kind, array in (("images", pixels), ("labels", labels))
    }
    np.savez(tmp_path / "set.npz", **arrays)
    words = ["dpimagebench.py", str(tmp_path / "set.npz"), str(tmp_path / "part.npz"), "--count", "25"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(EXAMPLES.parent / "tools" / "dpimagebench.py"), run_name="__main__")
    with np.load(tmp_path / "part.npz") as part:
        kept = part["train_images"][:, 0, 0]
        first, _ = torch.utils.data.random_split(range(30), [25, 5], torch.Generator().manual_seed(0))
        assert kept.tolist() == list(first)
        assert part["train_labels"].tolist() == (kept % 10).tolist()
        assert len(part["test_labels"]) == 30


def test_hold_out_moves_whole_persons(run: Run, tmp_path: Path) -> None:
    folder, held_out = write_images(tmp_path / "scans"), tmp_path / "held-out"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    lines = [f"{name},P{row // 2}" for row, name in enumerate(names)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,patient", *lines, ""]))
    names_of = run("hold_out.py", folder, held_out, "--group-column", "patient", "--share", "0.4")
    kept, moved = rows_of(folder), rows_of(held_out)
    assert kept
    assert moved
    assert sorted(row["file_name"] for row in kept + moved) == names
    assert not {row["patient"] for row in kept} & {row["patient"] for row in moved}
    for place, rows in ((folder, kept), (held_out, moved)):
        assert sorted(path.relative_to(place).as_posix() for path in place.rglob("*.png")) == sorted(
            row["file_name"] for row in rows
        )
    shares = [names_of["is_held_out"](f"person {number}", 0.4) for number in range(2000)]
    assert 0.35 < np.mean(shares) < 0.45


def test_tune_folder_goes_from_a_config_to_a_verified_release(
    run: Run, raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(SystemExit, match="instead:"):  # much noise: the plan is not expected to learn
        run("tune_folder.py", "run.yaml")
    assert not (tmp_path / "runs" / "tiny").exists()
    run("tune_folder.py", "run.yaml", "--anyway", "--epsilon", "0.5")
    shown = capsys.readouterr().out
    assert "update 2 of 2, epsilon 0." in shown
    assert "release: 0 failed checks" in shown


def test_draw_draws_with_diffusers_alone_what_dpldm_draws(run: Run, finished_copy: RunConfig, tmp_path: Path) -> None:
    model = release(finished_copy, "model") / "model"
    run("draw.py", model, "--label", 1, "--count", 3, "--steps", 4, "--seed", 5, "--output", "drawn.png")
    shown = np.asarray(Image.open(tmp_path / "drawn.png")).reshape(16, 3, 16).swapaxes(0, 1)
    backbone = load_backbone(str(model))
    sampler = Sampler(backbone, backbone.denoiser, SamplingConfig(steps=4), 16)
    expected = sampler(torch.full((3,), 1), torch.Generator().manual_seed(5))[..., 0]
    assert np.abs(shown.astype(int) - expected).max() <= 1
    assert expected.std() > 1


def test_measure_verifies_a_release_and_tests_it_on_real_images(
    run: Run,
    finished_copy: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cheap_features(monkeypatch)
    target, test = release(finished_copy), write_images(tmp_path / "test", seed=1)
    run("measure.py", target, test)
    shown = capsys.readouterr().out
    assert "The release is what it says." in shown
    assert "of real images recognised" in shown
    (target / "synthetic.npz").write_bytes(b"other images")
    with pytest.raises(SystemExit) as ended:
        run("measure.py", target, test)
    assert ended.value.code in (1, 3)
