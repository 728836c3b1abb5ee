"""Metadata tables (`metadata.csv`, `.jsonl`, `.parquet`) as columns of text."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from dpldm.errors import MissingExtra, UserError

TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""The names under which a table is found, those of Hugging Face's `imagefolder`."""


def find_table(root: Path) -> Path | None:
    """The metadata table of a folder, or None.

    Raises:
        UserError: there is more than one.
    """
    found = [root / name for name in TABLE_NAMES if (root / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{root} has {' and '.join(path.name for path in found)}: keep one of them.")
    return found[0] if found else None


def read_table(path: Path) -> dict[str, list[str]]:
    """Columns by name, each with one text per row; a missing value is the empty text.

    Raises:
        UserError: the file is not a table of its kind in UTF-8, or a value is a list or an object.
        MissingExtra: a parquet file, and pyarrow is not installed.
    """
    if path.suffix == ".parquet":
        return _columns(path, _parquet_rows(path))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                delimiter = _delimiter(file.readline())
                file.seek(0)
                reader = csv.DictReader(file, restkey="", delimiter=delimiter)
                return _columns(path, reader, reader.fieldnames or ())
            return _columns(path, (_json_object(path, line) for line in file if line.strip()))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        kind = path.suffix.lstrip(".").upper()
        raise UserError(
            f"{path} cannot be read as {kind} in UTF-8 ({type(error).__name__}): save it again as {kind} in UTF-8 "
            "(spreadsheet programs have a choice of that name)."
        ) from None


def _delimiter(header: str) -> str:
    """The separator of a table's first line: a comma, or what spreadsheet programs of some countries write instead."""
    return max(",;\t", key=header.count)  # the first one if none occurs


def _columns(path: Path, rows: Iterable[Mapping[str, object]], header: Iterable[str] = ()) -> dict[str, list[str]]:
    """Rows turned into columns. A column without a name (an index that a program wrote) and empty rows are dropped."""
    rows = [row for row in rows if any(value not in (None, "") for value in row.values())]
    names = dict.fromkeys([*header, *(name for row in rows for name in row)])
    names.pop("", None)
    return {name: [_text(path, name, row.get(name)) for row in rows] for name in names}


def _text(path: Path, name: str, value: object) -> str:
    if isinstance(value, list | dict):
        raise UserError(f"{path} has a list or an object in column {name!r}: give plain values.")
    return "" if value is None else str(value)


def _json_object(path: Path, line: str) -> dict[str, object]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise UserError(f"{path} has a line that is not a JSON object: write one object a line.")
    return row


def _parquet_rows(path: Path) -> list[dict[str, object]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", "parquet", f"Reading {path.name}") from None
    try:
        table = pyarrow.parquet.read_table(path)
        rows: list[dict[str, object]] = table.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet ({type(error).__name__}): write it again.") from None
    return rows
