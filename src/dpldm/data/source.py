"""What every reader gives: an index of records, and one image at a time."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True, kw_only=True, eq=False)
class Source(ABC):
    """An index of records, in an order that depends on the data alone.

    A record keeps its place in the index whether or not its image can be read. Everything here is private.
    """

    layout: str
    """The format that was recognised, in words."""
    keys: list[str]
    """Relative path (POSIX) or zero-padded row number of each record, sorted. A file name that is not UTF-8
    holds surrogates, as `os.fsdecode` gives them."""
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
        """Image of a record in mode L, LA, RGB, RGBA or I;16; raises `Unreadable` if there is none."""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Stored bytes of a record; raises `Unreadable` where there are none."""
