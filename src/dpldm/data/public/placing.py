"""Put a drawn shape into an image: random size, position, rotation, shear, stretch, and wobbling lines.

Shapes come in at any size; they leave in a square of `2 * image_size` pixels, which `halve` then averages
down. Working at twice the size keeps the edges smooth (2 x 2 supersampling).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SUPERSAMPLING = 2
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Jitter:
    """How far a shape may be moved. Every value is drawn uniformly from its range.

    Args:
        box: longest side of the placed shape's bounding box, as fractions (low, high) of the image side.
        degrees: rotation in [-degrees, degrees].
        shear: horizontal shear in [-shear, shear].
        stretch: ratio of width to height is multiplied by exp(u), u in [-log stretch, log stretch].
        shift: share of the free margin used for the offset, 0 = centred, 1 = up to the border.
        wobble: standard deviation of a smooth displacement, as a fraction of the image side.
        flip: whether half of the shapes are mirrored left to right.
    """

    box: tuple[float, float]
    degrees: float
    shear: float
    stretch: float
    shift: float
    wobble: float = 0.0
    flip: bool = False


def crop(layers: NDArray[np.uint8], threshold: int = 16) -> NDArray[np.uint8]:
    """Cut uint8 layers (K, H, W) to the bounding box of layer 0 above `threshold`; (K, 0, 0) if blank."""
    rows = np.flatnonzero((layers[0] > threshold).any(axis=1))
    columns = np.flatnonzero((layers[0] > threshold).any(axis=0))
    if not len(rows):
        return layers[:, :0, :0]
    return layers[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def place(layers: NDArray[np.uint8], image_size: int, jitter: Jitter, rng: np.random.Generator) -> Float:
    """Place the cropped uint8 layers (K, h, w), all by the same random map.

    Returns: float32 (K, 2 * image_size, 2 * image_size) in [0, 1], zero outside the shape.
    """
    side = image_size * SUPERSAMPLING
    height, width = layers.shape[1:]
    matrix = _random_matrix(width, height, jitter, rng)  # unit square, centred -> pixels of the result
    extent = np.abs(matrix).sum(axis=1)
    matrix *= side * rng.uniform(*jitter.box) / extent.max()
    margin = np.maximum(side - np.abs(matrix).sum(axis=1), 0.0) / 2
    centre = (side - 1) / 2 + jitter.shift * margin * rng.uniform(-1, 1, 2)
    offset = np.indices((side, side), dtype=np.float32)[::-1] - centre.astype(np.float32)[:, None, None]
    if jitter.wobble:
        offset += smooth_noise(2, side, 4, rng) * np.float32(jitter.wobble * side)
    x, y = np.tensordot(np.linalg.inv(matrix).astype(np.float32), offset, axes=1)
    source = np.stack([(y + 0.5) * height - 0.5, (x + 0.5) * width - 0.5])
    placed = [ndimage.map_coordinates(layer, source, np.float32, order=1, cval=0.0) for layer in layers]
    return np.asarray(np.stack(placed) / np.float32(255), dtype=np.float32)


def halve(images: Float) -> Float:
    """Average 2 x 2 pixels: (..., 2S, 2S) -> (..., S, S)."""
    *lead, height, width = images.shape
    blocks = images.reshape(*lead, height // 2, 2, width // 2, 2)
    return np.asarray(blocks.mean(axis=(-3, -1), dtype=np.float32))


def smooth_noise(count: int, side: int, cells: int, rng: np.random.Generator) -> Float:
    """Smooth random fields (count, side, side) with `cells` cells a side and unit variance at their nodes."""
    nodes = rng.standard_normal((count, cells + 1, cells + 1), dtype=np.float32)
    position = np.linspace(0, cells, side, dtype=np.float32)[:, None]
    distance = np.clip(np.abs(position - np.arange(cells + 1, dtype=np.float32)), 0, 1)
    weights = (0.5 + 0.5 * np.cos(np.pi * distance)).astype(np.float32)  # raised cosine: rows sum to one
    return np.asarray(weights @ nodes @ weights.T, dtype=np.float32)


def _random_matrix(width: int, height: int, jitter: Jitter, rng: np.random.Generator) -> NDArray[np.float64]:
    angle = np.deg2rad(rng.uniform(-jitter.degrees, jitter.degrees))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, rng.uniform(-jitter.shear, jitter.shear)], [0.0, 1.0]])
    root = np.exp(rng.uniform(-0.5, 0.5) * np.log(jitter.stretch))
    mirrored = -1.0 if jitter.flip and rng.random() < 0.5 else 1.0
    return np.asarray(rotation @ shear @ np.diag([mirrored * width * root, height / root]))
