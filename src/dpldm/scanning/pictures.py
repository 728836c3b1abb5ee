"""Synthetic images hold pixels and nothing else: no text, no EXIF, nothing after the end."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNKS = {b"IHDR", b"IDAT", b"IEND"}
ARRAYS = {"x.npy": ("uint8", 4), "y.npy": ("int64", 1)}
"""dtype and dimensions of what `synthetic.npz` may hold."""


def extra_in_png(path: Path, declared: Mapping[str, Any]) -> str | None:
    """What a PNG holds beside the pixels of one image of the declared size, or None.

    Args:
        declared: the statement's declared constants.
    """
    data = path.read_bytes()
    if not data.startswith(SIGNATURE):
        return "no PNG"
    at, end, pixels = len(SIGNATURE), False, b""
    while at < len(data) and not end:
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        if kind not in CHUNKS:
            return f"a {kind.decode('latin-1')} chunk"
        if kind == b"IHDR" and body != _header(declared):
            return "an image of another size or kind than declared"
        if data[at + 8 + length : at + 12 + length] != zlib.crc32(kind + body).to_bytes(4, "big"):
            return "a checksum of its own"
        pixels += body if kind == b"IDAT" else b""
        at, end = at + 12 + length, kind == b"IEND"
    if not end or at != len(data):
        return "data after its end"
    side, channels = declared["image_size"], declared["channels"]
    whole = _is_one_stream(io.BytesIO(pixels), len(pixels), side * (1 + side * channels), zlib.MAX_WBITS)
    return None if whole else "other data than its pixels"


def _is_one_stream(file: IO[bytes], length: int, holds: int, format: int) -> bool:
    """Whether the next `length` bytes of a file are one deflated stream of `holds` bytes, and nothing behind it."""
    stream, found = zlib.decompressobj(format), 0
    try:
        while length > 0 and not stream.eof and found <= holds:
            block = file.read(min(length, 1 << 20))
            length -= len(block) or length
            found += len(stream.decompress(block))
    except zlib.error:
        return False
    return stream.eof and not stream.unused_data and length == 0 and found == holds


def _header(declared: Mapping[str, Any]) -> bytes:
    """IHDR of the declared images: width, height, 8 bits, grey or RGB, not interlaced."""
    side = int(declared["image_size"]).to_bytes(4, "big")
    return side + side + bytes([8, {1: 0, 3: 2}[declared["channels"]], 0, 0, 0])


def extra_in_npz(path: Path, declared: Mapping[str, Any]) -> str | None:
    """What `synthetic.npz` holds beside images and labels, or None. Nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if not {"x.npy"} <= set(names) <= set(ARRAYS) or len(set(names)) < len(names):
                return "other arrays than images and labels"
            if archive.comment or any(member.comment for member in members) or _hidden(path, members):
                return "something beside its arrays"
            return next(filter(None, (_array(archive, member, declared) for member in members)), None)
    except (zipfile.BadZipFile, ValueError, EOFError, zlib.error):
        return "no arrays that can be read"


def _hidden(path: Path, members: list[zipfile.ZipInfo]) -> bool:
    """Whether bytes lie around the members, or behind what they hold: local headers are 30 bytes, a name, and an extra
    field."""
    with path.open("rb") as file:
        at = 0
        for member in sorted(members, key=lambda member: member.header_offset):
            if member.header_offset != at:
                return True
            file.seek(at + 26)
            sizes = file.read(4)
            name, extra = (int.from_bytes(sizes[k : k + 2], "little") for k in (0, 2))
            if extra not in (0, 20):  # zip64 sizes, which numpy always writes
                return True
            file.seek(at + 30 + name + extra)
            if not _is_one_stream(file, member.compress_size, member.file_size, -zlib.MAX_WBITS):
                return True
            at += 30 + name + extra + member.compress_size
        file.seek(at)
        rest = len(file.read())
    directory = sum(46 + len(member.filename) + len(member.extra) for member in members) + 22
    return rest != directory or any(member.extra for member in members)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, declared: Mapping[str, Any]) -> str | None:
    with archive.open(member) as file:
        shape, dtype = _npy_header(file)
        size = dtype.itemsize
        for side in shape:
            size *= side
        rest = sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))
    if (str(dtype), len(shape)) != ARRAYS[member.filename] or rest != size:
        return f"an array {member.filename} of another kind than images and labels"
    side = declared["image_size"]
    if member.filename == "x.npy" and shape[1:] != (side, side, declared["channels"]):
        return "images of another size than declared"
    return None


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    version = npy.read_magic(file)
    if version != (1, 0):
        raise ValueError("another version")
    shape, _, dtype = npy.read_array_header_1_0(file)
    return shape, dtype
