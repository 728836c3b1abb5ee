"""CelebA: a folder of aligned faces, with lists that are joined to them by file name, never by place.

Every attribute is a column whose values are its name and "not " before its name; `identity` says who it is.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from dpldm.data.folders import FolderSource, folder_with_table
from dpldm.data.source import Wanted, nested
from dpldm.errors import UserError

ATTRIBUTES, PARTITION, IDENTITY = "list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt"

_PLACES = ("", "Anno", "Eval")
_SPLITS = {"0": "train", "1": "val", "2": "test"}

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Listed(Generic[Key]):
    """What lists say of images, by file name or number."""

    columns: tuple[str, ...]
    rows: Mapping[Key, tuple[str, ...]]

    def table(self, keys: Iterable[Key]) -> dict[str, list[str]]:
        """The columns, for these images in this order; raises KeyError for an image that is not listed."""
        chosen = [self.rows[key] for key in keys]
        return {name: [row[place] for row in chosen] for place, name in enumerate(self.columns)}


def open_celeba(path: Path, wanted: Wanted) -> FolderSource | None:
    """`img_align_celeba`, with `list_attr_celeba.txt` and `list_eval_partition.txt`; None for anything else.

    Raises:
        UserError: one of the three is missing or damaged, or a named column is not there.
    """
    root = nested(path, "celeba", "CelebA")
    images = _images(root)
    if images is None and not any(find_list(root, name) for name in (ATTRIBUTES, PARTITION)):
        return None
    missing = [name for name in (ATTRIBUTES, PARTITION) if find_list(root, name) is None]
    if images is None:
        missing.append("the folder img_align_celeba (unpack img_align_celeba.zip)")
    if missing or images is None:
        raise UserError(f"{root} lacks {' and '.join(missing)}: get what is missing of CelebA.")
    listed = celeba_lists(root)
    names = list(listed.rows)
    prefix = images.relative_to(root).as_posix()
    table = {"file_name": [f"{prefix}/{name}" for name in names]} | listed.table(names)
    return folder_with_table(
        root,
        root / ATTRIBUTES,
        table,
        replace(wanted, image="file_name"),
        layout="CelebA",
        rows=[row for row, part in enumerate(table["partition"]) if part == wanted.split],
    )


def celeba_lists(root: Path) -> Listed[str]:
    """By file name: attributes, `partition` (train, val, test), and `identity` where it is known.

    Raises:
        UserError: a list is missing or damaged, or they do not list the same images.
    """
    attributes, partition = find_list(root, ATTRIBUTES), find_list(root, PARTITION)
    if attributes is None or partition is None:
        raise UserError(f"{root} lacks {ATTRIBUTES} or {PARTITION}: get what is missing of CelebA.")
    listed = attribute_list(attributes)
    parts = {name: _SPLITS.get(part, "") for name, part in _pairs(partition)}
    if listed.rows.keys() != parts.keys() or "" in parts.values():
        raise UserError(f"{attributes} and {partition} do not list the same images: get both again.")
    rows = {name: (*row, parts[name]) for name, row in listed.rows.items()}
    columns = (*listed.columns, "partition")
    if (identity := find_list(root, IDENTITY)) is not None:
        persons = dict(_pairs(identity))
        rows = {name: (*row, persons.get(name, "")) for name, row in rows.items()}
        columns = (*columns, "identity")
    return Listed(columns, rows)


def attribute_list(path: Path) -> Listed[str]:
    """A line with the number of images, one with names of attributes, then a file name and as many 1 and -1 a line.

    Raises:
        UserError: it is something else.
    """
    lines = lines_of(path)
    names = tuple(lines[1].split()) if len(lines) > 1 else ()
    words = [{"1": name, "-1": f"not {name}"} for name in names]
    rows = {}
    for line in lines[2:]:
        file, *values = line.split()
        try:
            rows[file] = tuple(meaning[value] for meaning, value in zip(words, values, strict=True))
        except (KeyError, ValueError):
            raise UserError(f"{path} has a line that does not give 1 or -1 for each attribute: get it again.") from None
    return Listed(names, rows)


def find_list(root: Path, name: str) -> Path | None:
    """A list of CelebA, in `root` or where its authors put it."""
    return next((root / place / name for place in _PLACES if (root / place / name).is_file()), None)


def lines_of(path: Path) -> list[str]:
    """The lines of a list but for blank ones.

    Raises:
        UserError: it is no text.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        raise UserError(f"{path} cannot be read as text: get it again.") from None


def _images(root: Path) -> Path | None:
    """The folder of aligned faces; some archives hold it in another one of the same name."""
    name = "img_align_celeba"
    places = (f"{name}/{name}", name, f"Img/{name}")
    return next((root / place for place in places if (root / place).is_dir()), None)


def _pairs(path: Path) -> list[tuple[str, str]]:
    pairs = [line.split() for line in lines_of(path)]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{path} has a line that is not a file name and a number: get it again.")
    return [(name, value) for name, value in pairs]
