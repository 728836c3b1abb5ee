from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from dpldm.data.public.shading import colour, fill_silhouette, flat, shade


def disc(radius: float, side: int = 32) -> np.ndarray:
    axis = np.arange(side) - (side - 1) / 2
    return np.asarray(np.hypot(axis[:, None], axis[None, :]) < radius, dtype=np.float32)


def ring_batch(count: int) -> tuple[np.ndarray, np.ndarray]:
    ring = disc(13) - disc(6)
    return np.repeat(ring[None], count, 0), np.repeat(disc(13)[None], count, 0)


def test_a_ring_is_filled_to_a_disc_and_a_disc_stays() -> None:
    np.testing.assert_array_equal(fill_silhouette(disc(13) - disc(9)), disc(13))
    np.testing.assert_array_equal(fill_silhouette(disc(13)), disc(13))


def test_a_ring_with_a_small_gap_is_filled_too() -> None:
    broken = disc(26, 64) - disc(22, 64)
    broken[31:33, 40:] = 0
    assert not ndimage.binary_fill_holes(broken)[32, 32]
    filled = fill_silhouette(broken)
    assert filled[32, 32] == 1
    assert filled.sum() <= disc(27, 64).sum()


def test_shading_stays_inside_the_silhouette_on_a_plain_ground() -> None:
    masks, silhouettes = ring_batch(200)
    images = shade(masks, silhouettes, np.random.default_rng(0))
    assert images.shape == (200, 32, 32)
    assert images.dtype == np.uint8
    outside = images[:, silhouettes[0] == 0]
    assert (outside == outside[:, :1]).all()
    assert 0.82 < (outside[:, 0] == 0).mean() < 0.97
    inside = images[:, masks[0] == 1]
    assert (inside > 0).all()
    assert np.median(inside.std(axis=1)) > 8  # texture, not one grey level


def test_holes_are_open_in_some_images_dark_in_others_and_shut_in_the_rest() -> None:
    masks, silhouettes = ring_batch(600)
    images = shade(masks, silhouettes, np.random.default_rng(1)).astype(float)
    hole = images[:, disc(4) == 1].mean(axis=1)
    rim = images[:, (disc(11) - disc(8)) == 1].mean(axis=1)
    ground = images[:, 0, 0]
    is_open = np.abs(hole - ground) < 1
    assert 0.18 < is_open.mean() < 0.33
    darker = (hole < 0.75 * rim) & ~is_open
    assert 0.15 < darker.mean() < 0.7
    assert (hole > 0.9 * rim).mean() > 0.15


@pytest.mark.parametrize("paint", [lambda rng: shade(*ring_batch(20), rng), lambda rng: flat(ring_batch(20)[0], rng)])
def test_equal_seeds_paint_equal_images(paint: Callable[[np.random.Generator], np.ndarray]) -> None:
    first, second, other = (paint(np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_flat_images_hold_two_levels_mostly_light_on_black() -> None:
    masks, _ = ring_batch(400)
    images = flat(masks, np.random.default_rng(0)).astype(int)
    ink, ground = images[:, masks[0] == 1], images[:, masks[0] == 0]
    assert (ink == ink[:, :1]).all()
    assert (ground == ground[:, :1]).all()
    light = ink[:, 0] > ground[:, 0]
    assert 0.82 < light.mean() < 0.94
    assert 0.68 < ((ground[:, 0] == 0) & light).mean() < 0.82


def test_colour_lays_the_shape_over_its_ground() -> None:
    layers = np.zeros((50, 4, 8, 8), np.float32)
    layers[:, 0, 2:6, 2:6] = 1
    layers[:, 1, 2:6, 2:6] = 1  # opaque red
    layers[:, 0, 0, 0] = 0.5  # half opaque black
    images = colour(layers, np.random.default_rng(0))
    assert images.shape == (50, 8, 8, 3)
    np.testing.assert_array_equal(images[:, 3, 3], np.tile([255, 0, 0], (50, 1)))
    np.testing.assert_allclose(images[:, 0, 0], images[:, 7, 7] / 2, atol=1)
    assert 0.3 < (images[:, 7, 7] == 255).all(axis=1).mean() < 0.7
