"""What every reader is asked, and what it gives: an index of records, and one image at a time."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dpldm.errors import UserError

SPLITS = ("train", "val", "test")
"""The parts into which a set can be published."""

ARCHIVE_FOLDERS = frozenset(
    {
        *("cifar-10-batches-py", "cifar-100-python", "Imagenet32", "Imagenet64", "SVHN", "svhn", "celeba", "CelebA"),
        *("CelebAMask-HQ", "celebahq", "CelebAHQ", "camelyon17_v1.0"),
    }
)
"""Folders that archives of published sets unpack to, or that other tools make for them."""

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which part of a set is asked for, and which columns of its table."""

    split: str = "train"
    """One of `SPLITS`. A set that is in one piece is whatever was asked for."""
    image: str = "file_name"
    """Column with the file names of a metadata table."""
    label: str | None = None
    caption: str | None = None
    group: str | None = None

    @property
    def names_columns(self) -> bool:
        """Whether a column was named that only a table can have."""
        return any((self.label, self.caption, self.group))


@dataclass(frozen=True, kw_only=True, eq=False)
class Source(ABC):
    """An index of records, in an order that depends on the data alone.

    A record keeps its place in the index whether or not its image can be read. Everything here is private.
    """

    layout: str
    """The format that was recognised, in words."""
    keys: list[str]
    """Relative path (POSIX), or file and zero-padded row number, of each record, sorted. A file name that is not
    UTF-8 holds surrogates, as `os.fsdecode` gives them."""
    split: str | None = None
    """Which of `SPLITS` this is; None where the set is in one piece, whatever was asked for."""
    labels: list[str] | None = None
    """Class name of each record; None when there are none."""
    captions: list[str] | None = None
    """Text of each record; None when there is none."""
    groups: list[str] | None = None
    """Whom or what each record belongs to (a person); None when no group column was named."""
    ignored: list[str] = field(default_factory=list)
    """Files of a folder that are no records."""
    unused_columns: list[str] = field(default_factory=list)
    """Columns of the metadata that nothing reads."""

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Image of a record in mode L, LA, RGB, RGBA, I;16 or I; raises `Unreadable` if there is none."""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Stored bytes of a record; raises `Unreadable` where there are none."""


def nested(root: Path, *names: str) -> Path:
    """The first folder of these names that lies in `root`, or `root` itself: archives unpack with and without it.

    Raises:
        UserError: `root` is a collection of sets, so that it is unclear which is meant.
    """
    found = next((root / name for name in names if (root / name).is_dir()), root)
    if found.name in ARCHIVE_FOLDERS and found != root:
        sets = sorted(entry.name for entry in root.iterdir() if entry.name in ARCHIVE_FOLDERS and entry.is_dir())
        if len(sets) > 1:
            raise UserError(f"{root} holds several sets ({', '.join(sets)}): give the folder of one of them.")
    return found


def of_split(files: Sequence[Path], root: Path, split: str) -> tuple[list[Path], str | None]:
    """Those of the files below `root` whose names, or folders, say that they are of a split; all, and None, if none
    says so.

    Raises:
        UserError: there are files of other splits alone.
    """
    splits = {file: _split_in(file.relative_to(root)) for file in files}
    if not any(splits.values()):
        return sorted(files), None
    found = sorted(file for file in files if splits[file] == split)
    if not found:
        raise UserError(f"{root} has no files of the split {split!r}: get them, or give another folder.")
    return found, split


def _split_in(name: Path) -> str | None:
    words = re.split(r"[^a-z]+", name.as_posix().lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)
