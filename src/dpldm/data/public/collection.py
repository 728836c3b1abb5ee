"""`PublicSet`: a set of public images with its labels, families and the record of where it came from.

On disk it is a directory of four files, equal byte for byte whenever the same inputs and seed are given:
`images.npz` (plain arrays, no pickle), `provenance.json`, `contact-sheet.png` (a sample of what was kept) and
`dropped-sheet.png` (a sample of what was refused, so that a reader can judge the rule that refused it).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpldm.errors import UserError

SHEET_COLUMNS, SHEET_ROWS, SHEET_SCALE = 24, 16, 2
ARRAYS = ("x", "y", "label_names", "family", "name")


@dataclass(frozen=True)
class PublicSet:
    """Public images and everything a reader needs to know about them.

    Args:
        images: uint8 (N, H, W, C), C in {1, 3}.
        labels: int64 (N,), each in [0, len(label_names)).
        label_names: one name a class.
        families: (N,) strings; font family or icon set, the unit of hold-outs.
        names: (N,) strings; what the single image shows (letter or icon name), material for captions.
        provenance: JSON-ready record of packages, licences, counts and parameters.
        dropped: uint8 (M, H, W, C), a sample of the refused images; not stored in the npz.

    Raises:
        UserError: if shapes or types do not fit together.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    label_names: tuple[str, ...]
    families: NDArray[np.str_]
    names: NDArray[np.str_]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    dropped: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] not in (1, 3):
            raise UserError("A public set needs images as uint8 of shape (N, H, W, C) with C 1 or 3.")
        columns = {"labels": self.labels, "families": self.families, "names": self.names}
        for title, column in columns.items():
            if column.shape != (len(self.images),):
                raise UserError(f"A public set needs exactly one entry of {title} for each image.")
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.label_names)):
            raise UserError("A public set needs a label name for every label: labels are indices into label_names.")

    def __len__(self) -> int:
        return len(self.images)

    def save(self, directory: Path) -> Path:
        """Write the four files into `directory` (made if missing, an earlier set replaced) and return it.

        They are written beside it and put there when they are complete, so that a kill leaves nothing in the way.

        Raises:
            UserError: see `require_place`.
        """
        directory = Path(directory)
        require_place(directory)
        partial = directory.absolute().with_name(f"{directory.absolute().name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        archive = partial / "images.npz"
        _write_npz(archive, self._arrays())
        record = {
            **self.provenance,
            "images": len(self),
            "shape": list(self.images.shape[1:]),
            "images_per_label": _count(np.asarray(self.label_names)[self.labels]),
            "images_per_family": _count(self.families),
            "sha256": {"images.npz": hashlib.sha256(archive.read_bytes()).hexdigest()},
        }
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
        (partial / "provenance.json").write_text(text + "\n", encoding="utf-8")
        contact_sheet(self.images).save(partial / "contact-sheet.png")
        if self.dropped is not None and len(self.dropped):
            contact_sheet(self.dropped).save(partial / "dropped-sheet.png")
        if not directory.exists():
            partial.rename(directory)
            return directory
        for path in sorted(partial.iterdir(), key=lambda path: path.name != "provenance.json"):  # that one marks a set
            path.replace(directory / path.name)
        partial.rmdir()
        return directory

    @classmethod
    def load(cls, directory: Path) -> PublicSet:
        """Read a directory written by `save`.

        Raises:
            UserError: if files are missing or `images.npz` is not the one that provenance.json describes.
        """
        archive, record = Path(directory) / "images.npz", Path(directory) / "provenance.json"
        if not (archive.is_file() and record.is_file()):
            raise UserError(f"{directory} is not a public set: images.npz and provenance.json must both be there.")
        provenance = json.loads(record.read_text(encoding="utf-8"))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != provenance["sha256"]["images.npz"]:
            raise UserError(f"{archive} is not the file its provenance.json describes: make the set again.")
        with np.load(archive, allow_pickle=False) as stored:
            x, y, label_names, family, name = (stored[key] for key in ARRAYS)
        return cls(x, y, tuple(str(label) for label in label_names), family, name, provenance)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        columns = (self.images, self.labels, np.asarray(self.label_names), self.families, self.names)
        return dict(zip(ARRAYS, columns, strict=True))


def require_place(directory: Path) -> None:
    """Refuse to write a set where something else lies.

    Raises:
        UserError: `directory` is a file, or a folder that holds files but no earlier public set.
    """
    taken = directory.exists() and not directory.is_dir()
    if taken or (directory.is_dir() and any(directory.iterdir()) and not (directory / "provenance.json").is_file()):
        raise UserError(f"{directory} holds something else: choose an empty or new folder for the public set.")


def contact_sheet(images: NDArray[np.uint8], seed: int = 0) -> Image.Image:
    """A grid of up to 384 of the `images` (uint8 (N, H, W, C)), drawn without replacement by `seed`."""
    shown = min(len(images), SHEET_COLUMNS * SHEET_ROWS)
    chosen = images[np.random.default_rng(seed).permutation(len(images))[:shown]]
    height, width, channels = images.shape[1:]
    rows = -(-shown // SHEET_COLUMNS)
    sheet = np.full((rows * SHEET_COLUMNS, height + 1, width + 1, channels), 96, np.uint8)  # grey grid lines
    sheet[:shown, :height, :width] = chosen
    grid = sheet.reshape(rows, SHEET_COLUMNS, height + 1, width + 1, channels).swapaxes(1, 2)
    flat = grid.reshape(rows * (height + 1), SHEET_COLUMNS * (width + 1), channels)
    picture = Image.fromarray(flat[..., 0] if channels == 1 else flat)
    return picture.resize((picture.width * SHEET_SCALE, picture.height * SHEET_SCALE), Image.Resampling.NEAREST)


def _write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    # np.savez stamps the present time into the archive; a fixed time makes its sha256 reproducible.
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


def _count(values: NDArray[np.str_]) -> dict[str, int]:
    return {str(value): number for value, number in sorted(Counter(values.tolist()).items())}
