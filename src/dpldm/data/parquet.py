"""Parquet files and Hugging Face data sets whose images lie in a column (pyarrow, the extra `parquet`).

Columns of type Image are structures of `bytes` and `path`; columns of plain bytes are read as well. Images are read
when they are asked for, a row group at a time.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from dpldm.data.columns import told_by
from dpldm.data.decode import MAX_FILE_BYTES, Unreadable, decode
from dpldm.data.source import Source, Wanted, of_split
from dpldm.data.tables import TABLE_NAMES
from dpldm.errors import MissingExtra, UserError

_PATTERNS = ("*.parquet", "data/*.parquet", "default/*/*.parquet")
_IMAGE_NAMES = ("image", "img", "png", "jpg")

Piece = Callable[[], Any]
"""Gives the images of a row group or of a whole file: a list-like of Arrow scalars."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetSource(Source):
    """Images in a column of parquet or Arrow files."""

    rows: list[tuple[int, int]]
    """Number of the piece, and of the row in it, of each record."""
    pieces: list[Piece]
    held: dict[int, Any] = field(default_factory=dict, repr=False)
    """The piece that was used last: records are mostly asked for in order."""

    def image(self, index: int) -> Image.Image:
        """See `Source.image`."""
        return decode(self.content(index))

    def content(self, index: int) -> bytes:
        """See `Source.content`."""
        piece, row = self.rows[index]
        try:
            if piece not in self.held:
                self.held.clear()
                self.held[piece] = self.pieces[piece]()
            value = self.held[piece][row].as_py()
        except (OSError, ValueError, MemoryError):
            raise Unreadable("lies in a damaged part of its file") from None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            raise Unreadable("holds no bytes of an image")
        if len(data) > MAX_FILE_BYTES:
            raise Unreadable(f"is larger than {MAX_FILE_BYTES // 2**20} MiB")
        return data


def open_parquet(path: Path, wanted: Wanted) -> ParquetSource | None:
    """Parquet files with a column of images, or what `save_to_disk` of Hugging Face wrote; None for anything else.

    A file, a folder of them, or a folder `data` with them as on the hub; of files that are named after splits, those of
    the wanted one. Classes of type ClassLabel are their names. Without a column named by the caller, labels are read
    from `label`, captions from `caption` or `text`; of several captions of an image the first.

    Raises:
        UserError: a file is damaged, there is no column of images or more than one, or a named column is missing.
        MissingExtra: pyarrow is not installed.
    """
    files, split = _files(path, wanted.split)
    if not files:
        return None
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "parquet", "Reading parquet and Arrow files") from None
    try:
        return replace(_open(pyarrow, path, files, wanted), split=split)
    except (OSError, ValueError, LookupError, TypeError, MemoryError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path} holds a damaged parquet or Arrow file ({type(error).__name__}): get it again."
        ) from None


def _files(path: Path, split: str) -> tuple[list[Path], str | None]:
    if path.suffix == ".parquet" and path.is_file():
        return [path], None
    if not path.is_dir() or any((path / name).is_file() for name in TABLE_NAMES):
        return [], None
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        arrows = [*path.glob("*.arrow"), *path.glob("*/*.arrow")]
        if not arrows:
            raise UserError(f"{path} lacks the .arrow files of a data set that was saved to disk: save it again.")
        return of_split(arrows, path, split)
    files = [file for pattern in _PATTERNS for file in path.glob(pattern) if file.is_file()]
    return of_split(files, path, split) if files else ([], None)


class _File(NamedTuple):
    """One file: images, in pieces, and what else it says of them."""

    pieces: list[tuple[int, Piece]]  # (rows, how to get them)
    texts: dict[str, list[str]]


def _open(pyarrow: Any, path: Path, files: list[Path], wanted: Wanted) -> ParquetSource:
    names = {f"{file.name if file == path else file.relative_to(path).as_posix()}:": file for file in files}
    keys: list[str] = []
    table: dict[str, list[str]] = {}
    pieces: list[Piece] = []
    rows: list[tuple[int, int]] = []
    for name in sorted(names):
        file = _read(pyarrow, names[name], wanted)
        if table and table.keys() != file.texts.keys():
            raise UserError(f"{path} holds files with different columns: keep those of one data set.")
        for column, values in file.texts.items():
            table.setdefault(column, []).extend(values)
        keys += [f"{name}{row:08d}" for row in range(sum(count for count, _ in file.pieces))]
        for count, piece in file.pieces:
            rows += [(len(pieces), row) for row in range(count)]
            pieces.append(piece)
    told = told_by(path, table, wanted)
    return ParquetSource(
        layout="parquet with images" if files[0].suffix == ".parquet" else "Hugging Face data set on disk",
        keys=keys,
        labels=told.labels,
        captions=told.captions,
        groups=told.groups,
        unused_columns=told.unused,
        rows=rows,
        pieces=pieces,
    )


def _read(pyarrow: Any, file: Path, wanted: Wanted) -> _File:
    if file.suffix == ".arrow":
        table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all()  # maps, does not load
        table.validate(full=True)  # a damaged offset would be followed out of the file, and end the process
        images = table.column(_image_column(file, table.schema, wanted))
        return _File([(len(images), lambda: images)], _texts(table.select(_plain(pyarrow, table.schema))))
    opened = pyarrow.parquet.ParquetFile(file)
    image = _image_column(file, opened.schema_arrow, wanted)

    def images_of(group: int) -> Piece:
        return lambda: opened.read_row_group(group, columns=[image]).column(0)

    counts = [opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)]
    pieces = [(count, images_of(group)) for group, count in enumerate(counts)]
    return _File(pieces, _texts(opened.read(columns=_plain(pyarrow, opened.schema_arrow))))


def _plain(pyarrow: Any, schema: Any) -> list[str]:
    """Names of the columns of numbers and texts, and of lists of them; others say nothing here."""
    types = pyarrow.types
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)

    def is_taken(kind: Any) -> bool:
        return any(test(kind.value_type if types.is_list(kind) else kind) for test in tests)

    return [name for name, kind in zip(schema.names, schema.types, strict=True) if is_taken(kind)]


def _image_column(file: Path, schema: Any, wanted: Wanted) -> str:
    """The column that was named, or the only one of images, or of several the one that is called so."""
    kinds = {name: str(kind) for name, kind in zip(schema.names, schema.types, strict=True)}
    candidates = (
        [name for name in kinds if name == wanted.image],
        [name for name, feature in _features(schema).items() if feature.get("_type") == "Image" and name in kinds],
        [name for name, kind in kinds.items() if kind.startswith("struct<") and "bytes: binary" in kind],
        [name for name, kind in kinds.items() if kind.endswith("binary")],
    )
    found = next((names for names in candidates if names), [])
    chosen = found if len(found) == 1 else [name for name in _IMAGE_NAMES if name in found][:1]
    if not chosen:
        raise UserError(
            f"{file} has {'several columns' if found else 'no column'} of images (its columns: "
            f"{', '.join(map(repr, kinds))}): keep one, of bytes or of Hugging Face's type Image."
        )
    return chosen[0]


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face notes about the columns; {} if it did not write the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def _texts(table: Any) -> dict[str, list[str]]:
    """Columns as texts: classes by name, of lists the first entry, missing values empty."""
    features = _features(table.schema)
    columns = ((name, features.get(name, {}).get("names")) for name in table.column_names)
    return {name: [_text(value, names) for value in table.column(name).to_pylist()] for name, names in columns}


def _text(value: Any, names: Any) -> str:
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(names, list) and type(value) is int:
        return str(names[value]) if 0 <= value < len(names) else ""
    return "" if value is None else str(value)
