"""Recognises how a set of images is stored, and opens it."""

from collections.abc import Callable
from pathlib import Path

from dpldm.data.arrays import open_npz
from dpldm.data.batches import open_batches
from dpldm.data.camelyon import open_camelyon
from dpldm.data.celeba import open_celeba
from dpldm.data.celebahq import open_celebahq
from dpldm.data.decode import Unreadable
from dpldm.data.dicom import open_dicom_folder
from dpldm.data.folders import open_folder, open_metadata_folder
from dpldm.data.idx import open_idx
from dpldm.data.parquet import open_parquet
from dpldm.data.shards import open_shards
from dpldm.data.source import SPLITS, Source, Wanted
from dpldm.data.svhn import open_svhn
from dpldm.data.trees import open_eurosat, open_imagenet_tree
from dpldm.errors import UserError

__all__ = ["Source", "Unreadable", "open_source"]

Reader = Callable[[Path, Wanted], Source | None]
"""Opens what it recognises, None for anything else; raises UserError for what is of its kind but wrong."""

WITH_COLUMNS: tuple[Reader, ...] = (
    open_celebahq,
    open_celeba,
    open_camelyon,
    open_metadata_folder,
    open_shards,
    open_parquet,
    open_dicom_folder,
)
WITHOUT_COLUMNS: tuple[Reader, ...] = (
    open_npz,
    open_idx,
    open_batches,
    open_svhn,
    open_eurosat,
    open_imagenet_tree,
)
_ARCHIVES = (".zip", ".gz", ".tgz", ".rar", ".7z", ".bz2", ".xz", ".zst")


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

    Recognised, in this order: what has a table (`WITH_COLUMNS`: CelebA and CelebA-HQ, Camelyon17-WILDS, a folder with
    `metadata.csv|jsonl|parquet`, WebDataset shards, parquet with images, DICOM headers if columns are named), what has
    none (`WITHOUT_COLUMNS`: `.npz`, IDX, CIFAR and ImageNet batches, SVHN, EuroSAT, ImageNet folders), a folder
    with one sub-folder per class, a flat folder. `split` concerns only what holds several parts. docs/datasets.md has
    the layouts of published sets.

    Raises:
        UserError: nothing is there, the format is none of these, or what was asked for is not in it.
        MissingExtra: parquet without pyarrow, DICOM without pydicom.
    """
    path = Path(path)
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if not path.exists():
        raise UserError(f"There is nothing at {path}: correct data.path.")
    wanted = Wanted(split=split, image=image_column, label=label_column, caption=caption_column, group=group_column)
    for reader in WITH_COLUMNS:
        if (source := reader(path, wanted)) is not None:
            return source
    if wanted.names_columns:
        raise UserError(
            f"{path} has no table of metadata to take columns from: add a metadata.csv, or name no columns."
        )
    for reader in WITHOUT_COLUMNS:
        if (source := reader(path, wanted)) is not None:
            return source
    if path.is_dir():
        return open_folder(path)
    if path.suffix in _ARCHIVES:
        raise UserError(f"{path} is packed: unpack it, and give the folder.")
    raise UserError(
        f"{path} is neither a folder nor a file of images that can be read (.npz, IDX, .mat of SVHN, .tar, .parquet): "
        "convert it to one of them."
    )
