"""`dpldm public check`: what of a published set is there, and the page that says the same."""

from dataclasses import replace
from pathlib import Path

import pytest

import miniatures
from dpldm.cli import main
from dpldm.data import published as module
from dpldm.data.presence import check
from dpldm.data.published import SETS, markdown, published
from dpldm.errors import UserError
from miniatures import put

ROOT = Path(__file__).parents[2]
MADE = {
    "mnist": (miniatures.mnist, {"train": 12, "test": 4}),
    "fashion-mnist": (miniatures.mnist, {"train": 12, "test": 4}),
    "emnist-letters": (miniatures.emnist_letters, {"train": 12, "test": 4}),
    "cifar10": (miniatures.cifar10, {"train": 20, "test": 4}),
    "cifar100": (miniatures.cifar100, {"train": 12, "test": 4}),
    "svhn": (miniatures.svhn, {"train": 12, "test": 4}),
    "celeba": (miniatures.celeba, {"train": 12, "val": 1, "test": 3}),
    "celebahq": (miniatures.celebahq, {"train": 12, "test": 2}),
    "camelyon17": (miniatures.camelyon17, {"train": 14, "val": 1, "test": 2}),
    "imagenet-batches": (miniatures.imagenet_batches, {"train": 20, "val": 2}),
    "imagenet": (miniatures.imagenet_folders, {"train": 12, "val": 4}),
    "eurosat": (miniatures.eurosat, {"train": 20}),
    "webdataset": (miniatures.webdataset, {}),
    "huggingface": (miniatures.huggingface, {}),
    "dicom": (miniatures.dicom, {}),
}


def test_every_set_is_tried() -> None:
    assert MADE.keys() == SETS.keys()


@pytest.mark.parametrize("name", MADE)
def test_a_complete_set_is_found_complete(name: str, tmp_path: Path) -> None:
    make, splits = MADE[name]
    assert set(SETS[name].splits) == set(splits)
    findings = check(replace(SETS[name], splits=splits), make(tmp_path / "set"))
    assert findings.complete, (findings.missing, findings.problems)
    assert len(findings.there) == len(SETS[name].parts)
    assert len(findings.opened) == max(1, len(splits))
    counted = [f"{splits[split]:,} images" for split in splits if split not in SETS[name].large]
    assert all(
        count in line for count, line in zip(counted, [x for x in findings.opened if "large" not in x], strict=False)
    )


@pytest.mark.parametrize("name", MADE)
def test_an_empty_folder_lacks_everything_but_is_no_defect(name: str, tmp_path: Path) -> None:
    findings = check(SETS[name], tmp_path)
    assert findings.missing == [part.what for part in SETS[name].parts if part.needed]
    assert not findings.there
    assert not findings.complete


def test_numbers_other_than_the_published_ones_are_told(tmp_path: Path) -> None:
    findings = check(SETS["cifar10"], miniatures.cifar10(tmp_path / "set"))
    assert findings.problems == [
        "The split train has 20 images; published are 50,000.",
        "The split test has 4 images; published are 10,000.",
    ]


def test_images_that_a_list_names_are_counted_if_missing(tmp_path: Path) -> None:
    root = miniatures.celeba(tmp_path / "set")
    for name in ("000001.jpg", "000002.jpg"):
        (root / "img_align_celeba" / name).unlink()
    findings = check(replace(SETS["celeba"], splits={"train": 12}), root)
    assert findings.problems == ["2 of the 12 images of the split train are not there."]


def test_a_folder_of_pictures_is_no_dicom(tmp_path: Path) -> None:
    put(tmp_path / "a.png", miniatures.png(1))
    assert not check(SETS["dicom"], tmp_path).complete


def test_of_a_format_no_number_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The images may be private."""
    root = miniatures.dicom(tmp_path / "set")
    assert main(["public", "check", "dicom", str(root)]) == 0
    text = capsys.readouterr().out.replace(str(root), "")
    assert "recognised as DICOM folder" in text
    assert "12" not in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["public", "check"]) == 0
    assert all(name in capsys.readouterr().out for name in [*SETS][:1])
    assert main(["public", "check", "svhn"]) == 0
    text = capsys.readouterr().out
    for part in (SETS["svhn"].origin, SETS["svhn"].licence, "train 73,257", "train_32x32.mat"):
        assert part in text
    root = miniatures.svhn(tmp_path / "set")
    monkeypatch.setitem(module.SETS, "svhn", replace(SETS["svhn"], splits={"train": 12, "test": 4}))
    assert main(["public", "check", "svhn", str(root)]) == 0
    assert "train: 12 images in 10 classes" in capsys.readouterr().out
    (root / "test_32x32.mat").unlink()
    assert main(["public", "check", "svhn", str(root)]) == 1
    text = capsys.readouterr().out
    assert "MISSING   test_32x32.mat" in text
    assert "train: 12 images" in text, "what is there is still looked at"
    assert main(["public", "check", "svhn", str(root / "nothing")]) == 2
    assert main(["public", "check", "nothing"]) == 2


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="choose one of mnist, fashion-mnist"):
        published("imagenette")


def test_the_page_has_the_table_as_it_is() -> None:
    """After a change: put `markdown()` in its place."""
    assert markdown() in (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
