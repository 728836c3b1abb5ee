import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dpldm.data.public.placing import Jitter, crop, halve, place, smooth_noise

STILL = Jitter(box=(1.0, 1.0), degrees=0, shear=0, stretch=1, shift=0)


@given(st.integers(0, 10), st.integers(0, 10), st.integers(1, 6), st.integers(1, 6))
def test_crop_finds_the_drawn_rectangle(top: int, left: int, height: int, width: int) -> None:
    layers = np.zeros((2, 20, 20), np.uint8)
    layers[0, top : top + height, left : left + width] = 200
    layers[1] = np.arange(20)
    expected = layers[:, top : top + height, left : left + width]
    np.testing.assert_array_equal(crop(layers), expected)


def test_crop_of_nothing_is_empty() -> None:
    assert crop(np.full((1, 5, 5), 3, np.uint8)).shape == (1, 0, 0)


@given(
    shape=st.tuples(st.integers(3, 50), st.integers(3, 50)),
    low=st.floats(0.4, 0.9),
    seed=st.integers(0, 2**32),
    flip=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_placed_shape_stays_inside_and_fills_its_box(
    shape: tuple[int, int], low: float, seed: int, flip: bool
) -> None:
    jitter = Jitter(box=(low, 1.0), degrees=20, shear=0.3, stretch=2.0, shift=1.0, flip=flip)
    placed = place(np.full((1, *shape), 255, np.uint8), 32, jitter, np.random.default_rng(seed))
    assert placed.shape == (1, 64, 64)
    assert placed.min() >= 0
    assert placed.max() <= 1
    rows, columns = np.nonzero(placed[0] > 0.05)
    longest = max(np.ptp(rows), np.ptp(columns)) + 1
    # A thin shape may fade at its corners; otherwise the box is met to three pixels of 64 and a source pixel,
    # which interpolation fades out at the border.
    if min(shape) >= 12:
        assert 64 * low - 3 - 64 / min(shape) <= longest <= 64


def test_without_jitter_a_square_is_only_resized() -> None:
    square = np.array([[0, 255], [255, 0]], np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    placed = place(square[None], 16, STILL, np.random.default_rng(0))
    np.testing.assert_allclose(placed[0], square / 255, atol=1e-5)


def test_flip_mirrors_about_half_of_the_shapes() -> None:
    ramp = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))[None]
    jitter = Jitter(box=(1.0, 1.0), degrees=0, shear=0, stretch=1, shift=0, flip=True)
    rng = np.random.default_rng(0)
    leftward = [place(ramp, 16, jitter, rng)[0, 16, 4] > 0.5 for _ in range(60)]
    assert 15 < sum(leftward) < 45


def test_halve_averages_blocks() -> None:
    image = np.random.default_rng(0).random((3, 6, 8), dtype=np.float32)
    expected = (image[:, ::2, ::2] + image[:, 1::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(halve(image), expected, rtol=1e-6)


def test_smooth_noise_has_unit_variance_at_its_nodes_and_small_steps_between() -> None:
    fields = smooth_noise(3000, 33, 4, np.random.default_rng(0))
    nodes = fields[:, ::8, ::8]
    np.testing.assert_allclose(nodes.std(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(np.corrcoef(nodes[:, 0, 0], nodes[:, 0, 1])[0, 1], 0, atol=0.06)
    # The steepest slope of a raised cosine over 8 pixels is pi / 16 a pixel, per difference of two nodes.
    steps = np.abs(np.diff(fields, axis=2)).max()
    assert steps <= np.pi / 16 * np.abs(np.diff(nodes, axis=2)).max() + 1e-5
