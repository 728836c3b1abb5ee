"""DICOM files: to a Pillow image, and what their headers say of a record (pydicom, the extra `dicom`).

A scanner stores numbers, not colours. They come out in the unit that the header gives (Hounsfield units for CT), high
meaning white whatever the device's own convention, and become black and white by `data.window`, or by the window that
the header of this one image names. Nothing depends on another image.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpldm.data.decode import MAX_PIXELS, TOO_MANY_PIXELS, Unreadable, read_file
from dpldm.data.folders import FolderSource, open_folder
from dpldm.data.names import PICTURE_SUFFIXES
from dpldm.data.preprocessing import OWN_WINDOW
from dpldm.data.source import Wanted
from dpldm.errors import MissingExtra, UserError

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # the transfer syntax whose data set is one zlib stream of any size


def decode_dicom(data: bytes) -> Image.Image:
    """The image in a DICOM file: mode L (8 bits), I (more, in the modality's unit, with its window) or RGB.

    Raises:
        Unreadable: it holds no single image of at most `MAX_PIXELS`, or is compressed in a way that nothing here reads.
        MissingExtra: pydicom is not installed.
    """
    pydicom = _pydicom("Reading DICOM")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the file
            return _image(pydicom, _dataset(pydicom, data))
    except Unreadable:
        raise
    except Exception as error:  # pydicom raises anything on damaged files
        raise Unreadable(f"cannot be decoded as DICOM ({type(error).__name__})") from None


def open_dicom_folder(path: Path, wanted: Wanted) -> FolderSource | None:
    """A folder of DICOM files, and elements of their headers as columns, by DICOM's own keywords (PatientID).

    None for any other folder, and if no column is named: then DICOM files are images like others (`open_folder`). A
    file that lacks an element, or cannot be read, has the empty text.

    Raises:
        UserError: DICOM knows no such keyword.
        MissingExtra: pydicom is not installed.
    """
    if not wanted.names_columns or not path.is_dir():
        return None
    source = open_folder(path)
    if all(Path(key).suffix.lower() in PICTURE_SUFFIXES for key in source.keys):
        return None
    pydicom = _pydicom("Reading the headers of DICOM files")
    names = [name for name in (wanted.label, wanted.caption, wanted.group) if name is not None]
    for name in names:
        if pydicom.datadict.tag_for_keyword(name) is None:
            raise UserError(f"DICOM has no element {name!r}: name a column by a keyword of DICOM, such as PatientID.")
    headers = [_header(pydicom, path, key, names) for key in source.keys]

    def column(name: str | None) -> list[str] | None:
        return None if name is None else [header.get(name, "") for header in headers]

    return replace(
        source,
        layout="DICOM folder",
        labels=source.labels if wanted.label is None else column(wanted.label),
        captions=column(wanted.caption),
        groups=column(wanted.group),
    )


def _header(pydicom: Any, root: Path, key: str, names: Sequence[str]) -> dict[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _dataset(pydicom, read_file(root, key), stop_before_pixels=True, specific_tags=list(names))
            return {name: str(found.get(name) or "").strip() for name in names}
    except Exception:
        return {}


def _pydicom(purpose: str) -> Any:
    try:
        import pydicom
        import pydicom.config
        import pydicom.datadict
        import pydicom.pixels
    except ImportError:
        raise MissingExtra("pydicom", "dicom", purpose) from None
    pydicom.config.logger.disabled = True  # it quotes the file
    return pydicom


def _dataset(pydicom: Any, data: bytes, **options: Any) -> Any:
    if _DEFLATED in data[:4096]:
        raise Unreadable("is a deflated DICOM file, which may unpack to any size")
    return pydicom.dcmread(io.BytesIO(data), **options)


def _image(pydicom: Any, found: Any) -> Image.Image:
    if int(found.Rows) * int(found.Columns) * int(found.get("SamplesPerPixel", 1)) > 3 * MAX_PIXELS:
        raise Unreadable(TOO_MANY_PIXELS)
    if int(found.get("NumberOfFrames") or 1) != 1:
        raise Unreadable("has more than one frame")
    # Luminance and chrominance come out as RGB: that is what `pixel_array` does for the colour photometrics.
    pixels = pydicom.pixels.pixel_array(found)
    if pixels.ndim == 3:
        return _colour(pixels)
    return _grey(found, pixels)


def _colour(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.shape[-1] != 3:
        raise Unreadable("has colours of other than 8 bits")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _grey(found: Any, stored: NDArray[Any]) -> Image.Image:
    if found.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise Unreadable("has a palette or another colour space than grey and RGB")
    slope, intercept = float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))
    values = stored.astype(np.float64) * slope + intercept
    if not (np.abs(values) < 2**30).all():  # also where it is not a number
        raise Unreadable("has grey values of more than 30 bits")
    window = _own_window(found)
    if (
        found.PhotometricInterpretation == "MONOCHROME1"
    ):  # low means white: turned about the middle of what can be stored
        ends = -1 if found.PixelRepresentation else 2 ** int(found.BitsStored) - 1
        turn = ends * slope + 2 * intercept
        values = turn - values
        window = None if window is None else (turn - window[1], turn - window[0])
    if stored.dtype == np.uint8 and (slope, intercept) == (1, 0) and int(found.BitsStored) == 8:
        return Image.fromarray(values.astype(np.uint8))
    image = Image.fromarray(np.rint(values).astype(np.int32))
    if window is not None:
        image.info[OWN_WINDOW] = window
    return image


def _own_window(found: Any) -> tuple[float, float] | None:
    """(black, white) of the first window of a header, by the linear function of DICOM PS3.3 C.11.2.1.2."""
    centre, width = (_first(found.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or not (abs(centre) < 2**30 and 1 < width < 2**30):
        return None
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, Sequence) and not isinstance(value, str) else value)
