"""The fixed public transform from any image to a square of bytes.

It depends on one image and on declared constants, never on another image or a statistic of the data set:
so replacing one record changes one row of the result, which is what the privacy guarantee counts on.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpldm.data.decode import Unreadable
from dpldm.errors import UserError

OWN_WINDOW = "window"
"""Under this name an image of mode I may carry in its `info` the window of its own header: (black, white)."""

_MAX_IMAGE_SIZE = 4096


@dataclass(frozen=True)
class Preprocessing:
    """Declared constants of the transform; public, and part of a release.

    Raises:
        UserError: a constant is out of range.
    """

    image_size: int
    """Pixels a side of the result."""
    channels: Literal[1, 3]
    """1 grey, 3 colour (RGB)."""
    window: tuple[int, int] | None = None
    """(low, high) in -32768..65535: the grey values of more than 8 bits shown as 0 and 255. Without it such an image is
    shown by the window of its own header (DICOM), or is unreadable. Images of 8 bits ignore it."""
    crop: Literal["center", "none"] = "center"
    """`center` cuts the largest central square; `none` keeps the whole image and pads it to a square."""
    background: int = 0
    """Grey value 0..255 behind transparent pixels and in the padding."""

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= _MAX_IMAGE_SIZE:
            raise UserError(f"image_size is {self.image_size}: choose 1 to {_MAX_IMAGE_SIZE} pixels.")
        if self.channels not in (1, 3):
            raise UserError(f"channels is {self.channels}: choose 1 (grey) or 3 (colour).")
        if self.window is not None and not -0x8000 <= self.window[0] < self.window[1] <= 0xFFFF:
            raise UserError(f"window is {list(self.window)}: give [low, high] with -32768 <= low < high <= 65535.")
        if self.crop not in ("center", "none"):
            raise UserError(f"crop is {self.crop!r}: choose 'center' or 'none'.")
        if not 0 <= self.background <= 255:
            raise UserError(f"background is {self.background}: choose a grey value from 0 to 255.")

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """uint8 pixels (image_size, image_size, channels) of an image in mode L, LA, RGB, RGBA, I;16 or I.

        An image that has the right size, mode and depth already is returned bit for bit.

        Raises:
            Unreadable: the image has more than 8 bits, and neither declared nor own window.
        """
        square: NDArray[np.uint8] = np.asarray(self._square(self._flat(image)), dtype=np.uint8)
        return square.reshape(self.image_size, self.image_size, self.channels)

    def window_to_bytes(
        self, values: NDArray[np.integer[Any]], own: tuple[float, float] | None = None
    ) -> NDArray[np.uint8]:
        """Grey values of any shape to bytes: `low` and below 0, `high` and above 255, linear between.

        Args:
            own: the window of the image's header, for want of a declared one.

        Raises:
            Unreadable: there is neither.
        """
        window = self.window or own
        if window is None:
            raise Unreadable("has 16-bit grey values, and no window is declared")
        low, high = window
        shown = (np.clip(values.astype(np.float64), low, high).astype(np.float32) - np.float32(low)) * np.float32(
            255 / (high - low)
        )
        levels: NDArray[np.uint8] = np.rint(shown).astype(np.uint8)
        return levels

    def _flat(self, image: Image.Image) -> Image.Image:
        """Mode L or RGB as `channels` says: windowed, and on the background where transparent."""
        if image.mode in ("I;16", "I"):
            image = Image.fromarray(self.window_to_bytes(np.asarray(image), image.info.get(OWN_WINDOW)))
        if image.mode in ("LA", "RGBA"):
            behind = Image.new("RGBA", image.size, (self.background,) * 3 + (255,))
            image = Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")
        return image.convert("L" if self.channels == 1 else "RGB")

    def _square(self, image: Image.Image) -> Image.Image:
        size = self.image_size
        if self.crop == "center":
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
            return image.resize((size, size), Image.Resampling.LANCZOS)
        # Shrink first, then pad: the padded square of a 1 x 65535 image would not fit into memory.
        scale = size / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        canvas = Image.new(image.mode, (size, size), (self.background,) * self.channels)
        resized = image.resize((width, height), Image.Resampling.LANCZOS)
        canvas.paste(resized, ((size - width) // 2, (size - height) // 2))
        return canvas
