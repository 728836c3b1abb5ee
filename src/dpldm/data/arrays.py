"""Images that lie in one array, and the `.npz` files that hold such arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpldm.data.decode import MAX_PIXELS, Unreadable
from dpldm.data.source import Source, Wanted
from dpldm.errors import UserError

MAX_ARRAY_BYTES = 16 * 2**30
"""Uncompressed size above which an array file is refused."""

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource(Source):
    """Images (N, H, W, C), C in {1, 3}: uint8, or uint16 with C = 1."""

    array: NDArray[np.uint8] | NDArray[np.uint16]
    unreadable: dict[int, str] = field(default_factory=dict)
    """Reason for each row whose values were no pixels."""

    def image(self, index: int) -> Image.Image:
        """See `Source.image`."""
        self._check(index)
        row = self.array[index]
        return Image.fromarray(np.ascontiguousarray(row[..., 0] if row.shape[-1] == 1 else row))

    def content(self, index: int) -> bytes:
        """See `Source.content`."""
        self._check(index)
        kind = f"{self.array.dtype.str}{self.array.shape[1:]}"
        return kind.encode() + bytes(self.array[index].tobytes())

    def _check(self, index: int) -> None:
        if index in self.unreadable:
            raise Unreadable(self.unreadable[index])


def open_npz(path: Path, wanted: Wanted) -> Source | None:
    """An `.npz` with `x` (and `y`), or MedMNIST's `{split}_images` and `{split}_labels`; None for anything else.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W): uint8, uint16 (grey), or float in [0, 1]. A row
    of floats outside that range is an unreadable record. Pickled objects are never loaded.

    Raises:
        UserError: the file is no such archive.
    """
    if path.suffix != ".npz" or not path.is_file():
        return None
    split = wanted.split
    try:
        with np.load(path, allow_pickle=False) as archive:
            if sum(member.file_size for member in archive.zip.infolist()) > MAX_ARRAY_BYTES:
                raise UserError(f"{path} holds more than {MAX_ARRAY_BYTES // 2**30} GiB: use a folder of files.")
            images_name, labels_name = ("x", "y") if "x" in archive else (f"{split}_images", f"{split}_labels")
            if images_name not in archive:
                raise UserError(f"{path} has neither an array x nor {split}_images: rename the array of images.")
            images = archive[images_name]
            labels = archive.get(labels_name)
            if not isinstance(images, np.ndarray) or isinstance(labels, bytes):
                raise ValueError  # NumPy hands out the bytes of a member that is no array
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's header parser raise many kinds
        raise UserError(
            f"{path} cannot be read as an .npz of plain arrays ({type(error).__name__}): write it again."
        ) from None
    found = array_source(f".npz archive ({images_name})", path, images, labels)
    return found if images_name == "x" else replace(found, split=split)


def array_source(
    layout: str,
    path: Path,
    images: NDArray[np.generic],
    labels: NDArray[np.generic] | None,
    names: Mapping[str, str] | None = None,
) -> ArraySource:
    """Images and labels of any of the forms that `open_npz` allows.

    Args:
        path: where they are from, for messages.
        names: what the labels stand for, if they are not names already.

    Raises:
        UserError: they are of another form, or do not fit together.
    """
    shaped = _channels_last(path, images)
    pixels, unreadable = _pixels(path, shaped)
    return ArraySource(
        layout=layout,
        keys=[f"{row:08d}" for row in range(len(pixels))],
        labels=None if labels is None else _label_names(path, labels, len(pixels), names),
        array=pixels,
        unreadable=unreadable,
    )


def _channels_last(path: Path, images: NDArray[np.generic]) -> NDArray[np.generic]:
    """A view (N, H, W, C). Where both readings fit, floats are taken as channels-first, integers as last."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4:
        first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
        if first and (images.dtype.kind == "f" or not last):
            images, last = images.transpose(0, 2, 3, 1), True
        if last and 0 < images.shape[1] * images.shape[2] <= MAX_PIXELS:
            return images
    raise UserError(
        f"{path} holds images of shape {images.shape[1:]}: give (N, H, W), (N, H, W, C) or (N, C, H, W) with "
        "1 or 3 channels."
    )


def _pixels(path: Path, images: NDArray[np.generic]) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], dict[int, str]]:
    """Images as unsigned integers, and the rows of floats that could not be read as pixels."""
    if images.dtype == np.uint8:
        return images.astype(np.uint8, copy=False), {}
    if images.dtype.kind == "u" and images.dtype.itemsize == 2 and images.shape[-1] == 1:
        return images.astype(np.uint16), {}
    if images.dtype.kind != "f":
        raise UserError(
            f"{path} holds images of type {images.dtype}: give uint8, uint16 (grey only) or floats in [0, 1]."
        )
    pixels = np.zeros(images.shape, dtype=np.uint8)
    unreadable: dict[int, str] = {}
    for start in range(0, len(images), _ROWS_AT_ONCE):
        values = images[start : start + _ROWS_AT_ONCE].astype(np.float32)
        good = ((values >= 0) & (values <= 1)).all(axis=(1, 2, 3))  # False for NaN
        pixels[start : start + len(values)][good] = np.rint(values[good] * 255)
        unreadable |= {start + int(row): "has values outside [0, 1]" for row in np.flatnonzero(~good)}
    return pixels, unreadable


def _label_names(path: Path, labels: NDArray[np.generic], count: int, names: Mapping[str, str] | None) -> list[str]:
    """Labels (N,) or (N, 1), integers or text, as text."""
    if labels.shape not in ((count,), (count, 1)):
        raise UserError(f"{path} does not hold one label for each image: give labels of shape (N,) or (N, 1).")
    if labels.dtype.kind not in "iuU":
        raise UserError(f"{path} holds labels of type {labels.dtype}: give whole numbers or text.")
    texts = [str(label) for label in labels.reshape(-1).tolist()]
    if names is None:
        return texts
    if not names.keys() >= set(texts):
        raise UserError(f"{path} has labels that the list of its classes does not name: get both again.")
    return [names[text] for text in texts]
