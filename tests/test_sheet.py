"""The contact sheet: every image where it belongs, enlarged without smoothing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpldm.sheet import contact_sheet, save_contact_sheet


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
    sheet = np.asarray(contact_sheet(images, np.array(labels), columns, scale))
    present = sorted(set(labels))
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
        assert picture.size == ((20 * 4 - 1) * 2, (2 * 4 - 1) * 2)
