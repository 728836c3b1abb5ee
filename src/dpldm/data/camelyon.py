"""Camelyon17-WILDS: patches of lymph nodes from five hospitals, and a table of them (Koh et al. 2021)."""

from dataclasses import replace
from pathlib import Path

from dpldm.data.folders import FolderSource, folder_with_table
from dpldm.data.source import Wanted, nested
from dpldm.data.tables import read_table
from dpldm.errors import UserError

_COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")
_HELD_OUT_CENTRES = {"1": "val", "2": "test"}
_TRAIN = "0"  # in the column split; 1 is validation within the training hospitals, which is no part here


def open_camelyon(path: Path, wanted: Wanted) -> FolderSource | None:
    """`metadata.csv` and `patches/`, as WILDS unpacks them; None for anything else.

    The class is the column `tumor` (1: tumour in the central 32x32 pixels) unless another is named. Validation and test
    are hospitals of their own (centres 1 and 2), training the rest but for WILDS' validation part within them.

    Raises:
        UserError: the patches are missing, or a named column.
    """
    root = nested(path, "camelyon17_v1.0")
    if not (root / "metadata.csv").is_file() or not _has_columns(root / "metadata.csv"):
        return None
    if not (root / "patches").is_dir():
        raise UserError(f"{root} lacks the folder patches: unpack Camelyon17-WILDS there again.")
    table = read_table(root / "metadata.csv")
    places = [_split(center, split) for center, split in zip(table["center"], table["split"], strict=True)]
    rows = zip(*(table[name] for name in _COLUMNS[:4]), strict=True)
    return folder_with_table(
        root,
        root / "metadata.csv",
        {"file_name": [_file(*row) for row in rows]} | table,
        replace(wanted, image="file_name", label=wanted.label or "tumor"),
        layout="Camelyon17-WILDS",
        rows=[row for row, place in enumerate(places) if place == wanted.split],
    )


def _has_columns(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return set(_COLUMNS) <= set(file.readline().strip().split(","))
    except (OSError, ValueError):
        return False


def _file(patient: str, node: str, x: str, y: str) -> str:
    place = f"patient_{patient}_node_{node}"
    return f"patches/{place}/patch_{place}_x_{x}_y_{y}.png"


def _split(center: str, split: str) -> str:
    return _HELD_OUT_CENTRES.get(center, "train" if split == _TRAIN else "")
