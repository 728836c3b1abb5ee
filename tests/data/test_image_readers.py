"""Each format as it lies on disk, written here by other means than the package's own."""

import csv
import gzip
import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dpldm.data.readers import Source, Unreadable, open_source
from dpldm.errors import MissingExtra, UserError

RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


def pixels_of(source: Source) -> np.ndarray:
    return np.stack([np.asarray(source.image(index)) for index in range(len(source))])


def write_idx(path: Path, array: np.ndarray) -> None:
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_folder_per_class(tmp_path: Path) -> None:
    for name, pixels in zip(["b/1.png", "a/2.PNG", "a/1.jpeg", "a/deep/0.png"], PIXELS, strict=False):
        save(tmp_path / name, pixels)
    (tmp_path / "a" / ".DS_Store").touch()
    (tmp_path / "a" / "notes.txt").touch()
    source = open_source(tmp_path)
    assert source.keys == ["a/1.jpeg", "a/2.PNG", "a/deep/0.png", "b/1.png"]
    assert source.labels == ["a", "a", "a", "b"]
    assert source.ignored == ["a/notes.txt"]
    assert source.captions is None
    assert source.groups is None
    assert np.array_equal(pixels_of(source), PIXELS[[2, 1, 3, 0]])


def test_flat_folder(tmp_path: Path) -> None:
    for row, pixels in enumerate(PIXELS):
        save(tmp_path / f"{row}.png", pixels)
    source = open_source(str(tmp_path))
    assert source.labels is None
    assert len(source) == 6
    assert np.array_equal(pixels_of(source), PIXELS)


def test_images_both_flat_and_in_folders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "1.png", PIXELS[0])
    save(tmp_path / "a" / "1.png", PIXELS[0])
    with pytest.raises(UserError, match="both directly and in sub-folders"):
        open_source(tmp_path)


def test_linked_folders_are_not_entered(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "1.png", PIXELS[0])
    save(tmp_path / "data" / "a" / "1.png", PIXELS[1])
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "b")
    source = open_source(tmp_path / "data")
    assert source.keys == ["a/1.png"]
    assert source.ignored == ["b"]


ROWS = [
    {"file_name": "x/2.png", "label": "two", "text": "a two", "patient": "p1"},
    {"file_name": "./x/0.png", "label": "zero", "text": "a zero", "patient": "p2"},
    {"file_name": "gone.png", "label": "two", "text": "lost", "patient": "p1"},
]


def as_csv(folder: Path) -> None:
    with (folder / "metadata.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def as_jsonl(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")


def as_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "metadata.parquet")


@pytest.mark.parametrize("write", [as_csv, as_jsonl, as_parquet])
def test_metadata_is_joined_by_name(tmp_path: Path, write: Callable[[Path], None]) -> None:
    for row in (0, 1, 2):
        save(tmp_path / "x" / f"{row}.png", PIXELS[row])
    write(tmp_path)
    source = open_source(tmp_path, group_column="patient")
    assert source.keys == ["gone.png", "x/0.png", "x/2.png"]
    assert source.labels == ["two", "zero", "two"]
    assert source.captions == ["lost", "a zero", "a two"]
    assert source.groups == ["p1", "p2", "p1"]
    assert source.ignored == ["x/1.png"]
    assert source.unused_columns == []
    assert np.array_equal(np.asarray(source.image(1)), PIXELS[0])
    assert np.array_equal(np.asarray(source.image(2)), PIXELS[2])
    with pytest.raises(Unreadable, match="cannot be opened"):
        source.image(0)


def test_named_columns_and_unused_ones(tmp_path: Path) -> None:
    save(tmp_path / "a.png", PIXELS[0])
    (tmp_path / "metadata.csv").write_text("image,finding,age,patient,words\na.png,ill,7,p,hello\n")
    source = open_source(tmp_path, image_column="image", label_column="finding", caption_column="words")
    assert (source.labels, source.captions, source.groups) == (["ill"], ["hello"], None)
    assert source.unused_columns == ["age", "patient"]


def test_jsonl_numbers_become_text_and_gaps_are_empty(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "b.png", "label": 3}\n{"file_name": "a.png", "label": null, "late": 1}\n'
    )
    source = open_source(tmp_path)
    assert source.keys == ["a.png", "b.png"]
    assert source.labels == ["", "3"]


@pytest.mark.parametrize(
    ("name", "text", "arguments", "message"),
    [
        ("metadata.csv", "name\na.png\n", {}, "no column 'file_name'"),
        ("metadata.csv", "file_name\na.png\n", {"label_column": "class"}, "no column 'class'"),
        ("metadata.csv", "file_name,g\na.png,1\na.png,2\n", {}, "more than once"),
        ("metadata.csv", "file_name,g\na.png,1\n./a.png,2\n", {}, "more than once"),
        ("metadata.csv", "file_name,g\n,1\n", {}, "without a value in 'file_name'"),
        ("metadata.csv", "", {}, "no column"),
        ("metadata.csv", b"file_name\n\xff\xfe.png\n", {}, "cannot be read as CSV"),
        ("metadata.jsonl", "{]\n", {}, "cannot be read as JSONL"),
        ("metadata.jsonl", "[" * 100_000, {}, "cannot be read as JSONL"),
        ("metadata.jsonl", "[1]\n", {}, "not a JSON object"),
        ("metadata.jsonl", '{"file_name": ["a.png"]}\n', {}, "a list or an object"),
        ("metadata.parquet", b"PAR1 no parquet", {}, "cannot be read as parquet"),
    ],
)
def test_unusable_metadata(
    tmp_path: Path, name: str, text: str | bytes, arguments: dict[str, str], message: str
) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        open_source(tmp_path, **arguments)


def test_two_tables_are_refused(tmp_path: Path) -> None:
    as_csv(tmp_path)
    as_jsonl(tmp_path)
    with pytest.raises(UserError, match="keep one"):
        open_source(tmp_path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metadata.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"dpldm\[parquet\]"):
        open_source(tmp_path)


@pytest.mark.parametrize("column", ["label_column", "caption_column", "group_column"])
def test_columns_need_a_table(tmp_path: Path, column: str) -> None:
    save(tmp_path / "a.png", PIXELS[0])
    with pytest.raises(UserError, match="no table of metadata"):
        open_source(tmp_path, **{column: "x"})


COLOUR = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 5, 4), dtype=np.uint16)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (PIXELS, PIXELS),
        (PIXELS[..., None], PIXELS),
        (PIXELS[:, None], PIXELS),
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        ((COLOUR.transpose(0, 3, 1, 2) / 255).astype(np.float32), COLOUR),
        ((PIXELS[:, None] / 255).astype(np.float64), PIXELS),
        ((COLOUR / 255).astype(np.float16), COLOUR),
        (DEEP, DEEP),
        (DEEP[..., None].astype(">u2"), DEEP),
    ],
)
def test_npz_layouts(tmp_path: Path, stored: np.ndarray, expected: np.ndarray) -> None:
    np.savez(tmp_path / "set.npz", x=stored, y=np.arange(6))
    source = open_source(tmp_path / "set.npz")
    assert np.array_equal(pixels_of(source), expected)
    assert source.labels == ["0", "1", "2", "3", "4", "5"]
    assert source.keys == sorted(source.keys)


def test_three_by_three_floats_are_channels_first(tmp_path: Path) -> None:
    floats = RNG.integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=(floats / 255).astype(np.float32))
    assert np.array_equal(pixels_of(open_source(tmp_path / "set.npz")), floats.transpose(0, 2, 3, 1))


def test_rows_of_floats_outside_the_range_are_unreadable(tmp_path: Path) -> None:
    values = np.full((5, 1, 2, 2), 0.5, dtype=np.float32)
    values[1, 0, 0, 0], values[2, 0, 1, 1], values[3, 0, 0, 1] = np.nan, 1.5, -np.inf
    np.savez(tmp_path / "set.npz", x=values)
    source = open_source(tmp_path / "set.npz")
    assert len(source) == 5
    for row in (1, 2, 3):
        with pytest.raises(Unreadable, match=r"outside \[0, 1\]"):
            source.image(row)
    assert (np.asarray(source.image(0)) == 128).all()


@pytest.mark.parametrize(("split", "rows"), [("train", slice(0, 3)), ("val", slice(3, 4)), ("test", slice(4, 6))])
def test_medmnist_archive(tmp_path: Path, split: str, rows: slice) -> None:
    parts = {"train": slice(0, 3), "val": slice(3, 4), "test": slice(4, 6)}
    labels = np.arange(10, 16, dtype=np.uint8)[:, None]
    arrays = {f"{name}_images": PIXELS[part] for name, part in parts.items()}
    arrays |= {f"{name}_labels": labels[part] for name, part in parts.items()}
    np.savez(tmp_path / "medical.npz", **arrays)
    source = open_source(tmp_path / "medical.npz", split=split)
    assert np.array_equal(pixels_of(source), PIXELS[rows])
    assert source.labels == [str(label) for label in labels[rows, 0]]


class Explosive:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": PIXELS}, "neither an array x nor train_images"),
        ({"x": np.array([Explosive()], dtype=object)}, "plain arrays"),
        ({"x": PIXELS.astype(np.int32)}, "of type int32"),
        ({"x": COLOUR.astype(np.uint16)}, "of type uint16"),
        ({"x": PIXELS[0]}, "of shape"),
        ({"x": np.zeros((2, 4, 4, 5), np.uint8)}, "of shape"),
        ({"x": np.zeros((2, 0, 4), np.uint8)}, "of shape"),
        ({"x": PIXELS, "y": np.arange(5)}, "one label for each image"),
        ({"x": PIXELS, "y": np.zeros((6, 2), int)}, "one label for each image"),
        ({"x": PIXELS, "y": np.zeros(6)}, "labels of type float64"),
    ],
)
def test_unusable_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "set.npz")


def test_an_npz_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "set.npz", x=np.zeros((100, 50, 50), np.uint8))
    assert len(open_source(tmp_path / "set.npz")) == 100
    monkeypatch.setattr("dpldm.data.arrays.MAX_ARRAY_BYTES", 100_000)
    with pytest.raises(UserError, match="use a folder of files"):
        open_source(tmp_path / "set.npz")


@pytest.mark.parametrize("member", ["x", "y"])
def test_members_that_are_no_arrays(tmp_path: Path, member: str) -> None:
    np.savez(tmp_path / "set.npz", **({"x": PIXELS} if member == "y" else {}))
    with zipfile.ZipFile(tmp_path / "set.npz", "a") as archive:
        archive.writestr(f"{member}.npy", b"small")
    with pytest.raises(UserError, match="plain arrays"):
        open_source(tmp_path / "set.npz")


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("separator", "-.")
def test_mnist_folder(tmp_path: Path, ending: str, separator: str) -> None:
    parts = {"train": (PIXELS[:4], [3, 1, 4, 1]), "t10k": (PIXELS[4:], [5, 9])}
    for prefix, (images, labels) in parts.items():
        write_idx(tmp_path / f"{prefix}-images{separator}idx3-ubyte{ending}", images)
        write_idx(tmp_path / f"{prefix}-labels{separator}idx1-ubyte{ending}", np.array(labels, dtype=np.uint8))
    train, test = open_source(tmp_path), open_source(tmp_path, split="test")
    assert np.array_equal(pixels_of(train), PIXELS[:4])
    assert train.labels == ["3", "1", "4", "1"]
    assert np.array_equal(pixels_of(test), PIXELS[4:])
    assert test.labels == ["5", "9"]
    with pytest.raises(UserError, match="no IDX images of the split 'val'"):
        open_source(tmp_path, split="val")


def test_one_idx_file_finds_its_labels(tmp_path: Path) -> None:
    write_idx(tmp_path / "letters-train-images-idx3-ubyte", PIXELS)
    alone = open_source(tmp_path / "letters-train-images-idx3-ubyte")
    assert alone.labels is None
    write_idx(tmp_path / "letters-train-labels-idx1-ubyte.gz", np.arange(6, dtype=np.uint8))
    together = open_source(tmp_path / "letters-train-images-idx3-ubyte")
    assert together.labels == ["0", "1", "2", "3", "4", "5"]
    assert np.array_equal(pixels_of(together), PIXELS)


VALID_IDX = struct.pack(">HBBIII", 0, 8, 3, *PIXELS.shape) + PIXELS.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        VALID_IDX[:-1],
        VALID_IDX + b"x",
        b"\0\0\x0d" + VALID_IDX[3:],
        struct.pack(">HBBIII", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
    ],
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_unusable_idx(tmp_path: Path, data: bytes, ending: str) -> None:
    path = tmp_path / f"a-images-idx3-ubyte{ending}"
    path.write_bytes(gzip.compress(data) if ending else data)
    with pytest.raises(UserError, match=r"IDX file|as many bytes"):
        open_source(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_arrays_raise_user_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=PIXELS, y=np.arange(6))
    originals = {
        "a.npz": buffer.getvalue(),
        "a-images-idx3-ubyte": VALID_IDX,
        "b-images-idx3-ubyte.gz": gzip.compress(VALID_IDX),
    }
    name = data.draw(st.sampled_from(sorted(originals)))
    damaged = bytearray(originals[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(1, len(damaged))) :]
    (tmp_path / name).write_bytes(damaged)
    try:
        source = open_source(tmp_path / name)
    except UserError:
        return
    for index in range(min(len(source), 10)):
        assert source.image(index).mode in ("L", "RGB", "I;16")


def test_nothing_there_and_unknown_things(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing at"):
        open_source(tmp_path / "absent")
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match="neither a folder nor"):
        open_source(tmp_path / "a.txt")
    (tmp_path / "a.npz").mkdir()
    assert len(open_source(tmp_path / "a.npz")) == 0
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match="neither a folder nor"):
        open_source(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match="no split 'training'"):
        open_source(tmp_path, split="training")


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_tables_as_spreadsheets_write_them(tmp_path: Path, separator: str) -> None:
    """Semicolons, tabs, a byte order mark, Windows' line ends and separators, an empty last row."""
    (tmp_path / "img").mkdir()
    for row in range(3):
        Image.new("L", (2, 2), row).save(tmp_path / "img" / f"{row}.png")
    rows = [
        ["file_name", "label"],
        *[[f"img\\{row}.png", "a, b" if separator == ";" else "a"] for row in range(3)],
        ["", ""],
    ]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = open_source(tmp_path)
    assert source.keys == ["img/0.png", "img/1.png", "img/2.png"]
    assert set(source.labels or ()) == {"a, b" if separator == ";" else "a"}
    assert [source.image(row).getpixel((0, 0)) for row in range(3)] == [0, 1, 2]


def test_a_file_with_a_backslash_in_its_name_is_that_file(tmp_path: Path) -> None:
    Image.new("L", (2, 2), 7).save(tmp_path / "a\\0.png")
    (tmp_path / "metadata.csv").write_text("file_name\na\\0.png\n")
    assert open_source(tmp_path).image(0).getpixel((0, 0)) == 7
