"""The contact sheet: every image where it belongs, enlarged without smoothing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpldm.sheet import WIDEST, _fonts, _written, contact_sheet, save_contact_sheet


def numbered(count: int, size: int = 3, channels: int = 1) -> np.ndarray:
    """Image k is grey level k."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, size, size, channels)).copy()


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    columns=st.integers(1, 6),
    scale=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
)
def test_a_row_is_a_class(labels: list[int], columns: int, scale: int, channels: int) -> None:
    images = numbered(len(labels), channels=channels)
    sheet = np.asarray(contact_sheet(images, np.array(labels), columns=columns, scale=scale))
    present = sorted(set(labels))
    columns = min(columns, max(map(labels.count, present)))
    assert sheet.shape[:2] == ((len(present) * 4 - 1) * scale, (columns * 4 - 1) * scale)
    assert sheet.ndim == (2 if channels == 1 else 3)
    grid = sheet.reshape(*sheet.shape[:2], -1)[..., 0]
    for row, label in enumerate(present):
        members = [index for index, other in enumerate(labels) if other == label]
        for column in range(columns):
            cell = grid[row * 4 * scale : (row * 4 + 3) * scale, column * 4 * scale : (column * 4 + 3) * scale]
            expected = members[column] if column < len(members) else 96
            assert np.all(cell == expected)


def test_images_without_labels_fill_ten_rows_in_order() -> None:
    images = numbered(250, size=2)
    sheet = np.asarray(contact_sheet(images, np.full(250, -1), columns=20, scale=1))
    assert sheet.shape == (10 * 3 - 1, 20 * 3 - 1)
    assert sheet[::3, ::3].flatten().tolist() == list(range(200))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_is_saved_as_a_picture(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "sheet.png"
    save_contact_sheet(path, numbered(4, channels=channels), np.array([0, 1, 0, 1]))
    with Image.open(path) as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        assert picture.size == ((2 * 4 - 1) * 2, (2 * 4 - 1) * 2)


def test_names_stand_left_of_their_rows() -> None:
    """The same images as without names, and in each row's margin something dark that the others' do not show."""
    images, labels, names = numbered(8, size=14), np.array([0, 1, 2, 0, 1, 2, 0, 1]), ("no finding", "i", "Größe")
    plain, named = (np.asarray(contact_sheet(images, labels, given)) for given in ((), names))
    margin = named.shape[1] - plain.shape[1]
    assert np.array_equal(named[:, margin:], plain)
    rows = [named[30 * row : 30 * row + 29, :margin] for row in range(3)]
    assert all((row.min(), row.max()) == (0, 255) for row in rows)
    ink = [int((row < 128).sum()) for row in rows]
    assert ink[0] > ink[2] > ink[1], "more letters, more ink"


@pytest.mark.parametrize("name", ["плеврит", "\u202eevil\x1b[2J", "x" * 500, " ", "\U0001f9ea", "胸水", "a\nb"])
def test_any_name_leaves_a_sheet_that_is_no_wider_than_it_may_be(name: str) -> None:
    sheet = contact_sheet(numbered(2, size=14), np.array([0, 1]), (name, "normal"), columns=1)
    assert sheet.size[1] == (2 * 15 - 1) * 2
    assert 28 < sheet.size[0] <= 28 + WIDEST + 40


def test_a_script_that_no_font_here_has_is_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpldm.sheet.FONTS", ())
    _fonts.cache_clear()
    assert [_written(name, 3, 12)[0] for name in ("胸水", "effusion")] == ["class 3", "effusion"]
    _fonts.cache_clear()
