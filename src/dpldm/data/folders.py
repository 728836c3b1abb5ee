"""Folders of image files: one folder per class, a flat folder, or a folder with a metadata table."""

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dpldm.data.decode import decode, read_file
from dpldm.data.names import has_image_suffix
from dpldm.data.source import Source
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
    keys, ignored = _scan(root)
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


def open_metadata_folder(
    root: Path,
    *,
    image_column: str,
    label_column: str | None,
    caption_column: str | None,
    group_column: str | None,
) -> FolderSource | None:
    """A folder with `metadata.csv`, `.jsonl` or `.parquet`; None when there is no such file.

    Without a column named by the caller, labels are read from a column `label`, captions from `caption` or
    `text`. Rows are joined to files by name. A row whose file is missing stays, as an unreadable record.

    Raises:
        UserError: a named column is missing, a file is listed twice, or a row has no file.
    """
    table_path = find_table(root)
    if table_path is None:
        return None
    table = read_table(table_path)
    columns: dict[str, str | None] = {
        "label": label_column or _first_of(table, ("label",)),
        "caption": caption_column or _first_of(table, ("caption", "text")),
        "group": group_column,
    }
    keys = _checked_keys(table_path, table, image_column, columns)
    order = sorted(range(len(keys)), key=keys.__getitem__)

    def in_order(role: str) -> list[str] | None:
        column = columns[role]
        return None if column is None else [table[column][row] for row in order]

    files, others = _scan(root)
    return FolderSource(
        layout=f"folder with {table_path.name}",
        root=root,
        keys=[keys[row] for row in order],
        labels=in_order("label"),
        captions=in_order("caption"),
        groups=in_order("group"),
        ignored=sorted((set(files) | set(others)) - set(keys) - {table_path.name}),
        unused_columns=[column for column in table if column not in {image_column, *columns.values()}],
    )


def _checked_keys(
    path: Path, table: dict[str, list[str]], image_column: str, columns: dict[str, str | None]
) -> list[str]:
    """The normalised file name of each row; refuses a table that leaves open which record is whose."""
    for role, column in {"image": image_column, **columns}.items():
        if column is not None and column not in table:
            remedy = "rename" if column == image_column else f"name another {role} column, or rename"
            raise UserError(
                f"{path} has no column {column!r} (its columns: {', '.join(map(repr, table))}): "
                f"{remedy} it in the table."
            )
    if not all(table[image_column]):
        raise UserError(f"{path} has a row without a value in {image_column!r}: fill it in.")
    keys = [posixpath.normpath(_as_posix(path.parent, name)) for name in table[image_column]]
    if len(set(keys)) < len(keys):
        raise UserError(f"{path} lists a file more than once: keep one row for each file.")
    return keys


def _as_posix(root: Path, name: str) -> str:
    """A name that a Windows program wrote, with the separators of this system if the file is then there."""
    turned = name.replace("\\", "/")
    return turned if turned != name and not (root / name).exists() and (root / turned).exists() else name


def _first_of(table: dict[str, list[str]], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in table), None)


def _scan(root: Path) -> tuple[list[str], list[str]]:
    """Relative paths of (what is named like an image, everything else), both sorted; hidden entries left out.

    An entry named like an image is a record whatever it is: a link, a FIFO or a folder of that name shows
    itself as unreadable later. Linked folders are never entered.
    """
    images, others = [], []
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
                others.append(key)
    return sorted(images), sorted(others)
