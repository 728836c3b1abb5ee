"""Turn flat silhouettes into grey pictures that look like photographs of cloth and objects on a plain ground.

Texture and contrast augmentation: a silhouette is filled with a smooth random field (gradient, folds, noise
in several octaves), sometimes a woven pattern and seams, darkened towards its edge, and set on a black or
plain background. Everything is drawn for a whole batch at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from dpldm.data.public.placing import Float, smooth_noise


def fill_silhouette(mask: Float) -> Float:
    """The area inside the outer contour of a mask (H, W) in [0, 1]: float32 (H, W), holes filled with 1.

    Gaps of a contour up to H / 32 wide are closed first, so that a broken outline is filled as well.
    """
    reach = max(1, len(mask) // 24)
    closed = ndimage.binary_closing(np.pad(mask > 0.2, reach), iterations=reach)
    filled = ndimage.binary_fill_holes(closed)[reach:-reach, reach:-reach]
    return np.asarray(np.maximum(mask, filled), dtype=np.float32)


def shade(masks: Float, silhouettes: Float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Shade a batch of shapes.

    Args:
        masks: (N, H, H) in [0, 1], the shape as drawn, with its holes and inner lines.
        silhouettes: (N, H, H) in [0, 1], the filled shape; where it exceeds the mask there is a hole.
        rng: source of all randomness.

    Returns: uint8 (N, H, H).
    """
    count, side = masks.shape[:2]
    # A quarter keeps its holes open; the others are solid, with holes or lines at most darker.
    is_open = _some(count, 0.25, rng)
    body = np.where(is_open, masks, silhouettes)
    tone = _column(rng.uniform(0.4, 1.0, count))
    relief = _folds(count, side, rng) + _texture(count, side, rng)
    level = tone * (1 + relief) * (1 - _lines(masks, silhouettes, rng)) * (1 - _seams(count, side, rng))
    level *= 1 - _edges(body, rng)
    level += _column(rng.uniform(0, 0.2, count) ** 2) * rng.standard_normal(masks.shape, dtype=np.float32)
    ground = _column(np.where(rng.random(count) < 0.9, 0.0, rng.uniform(0, 0.25, count)))
    return _to_bytes(ground + body * (np.clip(level, 0.04, 1) - ground))


def flat(masks: Float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Plain shapes, uint8 (N, H, H): most light on black, some grey on grey, some dark on light."""
    count = len(masks)
    kind = _column(rng.random(count))
    ink = _column(rng.uniform(0.5, 1.0, count))
    ground = _column(rng.uniform(0, 0.3, count))
    ink = np.where(kind < 0.45, 1.0, ink)
    ground = np.where(kind < 0.75, 0.0, ground)
    image = ground + masks * (ink - ground)
    return _to_bytes(np.where(kind < 0.88, image, 1 - image))


def colour(layers: Float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Colour shapes on a plain ground: uint8 (N, H, H, 3).

    `layers` (N, 4, H, H) holds opacity and the colours red, green and blue times opacity, in [0, 1]. Half
    of the grounds are white, the others any light colour or (a tenth) dark grey.
    """
    count = len(layers)
    kind = rng.random((count, 1))
    ground = np.where(kind < 0.5, 1.0, rng.uniform(0.6, 1.0, (count, 3)))
    ground = np.where(kind > 0.9, rng.uniform(0, 0.3, (count, 1)), ground)
    image = layers[:, 1:] + (1 - layers[:, :1]) * ground[:, :, None, None]
    return _to_bytes(image.transpose(0, 2, 3, 1))


def _to_bytes(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(image * 255), 0, 255), dtype=np.uint8)


def _column(values: ArrayLike) -> Float:
    """One value for each image, to be spread over its pixels: (N,) -> float32 (N, 1, 1)."""
    return np.asarray(values, dtype=np.float32)[:, None, None]


def _some(count: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    return (rng.random(count) < share)[:, None, None]


def _plane(count: int, side: int, rng: np.random.Generator) -> Float:
    """Coordinate along a random direction for each image, in units of half the side: (N, side, side)."""
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    angle = _column(rng.uniform(0, 2 * np.pi, count))
    return np.asarray(np.cos(angle) * axis[None, None, :] + np.sin(angle) * axis[None, :, None], dtype=np.float32)


def _folds(count: int, side: int, rng: np.random.Generator) -> Float:
    """Light from one side, a few broad folds, and clouds in three octaves."""
    light = _column(rng.uniform(0, 0.3, count)) * _plane(count, side, rng)
    waves = np.sin(_column(rng.uniform(2, 9, count)) * _plane(count, side, rng) + _column(rng.uniform(0, 6.3, count)))
    clouds = sum(smooth_noise(count, side, cells, rng) / np.float32(cells**0.5) for cells in (2, 5, 11))
    folded = _some(count, 0.4, rng) * _column(rng.uniform(0.05, 0.25, count))
    return np.asarray(light + folded * waves + _column(rng.uniform(0.02, 0.3, count)) * clouds, dtype=np.float32)


def _texture(count: int, side: int, rng: np.random.Generator) -> Float:
    """Stripes, checks or a knit of slightly bent threads on two fifths of the images."""
    period = rng.uniform(2.2, 12.0, count)  # pixels
    frequency = _column(np.pi * side / period)
    bend = _column(rng.uniform(0, 0.05, count)) * smooth_noise(count, side, 4, rng)
    angle = _column(rng.choice([0.0, 0.5, 0.25], count, p=[0.45, 0.4, 0.15]) * np.pi + rng.normal(0, 0.08, count))
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    along = np.cos(angle) * axis[None, None, :] + np.sin(angle) * axis[None, :, None] + bend
    across = np.cos(angle) * axis[None, :, None] - np.sin(angle) * axis[None, None, :] + bend
    warp = np.sin(frequency * along)
    weft = np.sin(frequency * across)
    kind = _column(rng.random(count))
    pattern = np.where(kind < 0.5, warp, np.where(kind < 0.75, (warp + weft) / 2, warp * weft))
    hard = np.clip(pattern * 3, -1, 1)
    strength = _some(count, 0.4, rng) * _column(rng.uniform(0.04, 0.35, count))
    return np.asarray(strength * np.where(_some(count, 0.4, rng), hard, pattern), dtype=np.float32)


def _lines(masks: Float, silhouettes: Float, rng: np.random.Generator) -> Float:
    """Darkening of holes (of solid icons) or strokes (of outline icons); none on a quarter of the images."""
    hole = np.clip(silhouettes - masks, 0, 1)
    area = np.maximum(silhouettes.sum(axis=(1, 2), keepdims=True), 1e-6)
    outlined = hole.sum(axis=(1, 2), keepdims=True) > 0.5 * area
    depth = _some(len(masks), 0.75, rng) * _column(rng.uniform(0.1, 0.7, len(masks)))
    return np.asarray(depth * np.where(outlined, masks, hole), dtype=np.float32)


def _seams(count: int, side: int, rng: np.random.Generator) -> Float:
    """A thin dark line across a third of the images."""
    offset = _plane(count, side, rng) - _column(rng.normal(0, 0.25, count))
    distance = offset * side / 2  # pixels
    strength = _some(count, 0.33, rng) * _column(rng.uniform(0.1, 0.6, count))
    return np.asarray(strength * np.exp(-((distance / 0.7) ** 2)), dtype=np.float32)


def _edges(body: Float, rng: np.random.Generator) -> Float:
    """Darkening (or, seldom, a bright rim) where the body ends."""
    inside = ndimage.gaussian_filter(body, (0, body.shape[1] / 20, body.shape[1] / 20))
    return np.asarray(_column(rng.uniform(-0.15, 0.5, len(body))) * (1 - inside), dtype=np.float32)
