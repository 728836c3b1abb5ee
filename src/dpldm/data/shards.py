"""WebDataset shards: tar files in which the members `key.jpg`, `key.txt`, `key.cls`, `key.json` are one record.

The layout of img2dataset, hence of LAION. Headers are read once and images where they lie; nothing is unpacked.
"""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dpldm.data.columns import told_by
from dpldm.data.decode import MAX_FILE_BYTES, Unreadable, decode
from dpldm.data.names import has_image_suffix
from dpldm.data.source import Source, Wanted, of_split
from dpldm.errors import UserError

_MAX_TEXT_BYTES = 2**20
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

Place = tuple[Path, int, int]
"""Shard, and the first byte and number of bytes of a member in it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSource(Source):
    """Images inside tar files, each read where it lies when it is asked for."""

    places: list[Place | None]
    """Where each record's image is; None if it has none."""

    def image(self, index: int) -> Image.Image:
        """See `Source.image`."""
        return decode(self.content(index))

    def content(self, index: int) -> bytes:
        """See `Source.content`."""
        place = self.places[index]
        if place is None:
            raise Unreadable("has no image beside its text")
        shard, start, size = place
        if size > MAX_FILE_BYTES:
            raise Unreadable(f"is larger than {MAX_FILE_BYTES // 2**20} MiB")
        if size == 0:
            raise Unreadable("is empty")
        try:
            with shard.open("rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise Unreadable(f"cannot be read from its shard ({error.strerror})") from None


@dataclass
class _Sample:
    image: Place | None = None
    texts: dict[str, str] = field(default_factory=dict)


def open_shards(path: Path, wanted: Wanted) -> ShardSource | None:
    """A tar file, or a folder of them; None for anything else.

    Columns are `cls` and `txt`, for members of these endings, and the entries of `json`. Without a column named by the
    caller, labels are `cls`, captions `txt` or the entry `caption`. Of shards that are named after splits, those of the
    wanted one are taken.

    Raises:
        UserError: a shard is damaged or compressed, a named column is nowhere, or a key occurs twice.
    """
    alone = path.suffix == ".tar" and path.is_file()
    shards, split = ([path], None) if alone else _shards_in(path, wanted.split)
    if not shards:
        return None
    samples: dict[str, _Sample] = {}
    for shard in shards:
        for key, ending, place in _members(shard):
            sample = samples.setdefault(f"{shard.name}/{key}", _Sample())
            _add(sample, ending, place)
    keys = sorted(samples)
    names = dict.fromkeys(name for key in keys for name in samples[key].texts)
    table = {name: [samples[key].texts.get(name, "") for key in keys] for name in names}
    told = told_by(path, table, wanted, label=("cls",), caption=("txt", "caption"))
    return ShardSource(
        layout="WebDataset shards",
        keys=keys,
        split=split,
        labels=told.labels,
        captions=told.captions,
        groups=told.groups,
        unused_columns=told.unused,
        places=[samples[key].image for key in keys],
    )


def _shards_in(path: Path, split: str) -> tuple[list[Path], str | None]:
    if not path.is_dir():
        return [], None
    if packed := [file.name for file in path.iterdir() if file.name.endswith(_PACKED)]:
        raise UserError(f"{path} holds compressed tar files, such as {packed[0]}: unpack each to plain .tar first.")
    shards = [file for file in path.glob("*.tar") if file.is_file()]
    return of_split(shards, path, split) if shards else ([], None)


def _members(shard: Path) -> Iterator[tuple[str, str, Place]]:
    """(key, ending, place) of each regular file of a shard: the key is the name up to the first dot after the last
    slash."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, name = posixpath.split(member.name)
                key, dot, ending = name.partition(".")
                if member.isreg() and key and dot:
                    yield posixpath.join(folder, key), ending.lower(), (shard, member.offset_data, member.size)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise UserError(
            f"{shard} is no plain tar file, or is cut off ({type(error).__name__}): get this shard again."
        ) from None


def _add(sample: _Sample, ending: str, place: Place) -> None:
    if has_image_suffix(f"x.{ending}"):
        if sample.image is not None:
            raise UserError(f"{place[0]} holds two images under one key: keep one of them.")
        sample.image = place
    elif ending in ("txt", "cls"):
        sample.texts[ending] = _text(place).strip()
    elif ending == "json":
        sample.texts |= _entries(place)


def _text(place: Place) -> str:
    """A text member; empty where it is no UTF-8 or too long for a caption."""
    shard, start, size = place
    if size > _MAX_TEXT_BYTES:
        return ""
    with shard.open("rb") as file:
        file.seek(start)
        try:
            return file.read(size).decode("utf-8")
        except UnicodeDecodeError:
            return ""


def _entries(place: Place) -> dict[str, str]:
    """The plain values of a JSON object; {} where it is none."""
    try:
        found = json.loads(_text(place) or "{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: str(value) for name, value in found.items() if isinstance(value, str | int | float)}
