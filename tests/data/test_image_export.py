"""Export: what is written is read back, by this package and by plain Pillow, whatever the labels are."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dpldm.data.export import export_images, export_npz
from dpldm.data.ingest import ingest
from dpldm.data.names import folder_names
from dpldm.data.preprocessing import Preprocessing
from dpldm.data.readers import open_source
from dpldm.errors import UserError

RNG = np.random.default_rng(6)
LABELS = np.array([1, 0, 2, 0, 1, 1, 2, 0, 0, 2, 1, 0], dtype=np.int64)
NAMES = ["T-shirt", "ankle boot", "bag/purse"]


def random_images(channels: int, count: int = 12) -> np.ndarray:
    return RNG.integers(0, 256, (count, 6, 6, channels), dtype=np.uint8)


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip_of_a_labelled_tree(tmp_path: Path, channels: int) -> None:
    images = random_images(channels)
    export_images(tmp_path / "out", images, LABELS, NAMES, card="# A card\n")
    assert (tmp_path / "out" / "README.md").read_text() == "# A card\n"
    source = open_source(tmp_path / "out")
    found = ingest(source, Preprocessing(6, channels), NAMES)
    rows = [int(Path(key).stem) for key in source.keys]
    assert sorted(rows) == list(range(12))
    assert np.array_equal(found.pixels, images[rows])
    assert np.array_equal(found.labels, LABELS[rows])
    assert not found.null.any()


def test_the_tree_alone_is_an_image_folder(tmp_path: Path) -> None:
    images = random_images(1)
    export_images(tmp_path, images, LABELS, NAMES, card="")
    (tmp_path / "metadata.csv").unlink()
    source = open_source(tmp_path)
    assert source.labels is not None
    assert sorted(set(source.labels)) == ["T-shirt", "ankle boot", "bag_purse"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "ankle boot" / "000000.png")), images[0, ..., 0])


def test_metadata_has_one_row_for_each_image_in_order(tmp_path: Path) -> None:
    export_images(tmp_path, random_images(1), LABELS, NAMES, card="")
    with (tmp_path / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [NAMES[label] for label in LABELS]
    assert [int(Path(row["file_name"]).stem) for row in rows] == list(range(12))
    assert all((tmp_path / row["file_name"]).is_file() for row in rows)


@pytest.mark.parametrize("names", [None, []])
def test_unconditional_is_flat(tmp_path: Path, names: list[str] | None) -> None:
    images = random_images(3)
    export_images(tmp_path, images, np.full(12, -1, dtype=np.int64), names, card="")
    source = open_source(tmp_path)
    assert source.keys == [f"{row:06d}.png" for row in range(12)]
    assert source.labels is None
    assert np.array_equal(ingest(source, Preprocessing(6, 3), None).pixels, images)


def test_an_interrupted_export_goes_on(tmp_path: Path) -> None:
    images, root = random_images(1), tmp_path / "out"
    export_images(root, images, LABELS, NAMES, card="card")
    complete = files(root)
    lost, torn = "T-shirt/000001.png", "ankle boot/000004.png"
    (root / lost).unlink()
    (root / torn).write_bytes((root / torn).read_bytes()[:30])
    (root / "T-shirt" / ".000001.png.part").write_bytes(b"half")
    export_images(root, images, LABELS, NAMES, card="card")
    again = files(root)
    assert {name: data for name, (_, data) in again.items()} == {name: data for name, (_, data) in complete.items()}
    rewritten = {name for name in complete if name.endswith(".png") and again[name][0] != complete[name][0]}
    assert rewritten == {lost, torn}


def test_other_pixels_replace_and_leftovers_are_refused(tmp_path: Path) -> None:
    first, second = random_images(1), random_images(1)
    export_images(tmp_path, first, LABELS, NAMES, card="")
    export_images(tmp_path, second, LABELS, NAMES, card="")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "ankle boot" / "000000.png")), second[0, ..., 0])
    with pytest.raises(UserError, match="empty directory"):
        export_images(tmp_path, second[:5], LABELS[:5], NAMES, card="")


def test_the_same_call_writes_the_same_bytes(tmp_path: Path) -> None:
    images = random_images(3)
    for name in ("one", "two"):
        export_images(tmp_path / name, images, LABELS, NAMES, card="card")
        export_npz(tmp_path / name / "set.npz", images, LABELS)
    one, two = ({key: data for key, (_, data) in files(tmp_path / name).items()} for name in ("one", "two"))
    assert one == two


HOSTILE = [
    "../../escape",
    "/etc/passwd",
    "..",
    "",
    "=cmd|' /C calc'!A0",
    "CON",
    "a\nb,c",
    "x.png",
    "metadata.csv",
]


def test_hostile_labels_stay_inside_and_evaluate_to_nothing(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "out"
    labels = np.arange(len(HOSTILE), dtype=np.int64)
    images = random_images(1, len(HOSTILE))
    export_images(root, images, labels, HOSTILE, card="")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert len(files(root)) == len(HOSTILE) + 2
    with (root / "metadata.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(HOSTILE) + 1
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row)
    source = open_source(root)
    order = [int(Path(key).stem) for key in source.keys]
    for index, row in enumerate(order):
        assert np.array_equal(np.asarray(source.image(index)), images[row, ..., 0])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(), max_size=20), min_size=1, max_size=4, unique=True))
def test_any_labels_round_trip_through_the_tree(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    root = tmp_path_factory.mktemp("export")
    images = random_images(1, len(labels))
    export_images(root, images, np.arange(len(labels), dtype=np.int64), labels, card="")
    (root / "metadata.csv").unlink()
    source = open_source(root)
    assert source.labels is not None
    assert sorted(source.labels) == sorted(folder_names(labels))


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_round_trip(tmp_path: Path, channels: int) -> None:
    images = random_images(channels)
    export_npz(tmp_path / "made" / "set.npz", images, LABELS)
    found = ingest(open_source(tmp_path / "made" / "set.npz"), Preprocessing(6, channels), ["0", "1", "2"])
    assert np.array_equal(found.pixels, images)
    assert np.array_equal(found.labels, LABELS)
    with np.load(tmp_path / "made" / "set.npz") as stored:
        assert (stored["x"].dtype, stored["x"].shape) == (np.uint8, (12, 6, 6, channels))
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["set.npz"]


def test_npz_without_labels(tmp_path: Path) -> None:
    export_npz(tmp_path / "set.npz", random_images(1), np.full(12, -1, dtype=np.int64))
    assert open_source(tmp_path / "set.npz").labels is None


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        (random_images(1).astype(np.float32), LABELS, NAMES),
        (random_images(1)[..., 0], LABELS, NAMES),
        (random_images(1), LABELS[:3], NAMES),
        (random_images(1), LABELS, NAMES[:2]),
        (random_images(1), LABELS - 1, NAMES),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, images: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"must be|not an index"):
        export_images(tmp_path, images, labels, names, card="")
    assert list(tmp_path.iterdir()) == []


def test_npz_of_partly_labelled_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="some labels are negative"):
        export_npz(tmp_path / "set.npz", random_images(1), LABELS - 1)
