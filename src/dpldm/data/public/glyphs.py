"""Public images of letters A-Z and a-z from free fonts, distorted until they resemble handwriting.

A stand-in for public handwritten letters: white on black, 26 classes, upper and lower case together.
Letters that look like a digit of their own font are left out, so that no digit is seen publicly.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from dpldm.data.public.collection import PublicSet
from dpldm.data.public.fonts import FontFile, find_fonts, held_out
from dpldm.data.public.placing import Float, Jitter, crop, halve, place
from dpldm.errors import UserError
from dpldm.progress import OnProgress, unseen

LETTERS = string.ascii_uppercase + string.ascii_lowercase
LIKE_HANDWRITING = Jitter(box=(0.64, 0.92), degrees=14, shear=0.3, stretch=1.35, shift=0.7, wobble=0.018)
DRAWN_SIZE = 64  # longest side in pixels of the glyphs in memory
FEWEST_LETTERS = 20  # a font with fewer distinct letters is a symbol font
SAME_AS_DIGIT = 0.85  # overlap (intersection / union of ink) from which a letter counts as a digit
MOST_LIKE_DIGITS = 6  # O o I l and the like; a font with more draws symbols
MISSING = "\U0010fffe"  # a code point no font has: draws the box that stands for "missing"
SAMPLE = 384


@dataclass(frozen=True)
class Glyph:
    """A letter of a font, cropped to its ink: uint8 (h, w), white on black, longest side DRAWN_SIZE."""

    family: str
    letter: str
    ink: NDArray[np.uint8]


def make_glyphs(
    folders: Sequence[Path] | None,
    *,
    image_size: int,
    count: int,
    seed: int,
    held_out_fraction: float = 0.0,
    only_held_out: bool = False,
    on_progress: OnProgress = unseen,
) -> PublicSet:
    """Draw `count` letters from the fonts below `folders`; label = letter, upper and lower case alike.

    Letters are drawn evenly over the 26 classes; within a class, a family with n glyphs has weight sqrt(n).

    Args:
        folders: where the font files are; None = fonts of the system and those bundled with matplotlib.
        image_size: side in pixels, at least 8.
        count: number of images, at least 1.
        seed: of all randomness; equal arguments give equal bytes.
        held_out_fraction: share of the font families set aside (see `fonts.held_out`), in [0, 1].
        only_held_out: False = draw from the other families, True = from those set aside.

    Raises:
        UserError: if an argument is outside its range or no font passes.
        MissingExtra: if fonttools is not installed.
    """
    if image_size < 8 or count < 1 or not 0 <= held_out_fraction <= 1:
        raise UserError("Glyphs need image_size >= 8, count >= 1 and held_out_fraction in [0, 1].")
    files_dropped: Counter[str] = Counter()
    glyphs_dropped: Counter[str] = Counter()
    fonts = find_fonts(folders, files_dropped)
    chosen = [font for font in fonts if held_out(font.family, held_out_fraction) == only_held_out]
    files_dropped["other side of the hold-out"] = len(fonts) - len(chosen)
    used, glyphs, digits = _read_glyphs(chosen, files_dropped, glyphs_dropped, on_progress)
    if not glyphs:
        raise UserError("No letters to draw: none of the font files passed the licence, hold-out and letter checks.")
    rng = np.random.default_rng(seed)
    picked = [glyphs[index] for index in _pick(glyphs, count, rng)]
    parameters = {
        "image_size": image_size,
        "count": count,
        "seed": seed,
        "held_out_fraction": held_out_fraction,
    }
    provenance = {
        "kind": "glyphs",
        "packages": {tool: version(tool) for tool in ("fonttools", "pillow", "numpy", "scipy")},
        "parameters": parameters | {"only_held_out": only_held_out},
        "jitter": asdict(LIKE_HANDWRITING),
        "fonts": [font.record() for font in used],
        "font_files_per_licence": dict(Counter(font.licence for font in used)),
        "font_files_dropped": dict(files_dropped),
        "glyphs_distinct": len(glyphs),
        "glyphs_dropped": dict(glyphs_dropped),
    }
    sample = [digits[index] for index in rng.permutation(len(digits))[:SAMPLE]]
    return PublicSet(
        images=_write(picked, image_size, rng, on_progress),
        labels=np.array([_label(glyph) for glyph in picked], np.int64),
        label_names=tuple(string.ascii_uppercase),
        families=np.array([glyph.family for glyph in picked]),
        names=np.array([glyph.letter for glyph in picked]),
        provenance=provenance,
        dropped=_write(sample, image_size, rng) if sample else None,
    )


def overlaps(first: Sequence[NDArray[np.uint8]], second: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Ink in common / ink of either, of cropped glyphs laid centre on centre.

    Returns: (len(first), len(second)) in [0, 1]. Shapes are uint8 (h, w), at most DRAWN_SIZE a side.
    """
    a, b = _centred(first)[:, None], _centred(second)[None, :]
    common = np.minimum(a, b).sum(axis=(2, 3), dtype=np.float64)
    return np.asarray(common / np.maximum(a, b).sum(axis=(2, 3), dtype=np.float64))


def _label(glyph: Glyph) -> int:
    return string.ascii_uppercase.index(glyph.letter.upper())


def _read_glyphs(
    fonts: Sequence[FontFile], files_dropped: Counter[str], glyphs_dropped: Counter[str], on_progress: OnProgress
) -> tuple[list[FontFile], list[Glyph], list[Glyph]]:
    """Fonts that hold letters, their letters without those that look like digits, and the latter."""
    used, kept, digits = [], [], []
    seen: set[tuple[str, bytes]] = set()
    for number, font in enumerate(fonts, 1):
        on_progress("fonts", number, len(fonts))
        letters = _letters_of(font)
        if len(letters) < FEWEST_LETTERS:
            files_dropped["no letters, or too few distinct ones"] += 1
            continue
        figures = [ink for ink in _draw_all(font, string.digits) if ink is not None]
        likeness = overlaps(list(letters.values()), figures).max(axis=1, initial=0.0)
        if (likeness > SAME_AS_DIGIT).sum() > MOST_LIKE_DIGITS:
            files_dropped["symbols: too many letters look like digits"] += 1
            continue
        used.append(font)
        for (letter, ink), alike in zip(letters.items(), likeness, strict=True):
            mark = (letter, ink.tobytes())
            if alike > SAME_AS_DIGIT:
                glyphs_dropped["looks like a digit of its font"] += 1
                digits.append(Glyph(font.family, letter, ink))
            elif mark in seen:
                glyphs_dropped["same as in another font"] += 1
            else:
                seen.add(mark)
                kept.append(Glyph(font.family, letter, ink))
    return used, kept, digits


def _letters_of(font: FontFile) -> dict[str, NDArray[np.uint8]]:
    """The letters a font really draws: no blanks, no "missing glyph" boxes, no shape shared by several."""
    missing = _draw_all(font, MISSING)[0]
    drawn = {letter: ink for letter, ink in zip(LETTERS, _draw_all(font, LETTERS), strict=True) if ink is not None}
    users: dict[bytes, set[str]] = {}
    for letter, ink in drawn.items():
        users.setdefault(ink.tobytes(), set()).add(letter.upper())
    return {
        letter: ink
        for letter, ink in drawn.items()
        if len(users[ink.tobytes()]) == 1 and not (missing is not None and np.array_equal(ink, missing))
    }


def _draw_all(font: FontFile, characters: str) -> list[NDArray[np.uint8] | None]:
    """Each character as uint8 (h, w), cropped, longest side DRAWN_SIZE; None where nothing is drawn."""
    try:
        face = ImageFont.truetype(font.path, 2 * DRAWN_SIZE)
        return [_draw(face, character) for character in characters]
    except OSError:  # FreeType refuses the file or the outline
        return [None] * len(characters)


def _draw(face: ImageFont.FreeTypeFont, character: str) -> NDArray[np.uint8] | None:
    left, top, right, bottom = face.getbbox(character)
    width, height = int(right - left), int(bottom - top)
    if not (0 < width < 16 * DRAWN_SIZE and 0 < height < 16 * DRAWN_SIZE):
        return None
    canvas = Image.new("L", (width + 4, height + 4))
    ImageDraw.Draw(canvas).text((2 - left, 2 - top), character, fill=255, font=face)
    cropped = crop(np.asarray(canvas)[None])
    height, width = cropped.shape[1:]
    if not height:
        return None
    size = tuple(max(1, round(side * DRAWN_SIZE / max(height, width))) for side in (width, height))
    return np.asarray(Image.fromarray(cropped[0]).resize(size, Image.Resampling.BOX))


def _centred(glyphs: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    canvas = np.zeros((len(glyphs), DRAWN_SIZE, DRAWN_SIZE), np.uint8)
    for page, ink in zip(canvas, glyphs, strict=True):
        top, left = ((DRAWN_SIZE - side) // 2 for side in ink.shape)
        page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return canvas


def _pick(glyphs: Sequence[Glyph], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `count` glyphs: as many of each class, within it by weight 1 / sqrt(size of the family)."""
    labels = np.array([_label(glyph) for glyph in glyphs])
    present = np.unique(labels)
    wanted = np.resize(present, count)
    picked = np.empty(count, np.int64)
    for label in present:
        members = np.flatnonzero(labels == label)
        sizes = Counter(glyphs[index].family for index in members.tolist())
        weights = np.array([sizes[glyphs[index].family] ** -0.5 for index in members.tolist()])
        places = np.flatnonzero(wanted == label)
        picked[places] = rng.choice(members, len(places), p=weights / weights.sum())
    return rng.permutation(picked)


def _write(
    glyphs: Sequence[Glyph], image_size: int, rng: np.random.Generator, on_progress: OnProgress = unseen
) -> NDArray[np.uint8]:
    """Place each glyph and vary the thickness of its strokes: uint8 (N, image_size, image_size, 1)."""
    images = []
    for done, glyph in enumerate(glyphs, 1):
        images.append(halve(_vary_stroke(place(glyph.ink[None], image_size, LIKE_HANDWRITING, rng), rng)))
        on_progress("letters", done, len(glyphs))
    return np.rint(np.stack(images) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _vary_stroke(image: Float, rng: np.random.Generator) -> Float:
    """Make the strokes of (1, H, H) thicker or thinner: blur, then cut at a level below or above one half.

    Light letters tend to gain and heavy ones to lose, as if written with similar pens. A cut that would
    remove more than a quarter of the ink (a hairline font falling apart) is not made.
    """
    rows, columns = (np.flatnonzero(image[0].max(axis=axis) > 0.1) for axis in (1, 0))
    coverage = image.sum() / max(1, np.ptp(rows) * np.ptp(columns))
    level = np.clip(0.3 + 0.6 * (coverage - 0.2) + rng.uniform(-0.1, 0.12), 0.2, 0.65)
    blurred = ndimage.gaussian_filter(image, (0, *[rng.uniform(0.012, 0.03) * image.shape[-1]] * 2))
    varied = np.clip((blurred - level) / rng.uniform(0.08, 0.3) + 0.5, 0, 1)
    return np.asarray(varied if varied.sum() > 0.75 * image.sum() else image, dtype=np.float32)
