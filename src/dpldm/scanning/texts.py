"""Texts of a release: no place of a machine, no key for a seed or a private number, nothing hidden."""

import csv
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from dpldm.data.names import spreadsheet_safe

PLACE = re.compile(
    r"(?<![\w.:/\\-])/(home|root|tmp|Users|mnt|media|var|srv|opt|data|private|usr|Volumes)/|\b[A-Za-z]:\\|file:/"
)
"""Beginnings of absolute paths."""
INTERNAL = re.compile(r"INTERNAL: |[Dd]o not publish")
"""What every internal text of ours is headed by; says so in fewer words than anybody's class name would."""
PRIVATE_KEY = re.compile(
    r"(^|_)(seeds?|rng|random_state|generator|entropy|loss(es)?|accuracy|accuracies|f1|auc|fid|kid|grads?|gradients?"
    r"|batch_sizes?|exp_avg|optimizer|evaluation|utility|distances?|fingerprints?|host(name)?|user(name)?|path|seconds)"
    r"($|_)"
)
PUBLIC_KEYS = ("recipe.", "public_sets.", "_name_or_path")
"""Below these, a backbone tells of public images."""


def parsed(text: str) -> Any:
    """JSON in which no key stands twice: readers differ in which one they take.

    Raises:
        ValueError: it is no JSON, or a key stands twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def place_or_mark(text: str, labels: Sequence[str]) -> str | None:
    """An absolute path or an INTERNAL mark in a text, or None. A class that is named like one excuses it."""
    for pattern, what in ((PLACE, "a path of a machine"), (INTERNAL, "a mark of something internal")):
        if pattern.search(text) and not any(pattern.search(label) for label in labels):
            return what
    return None


def private_key(value: Any) -> str | None:
    """The first key, dotted, that names a seed or a private number, or None."""
    for place in _keys(value, ""):
        if not place.startswith(PUBLIC_KEYS) and PRIVATE_KEY.search(place.rpartition(".")[2].lower()):
            return place
    return None


def _keys(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield f"{place}{key}"
            yield from _keys(entry, f"{place}{key}.")
    elif isinstance(value, list):
        for entry in value:
            yield from _keys(entry, place)


def extra_in_table(
    path: Path, labels: Sequence[str], images: Collection[str], prompts: Sequence[str] = ()
) -> str | None:
    """What `metadata.csv` holds beside declared labels, or prompts, and the names of declared `images`, or None."""
    allowed = {spreadsheet_safe(meaning) for meaning in labels or prompts}
    columns = ["file_name", *(["label"] if labels else ["text"] if prompts else [])]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (csv.Error, ValueError):
        return "no table"
    head, body = rows[:1], rows[1:]
    if head != [columns]:
        return f"other columns than {' and '.join(columns)}"
    if any(len(row) != len(columns) or (allowed and row[1] not in allowed) for row in body):
        return "a label that is not declared"
    if [row[0] for row in sorted(body)] != sorted(images):
        return "other files than the release has"
    return None
