"""A benchmark in colour: the emoji of one vendor as the private set, and the rule that keeps what it tests out of
public data.

All vendors draw the same list of emoji, so what one of them tests must not be learnt from another. A *concept* is what
an emoji's name says without who does it and in which skin tone. The variants of a concept look alike: they go into the
private or into the test part together, and `HeldOut` refuses a public icon by its set or by its concept.
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpldm.data.names import folder_names
from dpldm.data.public.icon_sets import document, read_package, require_licence
from dpldm.data.public.rendering import render_on_white
from dpldm.errors import UserError
from dpldm.progress import OnProgress, unseen

PERSONS = "man men woman women person people boy boys girl girls adult child"
TONES = "skin tone type light medium dark"
_PERSONS, _TONES = (frozenset(words.split()) for words in (PERSONS, TONES))
TEST_SHARE = 5
"""One concept in so many is tested."""
SMALLEST_GROUP = 50
"""A group with fewer emoji is left out: nothing could be learnt of it, or measured."""


@dataclass(frozen=True)
class HeldOut:
    """What public data must not hold when the emoji of `vendor` are private."""

    vendor: str
    concepts: frozenset[str]  # of the test part
    names: frozenset[str]  # the same as whole names, for sets that write words together

    def refuses(self, family: str, name: str) -> bool:
        """Whether an icon is of the vendor (also of an earlier or other edition, such as noto-v1), or shows what is
        tested."""
        return (
            family == self.vendor
            or family.startswith(f"{self.vendor}-")
            or concept(name) in self.concepts
            or _together(name) in self.names
        )


def concept(name: str) -> str:
    """What an emoji's name says without persons and skin tones: "woman-running-dark-skin-tone" -> "running"; where
    nothing else is left, with the persons: "boy-dark-skin-tone" -> "boy"."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    plain = [word for word in words if word not in _TONES]
    return "".join(word for word in plain if word not in _PERSONS) or "".join(plain) or "".join(words)


def held_out(folder: Path, vendor: str) -> HeldOut:
    """What to hold out of public data when the emoji of `vendor` are private.

    Args:
        folder: an unpacked `@iconify/json` package.
        vendor: name of a set that groups its icons.

    Raises:
        UserError: the package has no such set, or its licence is not among those that public sets may have.
    """
    names = [name for name in _groups(_emoji_of(folder, vendor)) if _is_tested(name)]
    return HeldOut(vendor, frozenset(map(concept, names)), frozenset(map(_together, names)))


def write_emoji(
    folder: Path, vendor: str, directory: Path, *, image_size: int, on_progress: OnProgress = unseen
) -> tuple[Path, Path, Counter[str]]:
    """Write `directory/private` and `directory/test`: a folder for each group, `metadata.csv` (file_name, label, text).

    Args:
        folder: an unpacked `@iconify/json` package.
        vendor: name of a set that groups its icons.
        directory: where to write.
        image_size: side in pixels; emoji are drawn on white.

    Returns: both folders, and how many images each part and group has.

    Raises:
        UserError: see `held_out`.
        MissingExtra: if resvg-py is not installed.
    """
    data = _emoji_of(folder, vendor)
    groups = {name: group for name, group in sorted(_groups(data).items()) if not data["icons"][name].get("hidden")}
    sizes = Counter(groups.values())
    kept = sorted(group for group, size in sizes.items() if size >= SMALLEST_GROUP)
    folders = dict(zip(kept, folder_names(kept), strict=True))
    tables: dict[str, list[dict[str, str]]] = {"private": [], "test": []}
    for done, (name, group) in enumerate(groups.items(), 1):
        if group in folders:
            part = "test" if _is_tested(name) else "private"
            path = directory / part / folders[group] / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            render_on_white(document(data["icons"][name], data), image_size).save(path)
            row = {"file_name": f"{folders[group]}/{name}.png", "label": group, "text": name.replace("-", " ")}
            tables[part].append(row)
        on_progress("emoji", done, len(groups))
    for part, rows in tables.items():
        _write_table(directory / part / "metadata.csv", rows)
    counts = Counter(f"{part}, {row['label']}" for part, rows in tables.items() for row in rows)
    _write_provenance(directory, folder, vendor, image_size, counts, {g: n for g, n in sizes.items() if g not in kept})
    return directory / "private", directory / "test", counts


def _is_tested(name: str) -> bool:
    """One concept in `TEST_SHARE`, chosen by a hash so that the choice is the same for every package and version."""
    return hashlib.sha256(concept(name).encode()).digest()[0] % TEST_SHARE == 0


def _together(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _emoji_of(folder: Path, vendor: str) -> dict[str, Any]:
    _, collections = read_package(folder)
    path = folder / "json" / f"{vendor}.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if vendor not in collections or not data.get("categories"):
        raise UserError(f"{folder} has no set {vendor!r} with groups: give the name of an emoji set, such as noto.")
    require_licence(vendor, collections[vendor])
    return data


def _groups(data: Mapping[str, Any]) -> dict[str, str]:
    """{name of an emoji: its group}; an emoji of two groups counts in the first."""
    return {
        name: group
        for group, names in sorted(data["categories"].items(), reverse=True)
        for name in names
        if name in data["icons"]
    }


def _write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("file_name", "label", "text"))
        writer.writeheader()
        writer.writerows(rows)


def _write_provenance(
    directory: Path, folder: Path, vendor: str, image_size: int, counts: Counter[str], left_out: Mapping[str, int]
) -> None:
    package, collections = read_package(folder)
    about = collections[vendor]
    record = {
        "kind": "emoji",
        "packages": {package["name"]: package["version"]},
        "vendor": vendor,
        "author": about.get("author", {}),
        "licence": about["license"],
        "parameters": {"image_size": image_size, "test_share": f"1/{TEST_SHARE} of concepts"},
        "images": dict(sorted(counts.items())),
        "groups_left_out": dict(left_out),
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (directory / "provenance.json").write_text(text + "\n", encoding="utf-8")
