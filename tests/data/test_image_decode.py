"""Decoding against images whose pixels are known, and against files made to do harm."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpldm.data.decode import MAX_FILE_BYTES, Unreadable, decode, read_file

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tiff16(values: np.ndarray, order: str, photometric: int) -> bytes:
    """A 16-bit grey TIFF from the specification: order is '<' or '>', photometric 0 is WhiteIsZero."""
    height, width = values.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, photometric), (277, 1), (278, height)]
    data_offset = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags = sorted([*tags, (273, data_offset), (279, values.size * 2)])
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    return header + entries + struct.pack(order + "I", 0) + values.astype(order + "u2").tobytes()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_grey(format: str) -> None:
    image = decode(encoded(Image.fromarray(GREY), format))
    assert np.array_equal(np.asarray(image.convert("L")), GREY)


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_lossless_colour(format: str, options: dict[str, object]) -> None:
    image = decode(encoded(Image.fromarray(COLOUR), format, **options))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), COLOUR)


def test_jpeg_is_close() -> None:
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    image = decode(encoded(Image.fromarray(ramp), "JPEG", quality=95))
    assert image.mode == "L"
    assert np.abs(np.asarray(image).astype(int) - ramp).max() <= 6


def test_cmyk_jpeg_becomes_rgb() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    image = decode(encoded(cmyk, "JPEG", quality=95))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - [255, 0, 0]).max() <= 3


def test_bilevel_becomes_grey() -> None:
    image = decode(encoded(Image.fromarray(GREY > 127), "PNG"))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), np.where(GREY > 127, 255, 0))


def test_palette_with_and_without_transparency() -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "L").convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opaque = decode(encoded(palette, "PNG"))
    assert np.asarray(opaque).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    clear = decode(encoded(palette, "PNG", transparency=bytes([255, 0, 128])))
    assert clear.mode == "RGBA"
    assert np.asarray(clear)[0, :, 3].tolist() == [255, 0, 128]


def test_transparent_grey_becomes_an_alpha_channel() -> None:
    image = decode(encoded(Image.fromarray(np.array([[7, 9]], dtype=np.uint8)), "PNG", transparency=9))
    assert image.mode == "LA"
    assert np.asarray(image).tolist() == [[[7, 255], [9, 0]]]


def test_sixteen_bit_png() -> None:
    values = np.array([[0, 1, 256], [1000, 65534, 65535]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(values), "PNG"))
    assert image.mode == "I;16"
    assert np.array_equal(np.asarray(image), values)


@pytest.mark.parametrize(("order", "photometric"), [("<", 0), ("<", 1), (">", 1)])
def test_sixteen_bit_tiff_of_both_byte_orders_and_polarities(order: str, photometric: int) -> None:
    values = np.array([[0, 1, 256], [1000, 65534, 65535]], dtype=np.uint16)
    image = decode(tiff16(values, order, photometric))
    assert image.mode == "I;16"
    assert np.array_equal(np.asarray(image), values if photometric else 65535 - values)


ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(Image.fromarray(GREY), format, exif=exif))
    assert np.array_equal(np.asarray(image), ORIENTED[orientation](GREY))


@pytest.mark.parametrize("exif", [b"II*\0\xff\xff\xff\x7fgarbage", b"II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\1\0"])
def test_a_broken_exif_block_costs_neither_the_image_nor_a_warning(exif: bytes) -> None:
    png = encoded(Image.fromarray(GREY), "PNG")
    end = png.index(b"IDAT") - 4
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        image = decode(png[:end] + png_chunk(b"eXIf", exif) + png[end:])
    assert np.array_equal(np.asarray(image), GREY)
    assert told == []


BOMB_PNG = png_header(20000, 20000) + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + png_chunk(b"IEND", b"")
BOMB_BMP = encoded(Image.fromarray(GREY), "BMP")
BOMB_BMP = BOMB_BMP[:18] + struct.pack("<ii", 9000, 9000) + BOMB_BMP[26:]
BROKEN = {
    "big-endian WhiteIsZero": (tiff16(GREY, ">", 0), "cannot be decoded"),
    "nothing decodable": (b"not an image at all", "cannot be decoded"),
    "bomb in a PNG header": (BOMB_PNG, "megapixels"),
    "bomb in a BMP header": (BOMB_BMP, "megapixels"),
    "PNG of no width": (png_header(0, 5) + png_chunk(b"IEND", b""), "cannot be decoded"),
    "truncated PNG": (encoded(Image.fromarray(COLOUR), "PNG")[:-40], "cannot be decoded"),
    "truncated JPEG": (encoded(Image.fromarray(COLOUR), "JPEG")[:-30], "truncated"),
    "truncated WEBP": (encoded(Image.fromarray(COLOUR), "WEBP", lossless=True)[:-30], "cannot be decoded"),
    "truncated BMP": (encoded(Image.fromarray(COLOUR), "BMP")[:-30], "truncated"),
    "truncated TIFF": (encoded(Image.fromarray(GREY), "TIFF")[:-200], "cannot be decoded"),
    "animated GIF": (
        encoded(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        "more than one frame",
    ),
    "animated PNG": (
        encoded(Image.fromarray(GREY), "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        "more than one frame",
    ),
    "TIFF of two pages": (
        encoded(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[Image.fromarray(GREY)]),
        "more than one frame",
    ),
    "float TIFF with NaN": (
        encoded(Image.fromarray(np.array([[0.5, np.nan]], dtype=np.float32)), "TIFF"),
        "floating-point",
    ),
    "32-bit TIFF out of range": (
        encoded(Image.fromarray(np.array([[-1, 70000]], dtype=np.int32)), "TIFF"),
        "outside 0..65535",
    ),
    "a format that is not on the list": (encoded(Image.fromarray(GREY), "PPM"), "cannot be decoded"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot be decoded"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_unreadable_for_the_right_reason(name: str) -> None:
    data, reason = BROKEN[name]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(Unreadable, match=reason):
            decode(data)
    assert told == []  # not even a warning tells about a private file


def test_a_wrong_ending_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "really.jpg").write_bytes(encoded(Image.fromarray(GREY), "PNG"))
    assert np.array_equal(np.asarray(decode(read_file(tmp_path, "really.jpg"))), GREY)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_to_a_file_raises_anything_else(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"]))
    image = data.draw(st.sampled_from([Image.fromarray(GREY), Image.fromarray(COLOUR)]))
    damaged = bytearray(encoded(image, format))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(1, len(damaged))) :]
    try:
        decoded = decode(bytes(damaged))
    except Unreadable as error:
        assert 0 < len(error.reason) <= 160  # noqa: PT017
    else:
        assert decoded.mode in ("L", "LA", "RGB", "RGBA", "I;16")


def test_read_file_stays_inside_and_never_waits(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "folder.png").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"outside")
    (root / "inside.png").write_bytes(b"inside")
    (root / "empty.png").touch()
    os.symlink(tmp_path / "secret.png", root / "leaving.png")
    os.symlink(root / "inside.png", root / "staying.png")
    os.symlink(root / "loop.png", root / "loop.png")
    os.mkfifo(root / "fifo.png")
    with (root / "huge.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse
    assert read_file(root, "inside.png") == read_file(root, "staying.png") == b"inside"
    reasons = {
        "folder.png": "not a regular file",
        "fifo.png": "not a regular file",
        "leaving.png": "outside",
        "../secret.png": "outside",
        str(tmp_path / "secret.png"): "outside",
        "loop.png": "cannot be opened",
        "missing.png": "cannot be opened",
        "empty.png": "empty",
        "huge.png": "larger",
        "nul\0.png": "impossible name",
    }
    for key, reason in reasons.items():
        with pytest.raises(Unreadable, match=reason):
            read_file(root, key)


def test_refusals_leave_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        with pytest.raises(Unreadable):
            read_file(tmp_path, "folder.png")
    assert len(os.listdir("/dev/fd")) == before
