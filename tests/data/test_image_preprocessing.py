"""The fixed transform: shapes, exactness, and a reference made with NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from dpldm.data.decode import Unreadable
from dpldm.data.preprocessing import Preprocessing
from dpldm.errors import UserError

MODES = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}


@st.composite
def images(draw: st.DrawFn) -> Image.Image:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    channels = MODES[draw(st.sampled_from(sorted(MODES)))]
    return Image.fromarray(draw(hnp.arrays(np.uint8, (height, width, *channels))))


preprocessings = st.builds(
    Preprocessing,
    image_size=st.integers(1, 32),
    channels=st.sampled_from([1, 3]),
    crop=st.sampled_from(["center", "none"]),
    background=st.integers(0, 255),
)


@settings(max_examples=200, deadline=None)
@given(images(), preprocessings)
def test_shape_type_and_idempotence(image: Image.Image, preprocessing: Preprocessing) -> None:
    size, channels = preprocessing.image_size, preprocessing.channels
    once = preprocessing.apply(image)
    assert once.shape == (size, size, channels)
    assert once.dtype == np.uint8
    again = preprocessing.apply(Image.fromarray(once[..., 0] if channels == 1 else once))
    assert np.array_equal(once, again)


@given(hnp.arrays(np.uint8, (28, 28)), st.sampled_from(["center", "none"]))
def test_mnist_passes_bit_for_bit(pixels: np.ndarray, crop: str) -> None:
    image = Image.fromarray(pixels)
    assert np.array_equal(Preprocessing(28, 1, crop=crop).apply(image)[..., 0], pixels)
    assert np.array_equal(Preprocessing(28, 3, crop=crop).apply(image), np.stack([pixels] * 3, axis=-1))


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(4, 7, (0, 4), (1, 5)), (9, 4, (2, 6), (0, 4))])
def test_centre_crop(height: int, width: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    pixels = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    expected = pixels[slice(*rows), slice(*columns)]
    assert np.array_equal(Preprocessing(4, 1).apply(Image.fromarray(pixels))[..., 0], expected)


def test_padding_keeps_the_whole_image_on_the_background() -> None:
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 4)
    result = Preprocessing(4, 1, crop="none", background=200).apply(Image.fromarray(pixels))[..., 0]
    assert np.array_equal(result[1:3], pixels)
    assert (result[[0, 3]] == 200).all()


@given(st.integers(0, 255), st.integers(1, 60), st.integers(1, 60))
def test_a_constant_image_stays_constant(value: int, height: int, width: int) -> None:
    image = Image.new("L", (width, height), value)
    assert (Preprocessing(16, 1).apply(image) == value).all()


def test_shrinking_averages_instead_of_dropping_lines() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    inner = Preprocessing(16, 1).apply(Image.fromarray(stripes))[4:12, 4:12]
    assert np.abs(inner.astype(int) - 127).max() <= 3


@given(hnp.arrays(np.uint8, (6, 6, 4)), st.integers(0, 255))
def test_transparency_is_composited_on_the_background(pixels: np.ndarray, background: int) -> None:
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + background * (1 - alpha)
    result = Preprocessing(6, 3, background=background).apply(Image.fromarray(pixels))
    assert np.abs(result - expected).max() <= 1


@given(
    hnp.arrays(np.uint16, (5, 5)),
    st.tuples(st.integers(0, 65535), st.integers(0, 65535)).filter(lambda window: window[0] < window[1]),
)
def test_window_is_linear_between_its_ends(values: np.ndarray, window: tuple[int, int]) -> None:
    low, high = window
    expected = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255
    result = Preprocessing(5, 1, window=window).apply(Image.fromarray(values))[..., 0]
    assert np.abs(result - expected).max() <= 0.5 + 1e-4
    assert (result[values <= low] == 0).all()
    assert (result[values >= high] == 255).all()


def test_sixteen_bits_without_a_window_are_unreadable_and_eight_bits_ignore_it() -> None:
    deep = Image.fromarray(np.full((4, 4), 300, dtype=np.uint16))
    with pytest.raises(Unreadable, match="no window is declared"):
        Preprocessing(4, 1).apply(deep)
    shallow = Image.fromarray(np.full((4, 4), 77, dtype=np.uint8))
    assert (Preprocessing(4, 1, window=(0, 100)).apply(shallow) == 77).all()


@pytest.mark.parametrize("crop", ["center", "none"])
@pytest.mark.parametrize("size", [(1, 65535), (65535, 1)])
def test_extreme_shapes(size: tuple[int, int], crop: str) -> None:
    result = Preprocessing(8, 1, crop=crop).apply(Image.new("L", size, 255))
    assert result.shape == (8, 8, 1)
    assert result.max() == 255


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": 100_000}, "image_size"),
        ({"channels": 2}, "channels"),
        ({"window": (5, 5)}, "window"),
        ({"window": (-40_000, 5)}, "window"),
        ({"window": (0, 70000)}, "window"),
        ({"crop": "corner"}, "crop"),
        ({"background": 256}, "background"),
    ],
)
def test_impossible_constants(arguments: dict[str, object], name: str) -> None:
    with pytest.raises(UserError, match=name):
        Preprocessing(**{"image_size": 8, "channels": 1, **arguments})
