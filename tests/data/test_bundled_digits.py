"""The handwritten digits that ship with the package, and the folders they are written to."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpldm.data.bundled import bundled_digits, write_digits
from dpldm.data.ingest import ingest
from dpldm.data.preprocessing import Preprocessing
from dpldm.data.readers import open_source


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return bundled_digits()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_digits(tmp_path_factory.mktemp("digits") / "set")


def test_five_thousand_distinct_digits(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    assert (images.shape, images.dtype) == ((5000, 28, 28, 1), np.uint8)
    assert len(np.unique(images.reshape(5000, -1), axis=0)) == 5000
    assert np.bincount(labels).tolist() == [500] * 10
    assert labels.dtype == np.int64


def test_they_are_framed_and_white_on_black(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, _ = digits
    frame = np.ones((28, 28), bool)
    frame[4:24, 4:24] = False
    assert np.all(images[:, frame] == 0)
    assert np.all(images.max((1, 2, 3)) > 100), "no cell is empty"
    assert np.all(images.mean((1, 2, 3)) < 128)


def test_labels_are_those_of_the_writing(digits: tuple[np.ndarray, np.ndarray]) -> None:
    """A nearest-mean classifier of one half recognises the other: cut or labelled wrongly, it could not."""
    images, labels = digits
    flat = images.reshape(5000, -1).astype(np.float64)
    half = np.arange(5000) % 2 == 0
    means = np.stack([flat[half & (labels == k)].mean(0) for k in range(10)])
    distances = ((flat[~half][:, None] - means) ** 2).sum(2)
    assert np.mean(distances.argmin(1) == labels[~half]) > 0.75


def test_two_folders_share_no_digit_and_lose_none(
    folders: tuple[Path, Path], digits: tuple[np.ndarray, np.ndarray]
) -> None:
    private, test = folders
    assert (private.name, test.name) == ("private", "test")
    seen = []
    for folder, per_class in ((private, 400), (test, 100)):
        source = open_source(folder)
        names = [str(k) for k in range(10)]
        read = ingest(source, Preprocessing(image_size=28, channels=1), names)
        assert not read.null.any()
        assert np.bincount(read.labels).tolist() == [per_class] * 10
        seen.append(read.pixels)
    images, _ = digits
    together = np.concatenate(seen).reshape(5000, -1)
    assert {row.tobytes() for row in together} == {row.tobytes() for row in images.reshape(5000, -1)}


def test_a_folder_is_what_a_user_would_have(folders: tuple[Path, Path]) -> None:
    private, _ = folders
    assert sorted(path.name for path in private.iterdir()) == [*map(str, range(10)), "README.md", "metadata.csv"]
    with (private / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4000
    assert all(row["file_name"].split("/")[0] == row["label"] for row in rows)
    with Image.open(private / rows[0]["file_name"]) as image:
        assert (image.size, image.mode) == ((28, 28), "L")
    assert "public benchmark" in (private / "README.md").read_text()
