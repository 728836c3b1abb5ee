"""The upper bound: real images to learn from, real ones to be tested on, and only if they are published."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dpldm.baselines import real as module
from dpldm.baselines.real import real
from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.data.public.collection import PublicSet
from dpldm.evaluation.utility import FULL, Protocol, quick
from dpldm.run import Run
from tiny_runs import write_images


@pytest.fixture
def config(raw: dict[str, Any], tmp_path: Path) -> RunConfig:
    raw["data"]["test_path"] = str(write_images(tmp_path / "test", seed=1))
    raw["privacy"]["public_benchmark"] = True
    return RunConfig.model_validate(raw)


def test_real_images_train_and_real_images_test(config: RunConfig) -> None:
    (config.data.path / "dark" / "000.png").write_bytes(b"unreadable")
    (config.data.test_path / "light" / "001.png").write_bytes(b"unreadable")
    epochs: list[tuple[str, int, int]] = []
    found = real(config, lambda *progress: epochs.append(progress))
    assert (found.facts["train"], found.facts["validation"], found.test) == (33, 6, 39)
    assert epochs[-1] == ("cnn, seed 0, epoch", 5, 5)
    score = found.scores["cnn"]
    assert score.mean * 39 == pytest.approx(round(score.mean * 39)), "a share of 39 test images"
    stored = json.loads((Run(config).private / "baselines" / "real.json").read_text())
    assert stored["status"] == "public benchmark"
    assert stored["what"].endswith("NOT PRIVATE")
    assert not Run(config).ledger.exists(), "there is nothing to account for"


def test_it_learns_from_the_training_images_alone(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def spy(*given: Any, **settings: Any) -> Any:
        seen.append((given, settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_on_synthetic", spy)
    with pytest.raises(KeyboardInterrupt):
        real(config)
    (train, labels, test, _), settings = seen[0]
    assert len(train) == len(test) == 40
    assert not np.array_equal(train, test)
    assert train[labels == 0].mean() < train[labels == 1].mean()
    assert settings["protocol"].kinds == ("cnn",)


@pytest.mark.parametrize(
    ("protocol", "images", "train", "validation"),
    [(FULL, 60_000, 50_000, 10_000), (FULL, 4_000, 3_334, 666), (FULL, 70_000, 50_000, 10_000), (quick(40), 40, 34, 6)],
)
def test_the_protocol_is_the_synthetic_sets_with_what_real_images_there_are(
    protocol: Protocol, images: int, train: int, validation: int
) -> None:
    found = module._with_real_images(protocol, images)
    assert (found.train, found.validation, found.epochs) == (train, validation, protocol.epochs)
    assert found.kinds == ("cnn",)


def test_a_stand_in_takes_the_place_of_private_images(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw["data"]["path"] = "/nowhere/private"
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 1), dtype=np.uint8)
    nameless = np.full(60, "x")
    PublicSet(images, np.arange(60) % 2, ("a", "b"), nameless, nameless, {}).save(tmp_path / "public")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    assert main(["baseline", "real", "--config", str(path), "--stand-in", str(tmp_path / "public")]) == 0
    shown = capsys.readouterr().out
    assert "Rehearsal on public images: run 'tiny-rehearsal'" in shown
    assert "baseline real (public benchmark)" in shown
    assert "NOT PRIVATE" in shown
    assert (tmp_path / "runs" / "tiny-rehearsal" / "private" / "baselines" / "real.json").exists()
    assert not (tmp_path / "runs" / "tiny").exists()
    assert main(["baseline", "real", "--config", str(path), "--stand-in"]) == 0, "held-out letters"
    assert main(["baseline", "real", "--config", str(path)]) == 2
    assert "without any privacy" in capsys.readouterr().err
