"""A contact sheet of synthetic images: one row per class, as PNG."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def contact_sheet(
    images: NDArray[np.uint8], labels: NDArray[np.int64], columns: int = 20, scale: int = 2
) -> Image.Image:
    """The first `columns` images of every label, a row each, enlarged without smoothing; no labels: rows in order."""
    size, channels = images.shape[1], images.shape[3]
    classes = sorted(set(labels.tolist()))
    rows = (
        [np.flatnonzero(labels == k)[:columns] for k in classes] if classes != [-1] else _in_order(len(images), columns)
    )
    gap = 1
    sheet = np.full((len(rows) * (size + gap) - gap, columns * (size + gap) - gap, channels), 96, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            top, left = i * (size + gap), j * (size + gap)
            sheet[top : top + size, left : left + size] = images[index]
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_contact_sheet(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Write the sheet to `path`."""
    contact_sheet(images, labels).save(path)


def _in_order(count: int, columns: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + columns, count)) for start in range(0, min(count, 10 * columns), columns)]
