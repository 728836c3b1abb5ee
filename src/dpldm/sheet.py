"""A contact sheet of synthetic images: one row per class, its name beside it, as PNG."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dpldm.data.names import printable

FONTS = (
    *(
        "DejaVuSans.ttf",
        "NotoSans-Regular.ttf",
        "NotoSansCJK-Regular.ttc",
        "wqy-microhei.ttc",
        "NotoSansDevanagari-Regular.ttf",
    ),
    *("Arial Unicode.ttf", "segoeui.ttf", "msyh.ttc", "malgun.ttf", "Nirmala.ttf"),
)
"""Looked for among the system's fonts (Linux, macOS, Windows), after Pillow's own, which is Latin alone."""
LETTERS = (8, 16)
"""Least and largest size of letters, in pixels."""
WIDEST = 200
"""Pixels that a name may take; a longer one is cut."""
MARGIN = 6
NO_GLYPH = "\U0010ffff"
"""No font has a picture of it, so it shows how one draws what it has not."""


def contact_sheet(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    names: Sequence[str] = (),
    columns: int = 20,
    scale: int = 2,
) -> Image.Image:
    """The first `columns` images of every label, a row each, enlarged without smoothing; no labels: rows in order.

    Args:
        names: what label 0, 1, ... is called, to stand left of its row; none: no names.
    """
    size, channels = images.shape[1], images.shape[3]
    classes = sorted(set(labels.tolist()))
    rows = (
        [np.flatnonzero(labels == k)[:columns] for k in classes] if classes != [-1] else _in_order(len(images), columns)
    )
    gap, columns = 1, max(map(len, rows))
    sheet = np.full((len(rows) * (size + gap) - gap, columns * (size + gap) - gap, channels), 96, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            top, left = i * (size + gap), j * (size + gap)
            sheet[top : top + size, left : left + size] = images[index]
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    return (
        _named(picture, {k: names[k] for k in classes}, (size + gap) * scale) if names and classes != [-1] else picture
    )


def save_contact_sheet(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], names: Sequence[str] = ()
) -> None:
    """Write the sheet to `path`."""
    contact_sheet(images, labels, names).save(path)


def _named(picture: Image.Image, names: Mapping[int, str], height: int) -> Image.Image:
    """The picture with a name left of each of its rows, which are so high."""
    least, largest = LETTERS
    size = min(largest, max(least, height - 4))
    written = [_written(name, number, size) for number, name in names.items()]
    margin = 2 * MARGIN + max(math.ceil(font.getlength(text)) for text, font in written)
    sheet = Image.new(picture.mode, (margin + picture.width, picture.height), "white")
    sheet.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(sheet)
    for row, (text, font) in enumerate(written):
        draw.text((margin - MARGIN, row * height + height // 2), text, "black", font, anchor="rm")
    return sheet


def _written(name: str, number: int, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """What to write for a name, at most `WIDEST`, and a font that can; its number where no font here has its script."""
    text = printable(name)
    font = next((font for font in _fonts(size) if _has(font, text)), None)
    if font is None:
        return f"class {number}", _fonts(size)[0]
    kept = next(length for length in range(len(text), -1, -1) if font.getlength(text[:length]) <= WIDEST)
    return text if kept == len(text) else f"{text[: kept - 1]}...", font


def _has(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether a font has a picture of every character."""
    missing = bytes(font.getmask(NO_GLYPH))
    return all(character.isspace() or bytes(font.getmask(character)) != missing for character in set(text))


@lru_cache(maxsize=8)
def _fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    """Pillow's own, then those of `FONTS` that are there."""
    found = [font for font in [ImageFont.load_default(size)] if isinstance(font, ImageFont.FreeTypeFont)]
    for name in FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return found


def _in_order(count: int, columns: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + columns, count)) for start in range(0, min(count, 10 * columns), columns)]
