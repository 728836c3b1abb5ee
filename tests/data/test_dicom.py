"""DICOM: numbers in the modality's unit, shown by a declared window or the header's own."""

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dpldm.data.decode import Unreadable, decode
from dpldm.data.ingest import ingest
from dpldm.data.preprocessing import Preprocessing
from dpldm.data.readers import open_source
from dpldm.errors import MissingExtra, UserError
from miniatures import dicom_bytes, png, put

STORED = np.array([[0, 1, 2], [1000, 2000, 4095]], dtype=np.uint16)
CT: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": -1024}
OWN: dict[str, Any] = {"WindowCenter": 40, "WindowWidth": 400}


def shown(data: bytes, window: tuple[int, int] | None = None) -> np.ndarray:
    """The grey levels of a square image."""
    image = decode(data)
    side = image.width
    return Preprocessing(image_size=side, channels=1, window=window).apply(image)[..., 0]


def square(values: list[int], dtype: Any = np.uint16) -> np.ndarray:
    side = round(len(values) ** 0.5)
    return np.array(values, dtype=dtype).reshape(side, side)


def test_values_are_in_the_unit_of_the_modality() -> None:
    image = decode(dicom_bytes(STORED, BitsStored=12, HighBit=11, **CT))
    assert image.mode == "I"
    assert np.array_equal(np.asarray(image), STORED.astype(int) - 1024)
    image = decode(dicom_bytes(STORED.astype(np.int16) - 500, RescaleSlope=2.5, RescaleIntercept=0))
    assert np.array_equal(np.asarray(image), np.rint((STORED.astype(int) - 500) * 2.5))


def test_a_declared_window_is_in_that_unit() -> None:
    data = dicom_bytes(square([0, 24, 1024, 1424]), **CT)  # -1024, -1000, 0 and 400 HU
    assert shown(data, (-1000, 400)).reshape(-1).tolist() == [0, 0, 182, 255]


def test_without_one_the_headers_own_window_is_used_and_a_declared_one_goes_first() -> None:
    """PS3.3 C.11.2.1.2: centre 40, width 400 goes from 40 - 0.5 - 399 / 2 to 40 - 0.5 + 399 / 2."""
    data = dicom_bytes(square([1024 - 160, 1024 + 39, 1024 + 40, 1024 + 239]), **CT, **OWN)
    low, high = 40 - 0.5 - 399 / 2, 40 - 0.5 + 399 / 2
    expected = [round(255 * (value - low) / (high - low)) for value in (-160, 39, 40, 239)]
    assert expected[0] == 0
    assert expected[3] == 255
    assert shown(data).reshape(-1).tolist() == expected
    assert shown(data, (-160, 40)).reshape(-1).tolist() == [0, 254, 255, 255]
    several = dicom_bytes(square([0, 1, 2, 3]), **CT, WindowCenter=[40, 300], WindowWidth=[400, 2000])
    assert decode(several).info["window"] == (low, high)


@pytest.mark.parametrize("own", [{}, {"WindowCenter": 40}, {"WindowCenter": 40, "WindowWidth": 0}])
def test_without_any_window_it_is_unreadable(own: dict[str, Any]) -> None:
    with pytest.raises(Unreadable, match="no window is declared"):
        shown(dicom_bytes(square([0, 1, 2, 3]), **own))


def test_low_is_black_also_where_the_device_means_white() -> None:
    values = square([0, 100, 4000, 4095])
    plain = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 1000, "WindowWidth": 3000}
    upright = shown(dicom_bytes(values, **plain))
    turned = shown(dicom_bytes(values, **plain, PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(turned.astype(int) - (255 - upright.astype(int))).max() <= 1
    signed = dicom_bytes(square([-5, 0, 5, 9], np.int16), PhotometricInterpretation="MONOCHROME1")
    assert np.asarray(decode(signed)).reshape(-1).tolist() == [4, -1, -6, -10]
    eight = dicom_bytes(square([0, 1, 254, 255], np.uint8), PhotometricInterpretation="MONOCHROME1")
    assert shown(eight).reshape(-1).tolist() == [255, 254, 1, 0]


def test_eight_bits_and_colour_need_no_window() -> None:
    assert shown(dicom_bytes(square([0, 7, 128, 255], np.uint8))).reshape(-1).tolist() == [0, 7, 128, 255]
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = decode(dicom_bytes(colours))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), colours)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"NumberOfFrames": 2}, "more than one frame"),
        ({"Rows": 60000, "Columns": 60000}, "megapixels"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette"),
        ({"RescaleSlope": "1e20"}, "more than 30 bits"),
        ({"Rows": 3}, "cannot be decoded as DICOM"),
    ],
)
def test_what_cannot_be_an_image_is_unreadable(elements: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        decode(dicom_bytes(square([0, 1, 2, 3]), **elements))


def test_a_deflated_file_is_not_unpacked() -> None:
    data = dicom_bytes(square([0, 1, 2, 3]))
    with pytest.raises(Unreadable, match="deflated"):
        decode(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99", 1))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_damaged_files_are_unreadable_and_nothing_else(
    data: st.DataObject, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = bytearray(dicom_bytes(STORED, **CT, **OWN))
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(132, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(140, len(damaged))) :]
    with contextlib.suppress(Unreadable):
        decode(bytes(damaged))
    assert not [warning for warning in recwarn.list if "pydicom" in warning.filename], "they quote the file"
    assert not caplog.records


def test_class_folders_and_tables_may_hold_dicom(tmp_path: Path) -> None:
    for row in range(10):
        put(tmp_path / "set" / f"c{row % 2}" / f"{row}.dcm", dicom_bytes(np.full((4, 4), 10 * row, np.uint8)))
    source = open_source(tmp_path / "set")
    assert source.labels == ["c0"] * 5 + ["c1"] * 5
    lines = [f"c{row % 2}/{row}.dcm,{row}" for row in range(10)]
    put(tmp_path / "set" / "metadata.csv", "\n".join(["file_name,label", *lines]))
    source = open_source(tmp_path / "set")
    assert source.labels == ["0", "2", "4", "6", "8", "1", "3", "5", "7", "9"]
    assert [np.asarray(source.image(row)).max() for row in range(10)] == [0, 20, 40, 60, 80, 10, 30, 50, 70, 90]


def test_headers_of_damaged_files_and_pictures_are_empty(tmp_path: Path) -> None:
    put(tmp_path / "a.dcm", dicom_bytes(STORED, **CT, PatientID=" p1 "))
    put(tmp_path / "b.dcm", b"junk")
    put(tmp_path / "c.png", png(1))
    put(tmp_path / "1.2.840.5", dicom_bytes(STORED, **CT))
    put(tmp_path / "notes", b"text")
    source = open_source(tmp_path, group_column="PatientID")
    assert source.keys == ["1.2.840.5", "a.dcm", "b.dcm", "c.png"]
    assert source.groups == ["", "p1", "", ""]
    assert source.labels is None
    assert source.ignored == ["notes"]


def test_pictures_alone_have_no_headers(tmp_path: Path) -> None:
    put(tmp_path / "c.png", png(1))
    with pytest.raises(UserError, match="no table of metadata"):
        open_source(tmp_path, group_column="PatientID")


def test_ingest_is_one_record_at_a_time(tmp_path: Path) -> None:
    """What a record becomes does not depend on what lies beside it."""
    rng = np.random.default_rng(0)
    for row in range(11):
        pixels = rng.integers(0, 2000, (6, 6)).astype(np.uint16)
        put(tmp_path / f"{row:02d}.dcm", dicom_bytes(pixels, **CT, WindowCenter=40 * row, WindowWidth=100 + row))
    before = ingest(open_source(tmp_path), Preprocessing(4, 1), None)
    put(tmp_path / "03.dcm", b"junk")
    after = ingest(open_source(tmp_path), Preprocessing(4, 1), None)
    others = np.arange(11) != 3
    assert np.array_equal(before.pixels[others], after.pixels[others])
    assert after.null.tolist() == (~others).tolist()


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.dcm", dicom_bytes(STORED))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtra, match=r"dpldm\[dicom\]"):
        open_source(tmp_path).image(0)
    with pytest.raises(MissingExtra, match=r"dpldm\[dicom\]"):
        open_source(tmp_path, group_column="PatientID")


def test_a_picture_text_called_window_is_not_a_window() -> None:
    from PIL.PngImagePlugin import PngInfo

    texts, buffer = PngInfo(), io.BytesIO()
    texts.add_text("window", "0, 1")
    Image.fromarray(STORED).save(buffer, "PNG", pnginfo=texts)
    with pytest.raises(Unreadable, match="no window is declared"):
        Preprocessing(3, 1).apply(decode(buffer.getvalue()))
