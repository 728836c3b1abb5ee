"""Folders of image files: one folder per class, a flat folder, or a folder with a table about its files."""

import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dpldm.data.columns import Table, require_column, told_by
from dpldm.data.decode import decode, is_dicom, read_file
from dpldm.data.names import has_image_suffix
from dpldm.data.source import Source, Wanted
from dpldm.data.tables import find_table, read_table
from dpldm.errors import UserError

FOLDER_PER_CLASS = "folder per class"


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderSource(Source):
    """Image files under `root`, each opened when it is asked for."""

    root: Path

    def image(self, index: int) -> Image.Image:
        """See `Source.image`."""
        return decode(self.content(index))

    def content(self, index: int) -> bytes:
        """See `Source.content`."""
        return read_file(self.root, self.keys[index])


def open_folder(root: Path) -> FolderSource:
    """Class sub-folders (ImageFolder) or a flat folder of images.

    Raises:
        UserError: images lie both in `root` and in sub-folders, so that it is unclear what the classes are.
    """
    keys, ignored = scan(root)
    nested = ["/" in key for key in keys]
    if any(nested) and not all(nested):
        raise UserError(
            f"{root} holds images both directly and in sub-folders: "
            "put every image into a class folder, or none, or add a metadata.csv with file_name and label."
        )
    if not any(nested):
        return FolderSource(layout="flat folder", root=root, keys=keys, ignored=ignored)
    labels = [key.split("/", 1)[0] for key in keys]
    return FolderSource(layout=FOLDER_PER_CLASS, root=root, keys=keys, labels=labels, ignored=ignored)


def open_metadata_folder(root: Path, wanted: Wanted) -> FolderSource | None:
    """A folder with `metadata.csv`, `.jsonl` or `.parquet`; None when there is no such file.

    Without a column named by the caller, labels are read from a column `label`, captions from `caption` or
    `text`.

    Raises:
        UserError: see `folder_with_table`.
    """
    table_path = find_table(root) if root.is_dir() else None
    if table_path is None:
        return None
    table = read_table(table_path)
    found = folder_with_table(root, table_path, table, wanted, layout=f"folder with {table_path.name}")
    files, others = scan(root)
    return replace(found, ignored=sorted({*files, *others} - {*found.keys, table_path.name}))


def folder_with_table(
    root: Path, table_path: Path, table: Table, wanted: Wanted, *, layout: str, rows: Iterable[int] | None = None
) -> FolderSource:
    """The files that a table names. Rows are joined to files by name, and one whose file is missing stays, as an
    unreadable record.

    Args:
        table_path: where the table is from, for messages.
        wanted: the columns to take (see `told_by`).
        rows: those of the table to take, because they are of the wanted split; None takes all.

    Raises:
        UserError: a named column is missing, a file is listed twice, or a row has no file.
    """
    require_column(table_path, table, wanted.image, "rename")
    told = told_by(table_path, table, wanted)
    keys = _checked_keys(table_path, table[wanted.image], wanted.image)
    order = sorted(range(len(keys)) if rows is None else rows, key=keys.__getitem__)

    def in_order(column: list[str] | None) -> list[str] | None:
        return None if column is None else [column[row] for row in order]

    return FolderSource(
        layout=layout,
        root=root,
        split=None if rows is None else wanted.split,
        keys=[keys[row] for row in order],
        labels=in_order(told.labels),
        captions=in_order(told.captions),
        groups=in_order(told.groups),
        unused_columns=[name for name in told.unused if name != wanted.image],
    )


def _checked_keys(path: Path, names: list[str], column: str) -> list[str]:
    """The normalised file name of each row; refuses a table that leaves open which record is whose."""
    if not all(names):
        raise UserError(f"{path} has a row without a value in {column!r}: fill it in.")
    keys = [posixpath.normpath(_as_posix(path.parent, name)) for name in names]
    if len(set(keys)) < len(keys):
        raise UserError(f"{path} lists a file more than once: keep one row for each file.")
    return keys


def _as_posix(root: Path, name: str) -> str:
    """A name that a Windows program wrote, with the separators of this system if the file is then there."""
    turned = name.replace("\\", "/")
    return turned if turned != name and not (root / name).exists() and (root / turned).exists() else name


def scan(root: Path) -> tuple[list[str], list[str]]:
    """Relative paths of (what is named like an image, everything else), both sorted; hidden entries left out.

    An entry named like an image is a record whatever it is: a link, a FIFO or a folder of that name shows
    itself as unreadable later. Linked folders are never entered. DICOM files need no ending: their first bytes tell.
    """
    images, others = list[str](), list[str]()
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            raise UserError(f"A folder under {root} cannot be listed ({error.strerror}).") from None
        for entry in entries:
            key = posixpath.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if has_image_suffix(entry.name):
                images.append(key)
            elif entry.is_dir(follow_symlinks=False):
                pending.append(key)
            else:
                (images if is_dicom(entry) else others).append(key)
    return sorted(images), sorted(others)
