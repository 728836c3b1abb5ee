"""Every row from sets in miniature, in their true formats, to its manifest; resumed; and what is refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import compvis_models
import miniatures
from dpldm.cli import main
from dpldm.errors import UserError
from dpldm.evaluation import evaluate
from dpldm.reproduction import stages
from dpldm.reproduction.rows import PAIRS, row_names, row_of
from dpldm.train.begun import without_places
from tiny_runs import Means


def checkpoint(data: Path, name: str, kind: str) -> None:
    """A small model in the published one's format: a pickle, with its YAML beside it."""
    settings = compvis_models.settings(kind)
    settings["model"]["params"]["image_size"] = 32
    (data / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    torch.save({"state_dict": compvis_models.checkpoint(kind)}, data / f"{name}.ckpt")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sets and checkpoints that rows read."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("data")
    miniatures.write_all(folder)
    checkpoint(folder, "cin256-v2", "classes")
    checkpoint(folder, "txt2img-1.4B", "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "she", "he", "is", "has"]
    assert len(words) == compvis_models.TOKENS["bert"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    tokenizer.save_pretrained(folder / "bert-base-uncased")
    return folder


@pytest.fixture(autouse=True)
def quick_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "extractor_of", lambda config: Means())


def reproduce(row: str, data: Path, output: Path, *more: str) -> int:
    return main(["reproduce", row, "--scale", "smoke", "--data", str(data), "--output", str(output), *more])


@pytest.mark.parametrize(
    "row", [row if row == "mnist/eps1" else pytest.param(row, marks=pytest.mark.slow) for row in row_names()]
)
def test_every_row_goes_from_published_sets_to_a_manifest(
    row: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in data.rglob("*"))
    assert reproduce(row, data, tmp_path) == 0
    shown = capsys.readouterr().out
    run = tmp_path / "smoke" / "runs" / row.replace("/", "-")
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["row"], manifest["scale"]) == (row, "smoke")
    assert manifest["plan"]["epsilon"] == int(row.rpartition("/eps")[2])
    assert len(manifest["evaluation"]["distances"]) > 0
    assert (manifest["evaluation"]["utility"] is None) == row.startswith(("celeba32", "celeba64", "celebahq-text"))
    assert {line["stage"] for line in manifest["seconds"]} >= {"finetune", "sample", "evaluate"}
    assert set(manifest["data_sha256"]) == {"train", "test"}
    assert len(np.load(next((run / "synthetic").glob("batch-*.npz")))["x"]) == 12
    assert "published figures; this run was at scale smoke" in shown
    assert manifest["command"] == f"dpldm reproduce {row} --scale smoke"
    assert str(data) not in (run / "manifest.json").read_text()
    assert sorted(path for path in data.rglob("*")) == before, "published sets are only read"
    made = [] if row.startswith("fashion") else ["convert" if row.startswith("celebahq") else "pretrain"]
    assert [line["stage"] for line in manifest["pretraining"]] == made


def test_variants_are_rows_of_their_own(data: Path, tmp_path: Path) -> None:
    row = row_of("cifar10/eps10+lora-8", "smoke", data, tmp_path)
    assert (row.run.name, row.run.trainable, row.pair) == ("cifar10-eps10-lora-8", "lora-8", "cifar10")


# --- resuming --------------------------------------------------------------------------------------------------------


def test_a_row_resumes_stage_by_stage(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in pre-training: what was done stays, and the same call ends it. Once finished it does nothing."""
    whole, calls = stages.pretrain, list[str]()

    def broken(recipe: Any) -> Iterator[Any]:
        steps = whole(recipe)
        yield next(steps)
        steps.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "pretrain", broken)
    assert reproduce("mnist/eps1", data, tmp_path) == 130
    public = tmp_path / "smoke" / "public" / "emnist-letters" / "images.npz"
    made = public.stat().st_mtime_ns
    monkeypatch.setattr(stages, "pretrain", whole)
    assert reproduce("mnist/eps1", data, tmp_path) == 0
    assert public.stat().st_mtime_ns == made
    manifest = tmp_path / "smoke" / "runs" / "mnist-eps1" / "manifest.json"
    assert [line["stage"] for line in json.loads(manifest.read_text())["pretraining"]] == ["pretrain", "pretrain"]
    monkeypatch.setattr(stages, "pretrain", lambda recipe: calls.append("pretrain"))
    monkeypatch.setattr(stages, "make_from_folder", lambda *_, **__: calls.append("public"))
    kept = manifest.read_bytes()
    assert reproduce("mnist/eps1", data, tmp_path) == 0
    assert (manifest.read_bytes(), calls) == (kept, [])
    other = row_of("mnist/eps5", "smoke", data, tmp_path)
    assert stages.is_made(other), "another row takes the backbone that there is"
    assert list(stages.make_backbone(other)) == calls == []


def test_a_backbone_of_another_recipe_is_not_taken(data: Path, tmp_path: Path) -> None:
    """Made by an earlier version of the row, or changed since."""
    row = row_of("mnist/eps1", "smoke", data, tmp_path)
    assert row.pretraining is not None
    row.backbone.mkdir(parents=True)
    card = {"recipe": without_places(row.pretraining)}
    (row.backbone / "backbone.json").write_text(json.dumps(card))
    assert list(stages.make_backbone(row)) == []
    card["recipe"]["diffusion"]["steps"] += 1
    (row.backbone / "backbone.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"made with other settings \(diffusion\.steps\) than mnist/eps1 has: move it"):
        list(stages.make_backbone(row))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "gone", "told"),
    [
        ("mnist/eps10", "mnist", "MNIST, from http"),
        ("mnist/eps10", "emnist-letters/emnist-letters-mapping.txt", "emnist-letters-mapping.txt"),
        ("cifar10/eps10", "cifar10/cifar-10-batches-py/data_batch_3", "data_batch_3"),
        ("celeba64/eps1", "celeba/list_eval_partition.txt", "list_eval_partition.txt"),
        ("camelyon17/eps1", "camelyon17/camelyon17_v1.0/patches", "patches/"),
        ("celebahq-class/eps1", "cin256-v2.ckpt", "CompVis' cin256-v2.ckpt"),
    ],
)
def test_partial_sets_are_refused_before_anything_is_made(
    row: str, gone: str, told: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / "data"
    shutil.copytree(data, partial)
    missing = partial / gone
    shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
    assert reproduce(row, partial, tmp_path / "made") == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_miniature_is_no_set_at_paper_scale(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(data), "--output", str(tmp_path / "made")]
    assert main(["reproduce", "mnist/eps1", "--scale", "paper", *words]) == 2
    told = capsys.readouterr().err
    assert "has 12 images; published are 60,000" in told
    assert "weights of the Inception network" in told
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mnist/eps3", "--scale", "smoke"], "There is no row 'mnist/eps3'"),
        (["mnist/eps1"], "Say how much of the row"),
        (["celebahq-text/eps1", "--scale", "laptop"], "too much for a laptop"),
        (["mnist/eps1", "--scale", "smoke", "--privacy.epsilon", "3"], "only settings of runtime"),
        (["mnist/eps1+nonsense", "--scale", "smoke"], "lacks what it reads"),
    ],
)
def test_mistakes_end_in_a_sentence(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words, "--data", str(tmp_path / "data"), "--output", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err


def test_without_a_row_all_are_listed_with_what_they_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in row_names())
    assert {name.partition("/")[0] for name in row_names()} == set(PAIRS)
    assert "data/emnist-letters" in shown
    assert "data/cin256-v2.ckpt" in shown
