"""The IDX files of MNIST, and of those who took over its format: Fashion-MNIST, EMNIST."""

import gzip
import math
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpldm.data.arrays import MAX_ARRAY_BYTES, array_source
from dpldm.data.source import Source, Wanted, nested
from dpldm.errors import UserError

_PREFIX = {"train": "train", "test": "t10k"}
_EMNIST = re.compile(r"(emnist-[a-z]+)-(train|test)-images-idx3-ubyte(\.gz)?")


def open_idx(path: Path, wanted: Wanted) -> Source | None:
    """An IDX file of images, `.gz` or not, or a folder laid out like MNIST or EMNIST; None for anything else.

    The labels are the file that lies beside the images under MNIST's naming. EMNIST stores its images with rows and
    columns exchanged, and its classes in a list of character codes: both are put right.

    Raises:
        UserError: a file is damaged, the split is not there, or a folder holds several of EMNIST's sets.
    """
    images = _images_of(path, wanted.split) if path.is_dir() else path
    split = wanted.split if path.is_dir() else None
    if images is None or not (images.is_file() and images.name.removesuffix(".gz").endswith("-ubyte")):
        return None
    emnist = _EMNIST.fullmatch(images.name)
    pixels, labels = _read_idx(images), _labels_beside(images)
    if emnist is None:
        return replace(array_source("IDX file", images, pixels, labels), split=split)
    if pixels.ndim == 3:
        pixels = pixels.transpose(0, 2, 1)
    names = _emnist_names(images.with_name(f"{emnist[1]}-mapping.txt"))
    return replace(array_source("EMNIST", images, pixels, labels, names), split=split)


def _images_of(root: Path, split: str) -> Path | None:
    """The file of a split's images; None when the folder holds no IDX files."""
    root = nested(root, "gzip", "raw")  # where archives and other tools put them
    found = {
        name: root / f"{prefix}-images{separator}idx3-ubyte{ending}"
        for name, prefix in _PREFIX.items()
        for separator in ".-"
        for ending in (".gz", "")
        if (root / f"{prefix}-images{separator}idx3-ubyte{ending}").is_file()
    }
    letters = [match for file in sorted(root.glob("emnist-*")) if (match := _EMNIST.fullmatch(file.name))]
    if not found and letters:
        if len(sets := sorted({match[1] for match in letters})) > 1:
            raise UserError(
                f"{root} holds {', '.join(sets)}: give the file of images of one of them, such as "
                f"{sets[0]}-train-images-idx3-ubyte.gz."
            )
        found = {match[2]: root / match[0] for match in letters}
    if found and split not in found:
        raise UserError(f"{root} has no IDX images of the split {split!r}: it has {', '.join(sorted(found))}.")
    return found.get(split)


def _labels_beside(images: Path) -> NDArray[np.uint8] | None:
    candidate = images.name.replace("images", "labels").replace("idx3", "idx1")
    stem = candidate.removesuffix(".gz")
    beside = [images.with_name(name) for name in (candidate, stem, f"{stem}.gz")]
    labels = next((path for path in beside if path.is_file() and path.name != images.name), None)
    return None if labels is None else _read_idx(labels)


def _emnist_names(path: Path) -> dict[str, str] | None:
    """Class names by number: the first of the characters that a line gives by their codes; None without the file."""
    if not path.is_file():
        return None
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        return {str(int(number)): chr(int(code)) for number, code, *_ in rows}
    except (OSError, ValueError):
        raise UserError(f"{path} is not EMNIST's list of classes and character codes: get it again.") from None


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """IDX: two zero bytes, type (8 = unsigned byte), number of axes, their big-endian lengths, data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            zero, kind, axes = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{axes}I", file.read(4 * axes))
            size = math.prod(shape)
            if zero or kind != 8 or size > MAX_ARRAY_BYTES:
                raise ValueError
            data = file.read(size + 1)
    except (OSError, EOFError, ValueError, MemoryError, struct.error, zlib.error) as error:
        raise UserError(
            f"{path} is not an IDX file of unsigned bytes ({type(error).__name__}): get it again."
        ) from None
    if len(data) != size:
        raise UserError(f"{path} does not hold as many bytes as its header says: get it again.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
