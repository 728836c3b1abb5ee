"""One image file, written by anyone, to a Pillow image in one of six modes, or `Unreadable`.

The file is hostile until shown otherwise: formats are a closed list, sizes are checked on the header,
before a pixel is decoded, and no other exception leaves this module.
"""

import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from dpldm.data.names import printable

MAX_FILE_BYTES = 64 * 2**20
"""A larger file is unreadable."""
MAX_PIXELS = 64 * 10**6
"""An image of more pixels (width x height) is unreadable."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""The decoders that are used, whatever the ending of the file's name says."""
TOO_MANY_PIXELS = f"has more than {MAX_PIXELS // 10**6} megapixels"

# Never follow a link, never wait for the writer of a FIFO.
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_EXIF_ORIENTATION = 0x0112
_DICOM_MARK = slice(128, 132)
_TIFF_PHOTOMETRIC = 262
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(Exception):
    """A record holds no usable image. `reason` is short, printable and INTERNAL: it is about private data."""

    def __init__(self, reason: str) -> None:
        self.reason = printable(reason)[:160]
        super().__init__(self.reason)


def read_file(root: Path, key: str) -> bytes:
    """Bytes of the regular file `root/key`, at most `MAX_FILE_BYTES` of them.

    Raises:
        Unreadable: it is missing, empty, too large, not a regular file, or lies outside `root` once
            links are resolved.
    """
    try:
        resolved = os.path.realpath(os.path.join(root, key), strict=True)
        if not Path(resolved).is_relative_to(os.path.realpath(root)):
            raise Unreadable("lies outside the data folder")
        data = _read_regular(resolved)
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from None
    except ValueError:  # a NUL character in a name that metadata gives
        raise Unreadable("has an impossible name") from None
    if not data:
        raise Unreadable("is empty")
    return data


def _read_regular(path: str) -> bytes:
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        status = os.fstat(descriptor)  # of what was opened, which nobody can exchange any more
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise Unreadable(f"is larger than {MAX_FILE_BYTES // 2**20} MiB")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES)
    finally:
        os.close(descriptor)


def is_dicom(entry: os.DirEntry[str]) -> bool:
    """Whether a file whose name says nothing (no ending, or a number, as in a unique identifier) holds DICOM."""
    ending = os.path.splitext(entry.name)[1][1:]
    if entry.name == "DICOMDIR" or (ending and not ending.isdigit()) or not entry.is_file(follow_symlinks=False):
        return False
    try:
        with open(entry.path, "rb") as file:
            return file.read(_DICOM_MARK.stop)[_DICOM_MARK] == b"DICM"
    except OSError:
        return False


def decode(data: bytes) -> Image.Image:
    """The image in an encoded file, upright, in mode L, LA, RGB, RGBA or I;16 (unsigned 16-bit grey); of a
    DICOM file as `decode_dicom` gives it.

    Palettes become RGB or RGBA, CMYK and YCbCr become RGB, bilevel becomes L; a transparent colour
    becomes an alpha channel. The EXIF orientation is applied.

    Raises:
        Unreadable: the format is not in `FORMATS`, the image has more than `MAX_PIXELS` pixels or more
            than one frame, is truncated or corrupt, or has pixels without a declared range (float).
    """
    if data[_DICOM_MARK] == b"DICM":
        from dpldm.data.dicom import decode_dicom

        return decode_dicom(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _upright(_open(data))
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(TOO_MANY_PIXELS) from None
    except Exception as error:  # Pillow's decoders raise anything: OSError, SyntaxError, struct.error, ...
        detail = str(error) if isinstance(error, OSError) and "BytesIO" not in str(error) else ""
        raise Unreadable(f"cannot be decoded ({detail or type(error).__name__})") from None


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise Unreadable(TOO_MANY_PIXELS)
    # A camera's MPO is a JPEG with previews behind it; its first frame is the photograph.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise Unreadable("has more than one frame")
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    """The canonical image, turned as its EXIF orientation says (Pillow itself turns TIFF)."""
    try:
        orientation = 1 if image.format == "TIFF" else image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a broken tag block around intact pixels: common, and read by everyone as "upright"
        orientation = 1
    canonical = _canonical(image)
    return canonical.transpose(_TURN[orientation]) if orientation in _TURN else canonical


def _canonical(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _sixteen_bit_grey(image)
    if image.mode == "F":
        raise Unreadable("has floating-point pixels, which have no declared range")
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        return image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    return image.convert({"1": "L", "PA": "RGBA"}.get(image.mode, "RGB"))


def _sixteen_bit_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise Unreadable("has grey values outside 0..65535")
    if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0:
        values = 0xFFFF - values  # WhiteIsZero, which Pillow inverts in 8-bit images only
    return Image.fromarray(values.astype(np.uint16))
