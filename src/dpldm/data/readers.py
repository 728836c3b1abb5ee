"""Recognises how a set of images is stored, and opens it."""

from pathlib import Path

from dpldm.data.arrays import SPLITS, find_idx, open_idx, open_npz
from dpldm.data.decode import Unreadable
from dpldm.data.folders import open_folder, open_metadata_folder
from dpldm.data.source import Source
from dpldm.errors import UserError

__all__ = ["Source", "Unreadable", "open_source"]


def open_source(
    path: str | Path,
    *,
    label_column: str | None = None,
    caption_column: str | None = None,
    group_column: str | None = None,
    image_column: str = "file_name",
    split: str = "train",
) -> Source:
    """Opens a set of images without reading an image file.

    Recognised, in this order: an `.npz` file, an IDX file, a folder of MNIST's IDX files, a folder with
    `metadata.csv|jsonl|parquet`, a folder with one sub-folder per class, a flat folder. The columns
    concern metadata only; `split` concerns only what holds several parts (MedMNIST archives, MNIST folders).

    Raises:
        UserError: nothing is there, the format is none of these, or what was asked for is not in it.
        MissingExtra: parquet metadata without pyarrow.
    """
    path = Path(path)
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if not path.exists():
        raise UserError(f"There is nothing at {path}: correct data.path.")
    arrays = _open_arrays(path, split)
    if arrays is None:
        source = open_metadata_folder(
            path,
            image_column=image_column,
            label_column=label_column,
            caption_column=caption_column,
            group_column=group_column,
        )
        if source is not None:
            return source
    if label_column or caption_column or group_column:
        raise UserError(
            f"{path} has no table of metadata to take columns from: add a metadata.csv, or name no columns."
        )
    return open_folder(path) if arrays is None else arrays


def _open_arrays(path: Path, split: str) -> Source | None:
    """The source of a file, or of a folder of IDX files; None for any other folder."""
    if path.is_dir():
        images_path = find_idx(path, split)
        return None if images_path is None else open_idx(images_path)
    if path.is_file() and path.suffix == ".npz":
        return open_npz(path, split)
    if path.is_file() and path.name.removesuffix(".gz").endswith("-ubyte"):
        return open_idx(path)
    raise UserError(f"{path} is neither a folder nor an .npz or IDX file: convert it to one of them.")
