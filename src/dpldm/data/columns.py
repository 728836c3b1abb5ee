"""What the columns of a table tell about records: class, caption, and whom a record belongs to."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dpldm.data.source import Wanted
from dpldm.errors import UserError

Table = Mapping[str, list[str]]
"""Columns by name, each with one text a row."""


class Told(NamedTuple):
    """What a table tells, each with one text a row; None where there is no such column."""

    labels: list[str] | None
    captions: list[str] | None
    groups: list[str] | None
    unused: list[str]  # names of the other columns


def told_by(
    place: Path,
    table: Table,
    wanted: Wanted,
    *,
    label: tuple[str, ...] = ("label",),
    caption: tuple[str, ...] = ("caption", "text"),
) -> Told:
    """The columns that `wanted` names; a label or caption that it does not name is the first of these names.

    Args:
        place: where the table is from, for messages.

    Raises:
        UserError: a named column is missing.
    """
    columns = {
        "label": wanted.label or _first_of(table, label),
        "caption": wanted.caption or _first_of(table, caption),
        "group": wanted.group,
    }
    for role, name in columns.items():
        if name is not None:
            require_column(place, table, name, f"name another {role} column, or rename")
    labels, captions, groups = (None if name is None else table[name] for name in columns.values())
    return Told(labels, captions, groups, [name for name in table if name not in columns.values()])


def require_column(place: Path, table: Table, name: str, remedy: str) -> None:
    """Refuse a table without this column.

    Raises:
        UserError: it has none; what to do is `remedy` it in the table.
    """
    if name not in table:
        there = ", ".join(map(repr, table))
        raise UserError(f"{place} has no column {name!r} (its columns: {there}): {remedy} it in the table.")


def _first_of(table: Table, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in table), None)
