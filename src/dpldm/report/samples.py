"""Synthetic images for a page: some of each class, as PNG inside the page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_CLASSES = 40
MOST_OF_A_CLASS = 16
PIXELS = 2_000_000
"""That all shown images may have together, so that the page can still be sent by mail."""


@dataclass(frozen=True)
class ClassSamples:
    """The first images of one class."""

    label: str  # "" without classes
    pictures: tuple[str, ...]  # base64 of PNG files
    side: int  # pixels


def load_samples(archive: Path, labels: list[str]) -> list[ClassSamples]:
    """From a release's `synthetic.npz`; nothing if the release holds no images."""
    if not archive.is_file():
        return []
    with np.load(archive, allow_pickle=False) as arrays:
        images = arrays["x"]
        classes = arrays["y"] if labels else np.zeros(len(images), dtype=np.int64)
    return samples(images, classes, labels or [""])


def samples(images: NDArray[np.uint8], classes: NDArray[np.int64], labels: list[str]) -> list[ClassSamples]:
    """As many of each class as a page can hold, in the order in which they were drawn: nobody chose them.

    Args:
        images: (N, S, S, C).
        classes: (N,) index in `labels`.
    """
    shown, side = labels[:MOST_CLASSES], images.shape[1]
    many = min(MOST_OF_A_CLASS, max(1, PIXELS // (len(shown) * side * side)))
    return [
        ClassSamples(label, tuple(picture(image) for image in images[np.flatnonzero(classes == k)[:many]]), side)
        for k, label in enumerate(shown)
    ]


def picture(image: NDArray[np.uint8]) -> str:
    """An image (S, S, C) as base64 of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
