"""Ingest: hostile folders keep their length, records do not touch each other, and refusals tell nothing."""

import os
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpldm.data.ingest import Ingested, ingest, keyed_fingerprint
from dpldm.data.preprocessing import Preprocessing
from dpldm.data.readers import open_source
from dpldm.errors import UserError

GREY8 = Preprocessing(image_size=8, channels=1)
GOOD = np.random.default_rng(2).integers(0, 256, (12, 8, 8), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    """A reader that waits for a FIFO or unpacks a bomb fails here instead of stopping the whole run."""

    def too_slow(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def good_folder(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    for row, pixels in enumerate(GOOD):
        Image.fromarray(pixels).save(root / f"good{row:02d}.png")
    return root


def png_bytes(image: Image.Image, path: Path, **options: object) -> bytes:
    image.save(path, "PNG", **options)
    return path.read_bytes()


def header_only_png(path: Path, width: int, height: int) -> None:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)))


def animated(path: Path, format: str) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (0, 255)]
    frames[0].save(path, format, save_all=True, append_images=frames[1:])


def float_tiff(path: Path) -> None:
    Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(path, "TIFF")


MALFORMED: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.touch(),
    "text": lambda p: p.write_text("this is not an image"),
    "random bytes": lambda p: p.write_bytes(np.random.default_rng(3).bytes(5000)),
    "truncated png": lambda p: p.write_bytes(png_bytes(Image.fromarray(GOOD[0]), p)[:60]),
    "png with a wrong checksum": lambda p: p.write_bytes(
        png_bytes(Image.fromarray(GOOD[0]), p).replace(b"IDAT", b"IDAU")
    ),
    "bomb header": lambda p: header_only_png(p, 20_000, 20_000),
    "impossible header": lambda p: header_only_png(p, 2**31 - 1, 2**31 - 1),
    "header only": lambda p: header_only_png(p, 8, 8),
    "animated gif": lambda p: animated(p, "GIF"),
    "animated png": lambda p: animated(p, "PNG"),
    "two-page tiff": lambda p: animated(p, "TIFF"),
    "nan tiff": float_tiff,
    "16 bits without a window": lambda p: Image.fromarray(np.full((8, 8), 999, np.uint16)).save(p, "PNG"),
    "leaving link": lambda p: os.symlink("/etc/hostname", p),
    "link to a device": lambda p: os.symlink("/dev/zero", p),
    "link to memory": lambda p: os.symlink("/proc/self/mem", p),
    "dangling link": lambda p: os.symlink("nowhere.png", p),
    "link to itself": lambda p: os.symlink(p.name, p),
    "fifo": lambda p: os.mkfifo(p),
    "folder": lambda p: p.mkdir(),
    "postscript": lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
    "svg": lambda p: p.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_is_one_null_record(tmp_path: Path, kind: str) -> None:
    root = good_folder(tmp_path / "data")
    MALFORMED[kind](root / "bad.png")
    found = ingest(open_source(root), GREY8, None)
    assert found.pixels.shape == (13, 8, 8, 1)
    assert found.null.tolist() == [True] + [False] * 12
    assert not found.pixels[0].any()
    assert np.array_equal(found.pixels[1:, ..., 0], GOOD)
    assert [key for key, _ in found.problems] == ["bad.png"]
    assert found.problems[0][1]


def oriented(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.ascontiguousarray(GOOD[0][::-1, ::-1])).save(path, "PNG", exif=exif)


def palette_with_alpha(path: Path) -> None:
    image = Image.fromarray(np.tile(np.array([0, 1], np.uint8), (8, 4))).convert("P")
    image.putpalette([90, 90, 90, 255, 255, 255])
    image.save(path, "PNG", transparency=bytes([255, 0]))


STRIPES = np.tile(np.array([90, 0], np.uint8), (8, 4))
UNUSUAL: dict[str, tuple[str, Callable[[Path], object], np.ndarray]] = {
    "wrong ending": ("odd.jpg", lambda p: Image.fromarray(GOOD[0]).save(p, "PNG"), GOOD[0]),
    "upper case": ("odd.PNG", lambda p: Image.fromarray(GOOD[0]).save(p, "PNG"), GOOD[0]),
    "exif orientation": ("odd.png", oriented, GOOD[0]),
    "palette and alpha": ("odd.png", palette_with_alpha, STRIPES),
    "cmyk": (
        "odd.jpg",
        lambda p: Image.new("CMYK", (9, 9), (0, 0, 0, 255)).save(p, "JPEG"),
        np.zeros((8, 8)),
    ),
    "one line": ("odd.png", lambda p: Image.new("L", (1, 65535), 200).save(p), np.full((8, 8), 200)),
    "one column": ("odd.png", lambda p: Image.new("L", (65535, 1), 200).save(p), np.full((8, 8), 200)),
    "still gif": ("odd.gif", lambda p: Image.fromarray(GOOD[0]).save(p), GOOD[0]),
    "control characters": ("odd\x1b[2J\n.png", lambda p: Image.fromarray(GOOD[0]).save(p), GOOD[0]),
    "not utf-8": (os.fsdecode(b"odd\xff\xfe.png"), lambda p: Image.fromarray(GOOD[0]).save(p), GOOD[0]),
    "inner link": ("odd.png", lambda p: os.symlink("good00.png", p), GOOD[0]),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_file_gives_the_right_pixels(tmp_path: Path, kind: str) -> None:
    root = good_folder(tmp_path / "data")
    name, write, expected = UNUSUAL[kind]
    write(root / name)
    found = ingest(open_source(root), GREY8, None)
    assert not found.null.any()
    assert found.problems == []
    assert np.array_equal(found.pixels[-1, ..., 0], expected)


def test_problem_lines_can_be_logged(tmp_path: Path) -> None:
    root = good_folder(tmp_path / "data")
    (root / os.fsdecode(b"\xff\x1b[31m\n.png")).write_text("no image")
    [(key, reason)] = ingest(open_source(root), GREY8, None).problems
    assert key == "\\udcff\\x1b[31m\\n.png"
    assert f"{key} {reason}".encode().isascii()


def labelled(root: Path, labels: list[str]) -> Path:
    good_folder(root)
    rows = [f"good{row:02d}.png,{label}" for row, label in enumerate(labels)]
    (root / "metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    return root


def test_labels_are_indices_in_the_declared_list(tmp_path: Path) -> None:
    root = labelled(tmp_path / "data", ["b", "a", "c"] * 4)
    (root / "good01.png").write_text("broken")
    found = ingest(open_source(root), GREY8, ["c", "b", "a", "never seen"])
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [1, 2, 0] * 4
    assert np.flatnonzero(found.null).tolist() == [1]
    assert ingest(open_source(root), GREY8, None).labels.tolist() == [-1] * 12


def test_an_undeclared_label_is_refused_without_telling_it(tmp_path: Path) -> None:
    source = open_source(labelled(tmp_path / "data", ["healthy"] * 11 + ["hiv"]))
    with pytest.raises(UserError) as caught:
        ingest(source, GREY8, ["healthy", "ill"])
    text = str(caught.value)
    assert "declared: healthy, ill" in text
    assert "dpldm inspect" in text
    assert "hiv" not in text
    assert "good" not in text
    assert not any(character.isdigit() for character in text)


def test_other_refusals(tmp_path: Path) -> None:
    root = good_folder(tmp_path / "data")
    with pytest.raises(UserError, match="the data has none"):
        ingest(open_source(root), GREY8, ["a"])
    with pytest.raises(UserError, match="names a class twice"):
        ingest(open_source(root), GREY8, ["a", "a"])
    for row in range(3):
        (root / f"good{row:02d}.png").write_text("broken")
    with pytest.raises(UserError, match="Fewer than 10"):
        ingest(open_source(root), GREY8, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="Fewer than 10"):
        ingest(open_source(tmp_path / "empty"), GREY8, None)


def same(one: Ingested, other: Ingested) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("pixels", "labels", "null"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", [1, 3])
@pytest.mark.parametrize("size", [8, 6])
def test_arrays_and_files_give_the_same(tmp_path: Path, channels: int, stored: int, size: int) -> None:
    """The whole-array path (right size, no colour to grey) against one file at a time."""
    images = np.random.default_rng(4).integers(0, 256, (12, 8, 8, stored), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x=images)
    (tmp_path / "files").mkdir()
    for row, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(tmp_path / "files" / f"{row:02d}.png")
    preprocessing = Preprocessing(size, channels)
    from_array = ingest(open_source(tmp_path / "set.npz"), preprocessing, None)
    assert from_array.pixels.shape == (12, size, size, channels)
    assert same(from_array, ingest(open_source(tmp_path / "files"), preprocessing, None))
    from_array.pixels[0] = 0  # the caller owns the array


def test_bad_rows_of_an_array_are_null_in_both_paths(tmp_path: Path) -> None:
    values = np.random.default_rng(5).random((12, 1, 8, 8)).astype(np.float32)
    values[7, 0, 3, 3] = np.nan
    np.savez(tmp_path / "set.npz", x=values)
    for size in (8, 5):
        found = ingest(open_source(tmp_path / "set.npz"), Preprocessing(size, 1), None)
        assert np.flatnonzero(found.null).tolist() == [7]
        assert not found.pixels[7].any()
        assert found.problems == [("00000007", "has values outside [0, 1]")]


def test_sixteen_bit_arrays_are_windowed(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=np.full((12, 8, 8), 300, dtype=np.uint16))
    found = ingest(open_source(tmp_path / "set.npz"), Preprocessing(8, 1, window=(200, 400)), None)
    assert (found.pixels == 128).all()
    with pytest.raises(UserError, match=r"data\.window"):
        ingest(open_source(tmp_path / "set.npz"), GREY8, None)


def test_changing_one_record_changes_one_row(tmp_path: Path) -> None:
    root = good_folder(tmp_path / "data")
    before = ingest(open_source(root), Preprocessing(5, 3), None)
    Image.new("RGB", (300, 200), (255, 0, 0)).save(root / "good04.png")
    after = ingest(open_source(root), Preprocessing(5, 3), None)
    differs = (before.pixels != after.pixels).any(axis=(1, 2, 3))
    assert np.flatnonzero(differs).tolist() == [4]


def test_fingerprint_notices_every_kind_of_change(tmp_path: Path) -> None:
    root = labelled(tmp_path / "data", ["a", "b"] * 6)
    secret = b"k" * 32

    def fingerprint() -> str:
        return keyed_fingerprint(open_source(root), secret)

    seen = {fingerprint()}
    assert fingerprint() in seen
    assert len(fingerprint()) == 64
    assert keyed_fingerprint(open_source(root), b"other") not in seen
    changes: list[Callable[[], object]] = [
        lambda: Image.fromarray(GOOD[1]).save(root / "good00.png"),
        lambda: (root / "good02.png").unlink(),
        lambda: labelled(root, ["b", "a"] * 6),
        lambda: labelled(root, ["b", "a"] * 5),
        lambda: (root / "metadata.csv").unlink(),
        lambda: (root / "good05.png").rename(root / "renamed.png"),
    ]
    for change in changes:
        change()
        assert fingerprint() not in seen
        seen.add(fingerprint())


def test_fingerprint_keeps_neighbouring_texts_apart(tmp_path: Path) -> None:
    root = good_folder(tmp_path / "data")
    prints = set()
    for label, person in (("ab", "c"), ("a", "bc")):
        (root / "metadata.csv").write_text(f"file_name,label,person\ngood00.png,{label},{person}\n")
        prints.add(keyed_fingerprint(open_source(root, group_column="person"), b"k"))
    assert len(prints) == 2


def test_fingerprint_of_arrays_sees_shape_and_values(tmp_path: Path) -> None:
    def fingerprint(images: np.ndarray) -> str:
        np.savez(tmp_path / "set.npz", x=images)
        return keyed_fingerprint(open_source(tmp_path / "set.npz"), b"k")

    flipped = GOOD.copy()
    flipped[3, 2, 1] ^= 1
    prints = [
        fingerprint(GOOD),
        fingerprint(flipped),
        fingerprint(GOOD.reshape(12, 4, 16)),
        fingerprint(GOOD[:11]),
    ]
    assert len(set(prints)) == 4
    assert fingerprint(GOOD) == prints[0]


# --- units of privacy ---------------------------------------------------------------------------------------------


def visits(root: Path, people: dict[str, list[str]]) -> Path:
    """A folder whose table names the person of every file; a blank name where there is none."""
    rows = ["file_name,patient"]
    for person, names in people.items():
        for name in names:
            root.mkdir(exist_ok=True)
            Image.new("L", (8, 8), len(rows)).save(root / name)
            rows.append(f"{name},{person.strip()}")
    (root / "metadata.csv").write_text("\n".join(rows))
    return root


PEOPLE = {
    "ann": [f"a{k}.png" for k in range(5)],
    "bob": ["b0.png"],
    "cy": [f"c{k}.png" for k in range(3)],
    " ": ["x0.png", "x1.png", "x2.png"],
}


def units_of(root: Path, images_per_group: int | None) -> dict[str, int]:
    source = open_source(root, group_column="patient")
    return dict(zip(source.keys, ingest(source, GREY8, None, images_per_group).units.tolist(), strict=True))


def test_groups_are_units_and_keep_so_many_images(tmp_path: Path) -> None:
    units = units_of(visits(tmp_path / "set", PEOPLE), 2)
    kept = {unit: [key for key in units if units[key] == unit] for unit in sorted(set(units.values())) if unit >= 0}
    assert list(kept) == list(range(6)), "three people, three images of nobody"
    sizes = sorted((len(keys), keys[0][0]) for keys in kept.values())
    assert sizes == [(1, "b"), (1, "x"), (1, "x"), (1, "x"), (2, "a"), (2, "c")]
    assert all(len({key[0] for key in keys}) == 1 for keys in kept.values()), "no unit holds two people"


def test_what_a_group_keeps_does_not_depend_on_other_groups(tmp_path: Path) -> None:
    def kept_of_ann(people: dict[str, list[str]], name: str) -> set[str]:
        units = units_of(visits(tmp_path / name, people), 2)
        return {key for key, unit in units.items() if unit >= 0 and key.startswith("a")}

    alone = {"ann": PEOPLE["ann"], "dan": [f"d{k}.png" for k in range(9)]}
    assert kept_of_ann(PEOPLE, "all") == kept_of_ann(alone, "other")


def test_without_groups_every_record_is_a_unit(tmp_path: Path) -> None:
    units = units_of(visits(tmp_path / "set", PEOPLE), None)
    assert list(units.values()) == list(range(12))
