"""`rehearse`: the same plan on public images, with a ledger of its own and no look at the private ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dpldm.cli import main
from dpldm.config import RunConfig, SamplingConfig
from dpldm.data.public.collection import PublicSet
from dpldm.errors import UserError
from dpldm.privacy.ledger import read_ledger
from dpldm.rehearsing import TEST_SHARE, rehearsal
from dpldm.run import Run, ledger_cap, plan_of
from tiny_runs import Means


def stand_in_set(directory: Path, *, count: int = 60, classes: int = 3, size: int = 16, channels: int = 1) -> Path:
    """Every image is its own number, in its pixels, so that it can be recognised."""
    images = np.zeros((count, size, size, channels), np.uint8)
    images[:, : size // 2] = np.arange(count).reshape(-1, 1, 1, 1)
    labels = np.arange(count) % classes
    names = tuple("abcdefgh"[:classes])
    made = PublicSet(images, labels, names, np.full(count, "family"), np.full(count, "name"), {"made": "by a test"})
    return made.save(directory)


@pytest.fixture
def config(raw: dict[str, Any]) -> RunConfig:
    raw["data"]["path"] = "/nowhere/private"
    raw["privacy"] |= {"cap": [2.0, 1e-2], "ledger": "/nowhere/private-ledger.jsonl"}
    return RunConfig.model_validate(raw)


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    return stand_in_set(tmp_path / "public")


def arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return stored["x"], stored["y"]


def test_only_places_names_and_the_ledger_change(config: RunConfig, stand_in: Path) -> None:
    made = rehearsal(config, stand_in)
    assert "/nowhere" not in made.model_dump_json()
    assert made.name == "tiny-rehearsal"
    assert made.privacy.dataset_id == "rehearsal-tiny"
    assert made.privacy.public_benchmark
    assert ledger_cap(made) is None
    assert Run(made).ledger == Run(made).directory / "ledger.jsonl"
    assert made.data.labels == ("0", "1")
    for section in ("backbone", "trainable", "optimizer", "sampling", "evaluation", "runtime"):
        assert getattr(made, section) == getattr(config, section)
    constants = ("epsilon", "delta", "records", "expected_batch_size", "steps", "reserve_steps", "max_grad_norm")
    for key in (*constants, "draws_per_example"):
        assert getattr(made.privacy, key) == getattr(config.privacy, key)
    assert plan_of(made).noise_multiplier == plan_of(config).noise_multiplier
    assert RunConfig.model_validate(made.model_dump()) == made


def test_as_many_classes_and_records_as_declared_and_no_test_image_among_them(
    config: RunConfig, stand_in: Path
) -> None:
    made = rehearsal(config, stand_in)
    assert made.data.test_path is not None
    (train, y), (test, test_y) = arrays(made.data.path), arrays(made.data.test_path)
    assert (len(train), len(test)) == (40, int(40 * TEST_SHARE))
    assert set(y.tolist()) == set(test_y.tolist()) == {0, 1}
    seen, held_back = set(train[:, 0, 0, 0].tolist()), set(test[:, 0, 0, 0].tolist())
    assert seen.isdisjoint(held_back)
    assert seen | held_back == {i for i in range(60) if i % 3 < 2}, "32 images, 8 of them repeated, and 8 to test on"
    assert np.array_equal(train[:, 0, 0, 0] % 3, y)


def test_it_does_not_depend_on_when_it_is_called(config: RunConfig, stand_in: Path) -> None:
    first = arrays(rehearsal(config, stand_in).data.path)
    second = arrays(rehearsal(config, stand_in).data.path)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_it_resumes_and_is_replaced_when_anything_changed(config: RunConfig, stand_in: Path, tmp_path: Path) -> None:
    def kept(changed: RunConfig, public: Path) -> bool:
        trace = Run(rehearsal(config, stand_in)).directory / "trace"
        trace.touch()
        rehearsal(changed, public)
        return trace.exists()

    longer = config.privacy.model_copy(update={"steps": 3})
    assert kept(config, stand_in)
    assert kept(config.model_copy(update={"sampling": SamplingConfig(count=5)}), stand_in)
    assert not kept(config, stand_in_set(tmp_path / "half", count=30))
    assert not kept(config.model_copy(update={"trainable": "condition"}), stand_in)
    assert not kept(config.model_copy(update={"privacy": longer}), stand_in)


def test_a_run_with_the_name_of_a_rehearsal_is_left_alone(config: RunConfig, stand_in: Path) -> None:
    own = config.model_copy(update={"name": "tiny-rehearsal"})
    Run(own).create()
    with pytest.raises(UserError, match="is no rehearsal: move it away"):
        rehearsal(config, stand_in)
    assert Run(own).private.exists()


def test_without_classes_all_images_serve(config: RunConfig, stand_in: Path) -> None:
    plain = config.model_copy(update={"data": config.data.model_copy(update={"labels": ()})})
    made = rehearsal(plain, stand_in)
    assert made.data.labels == ()
    assert len(arrays(made.data.path)[0]) == 40


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (16, 3), (12, 3)])
def test_a_stand_in_of_another_size_is_made_to_fit(config: RunConfig, tmp_path: Path, size: int, channels: int) -> None:
    made = rehearsal(config, stand_in_set(tmp_path / "other", size=size, channels=channels))
    images, labels = arrays(made.data.path)
    assert images.shape == (40, 16, 16, 1)
    assert np.all(np.abs(images[:, 2, 8, 0].astype(int) % 3 - labels) <= 3)
    assert len(np.unique(images[:, 2, 8, 0])) > 20


def test_too_few_classes_are_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 1 classes, the config 2: give --stand-in another set"):
        rehearsal(config, stand_in_set(tmp_path / "one", classes=1))


def test_a_missing_stand_in_is_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a public set"):
        rehearsal(config, tmp_path / "nothing")


def test_the_longest_name_stays_a_name(config: RunConfig, stand_in: Path) -> None:
    made = rehearsal(config.model_copy(update={"name": "n" * 64}), stand_in)
    assert RunConfig.model_validate(made.model_dump()) == made
    assert made.name.endswith("-rehearsal")


def test_held_out_letters_are_the_default(config: RunConfig) -> None:
    made = rehearsal(config)
    images, labels = arrays(made.data.path)
    assert (images.shape, len(labels)) == ((40, 16, 16, 1), 40)
    assert images.std() > 20


def test_a_rehearsal_spends_nothing_of_the_private_budget(
    config: RunConfig,
    stand_in: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dpldm.evaluation.evaluate.extractor_of", lambda config: Means())
    test = stand_in_set(tmp_path / "larger", count=120)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["rehearse", "--config", str(path), "--stand-in", str(test)]) == 0
    shown = capsys.readouterr().out
    assert "Rehearsal on public images: run 'tiny-rehearsal'" in shown
    assert "accuracy" in shown, "these are public images"
    assert not Run(config).directory.exists()
    ledgers = list(config.runtime.output.rglob("*.jsonl.lock"))
    assert [ledger.parent.name for ledger in ledgers] == ["tiny-rehearsal"]
    assert read_ledger(ledgers[0].with_suffix(""))[0]["dataset_id"] == "rehearsal-tiny"
