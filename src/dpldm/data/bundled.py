"""The small real data set that ships with the package, written out as the folders a user would have."""

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpldm.data.export import export_images

DIGIT_NAMES = tuple(str(digit) for digit in range(10))
MARGIN = 4  # 20x20 handwriting in 28x28, as MNIST frames it


def bundled_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """OpenCV's 5,000 handwritten digits: uint8 (5000, 28, 28, 1) and labels (5000,), 500 of each class in order."""
    with resources.as_file(resources.files("dpldm") / "assets" / "digits.png") as path:
        sheet = np.asarray(Image.open(path).convert("L"))
    cells = sheet.reshape(50, 20, 100, 20).transpose(0, 2, 1, 3).reshape(5000, 20, 20)
    framed = np.pad(cells, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    return framed[..., None], np.repeat(np.arange(10), 500)


def write_digits(directory: Path) -> tuple[Path, Path]:
    """Write `directory/private` (4,000 digits) and `directory/test` (1,000) as class folders; returns both paths.

    The last 100 of every class are the test set: neighbours on the sheet look alike, so a random split would put
    the same hands on both sides.
    """
    images, labels = bundled_digits()
    test = np.arange(5000) % 500 >= 400
    for name, rows in (("private", ~test), ("test", test)):
        source = "From OpenCV's samples (Apache-2.0 and BSD-3-Clause). A public benchmark."
        card = f"# Handwritten digits, {name} part\n\n{source}\n"
        export_images(directory / name, images[rows], labels[rows], DIGIT_NAMES, card=card)
    return directory / "private", directory / "test"
