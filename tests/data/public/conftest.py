"""Stand-ins for what the makers of public sets read: fonts with a chosen licence, a small icon package."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from fontTools import subset
from fontTools.ttLib import TTFont

OFL = "This Font Software is licensed under the SIL Open Font License, Version 1.1."
FontMaker = Callable[..., Path]


@pytest.fixture
def make_font(tmp_path: Path) -> FontMaker:
    """Write a small font: outlines from a font bundled with matplotlib, names and characters as asked."""

    def make(
        family: str,
        *,
        licence: str = OFL,
        notice: str = "Copyright (c) The Test Authors",
        characters: str = string.ascii_letters + string.digits,
        redraw: dict[str, str] | None = None,
        base: str = "DejaVuSans.ttf",
    ) -> Path:
        font = TTFont(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / base)
        subsetter = subset.Subsetter(subset.Options(notdef_outline=True, layout_features=[], hinting=False))
        subsetter.populate(text=string.ascii_letters + string.digits)
        subsetter.subset(font)
        for table in font["cmap"].tables:
            old = dict(table.cmap)
            shown = {character: (redraw or {}).get(character, character) for character in characters}
            table.cmap = {ord(key): old[ord(value)] for key, value in shown.items() if ord(value) in old}
        font["name"].names = []
        for number, text in {0: notice, 1: family, 13: licence}.items():
            font["name"].setName(text, number, 3, 1, 0x409)
        path = tmp_path / "fonts" / f"{family}.ttf"
        path.parent.mkdir(exist_ok=True)
        font.save(path)
        return path

    return make


def square(left: int, side: int = 8) -> str:
    return f'<path fill="currentColor" d="M{left} 4h{side}v{side}h-{side}z"/>'


@pytest.fixture
def icon_package(tmp_path: Path) -> Path:
    """An unpacked package with five sets; what may be used is named "good-...", "red" or "blue"."""
    folder = tmp_path / "package"
    about: dict[str, dict[str, Any]] = {}

    def add(prefix: str, icons: dict[str, Any], licence: str, **more: Any) -> None:
        author = {"name": f"{prefix} authors", "url": ""}
        facts = {
            "name": prefix,
            "total": len(icons),
            "author": author,
            "license": {"spdx": licence},
            "category": "UI",
        }
        about[prefix] = facts | more
        body = {"prefix": prefix, "width": 24, "height": 24, "icons": icons}
        path = folder / "json" / f"{prefix}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body))

    triangle = '<path fill="none" stroke="currentColor" stroke-width="2" d="M12 3L21 20H3z"/>'
    circle = '<circle cx="12" cy="12" r="9" fill="currentColor"/>'
    add(
        "plain",
        {
            "good-box": {"body": '<path fill="currentColor" d="M3 3h14v14h-6v-6h-8z"/>'},
            "good-triangle": {"body": triangle},
            "good-triangle-copy": {"body": triangle + "<g/>"},
            "calendar": {"body": square(3)},
            "number-circle": {"body": circle},
            "box-3d": {"body": square(4)},
            "brand-thing": {"body": square(5)},
            "ghost": {"body": square(6), "hidden": True},
            "blank": {"body": "<g/>"},
            "broken": {"body": "<g"},
            "letter": {"body": '<text x="2" y="20">7</text>'},
        },
        "MIT",
    )
    add(
        "sized",
        {f"good-disc-{size}-filled": {"body": circle, "width": 24, "height": 24} for size in (16, 20, 48)}
        | {"good-wide-20-filled": {"body": '<path fill="currentColor" d="M1 9h22v5h-9v3h-13z"/>'}},
        "Apache-2.0",
    )
    add("marks", {"good-looking": {"body": square(1, 5)}}, "MIT", category="Logos")
    add("sharealike", {"good-too": {"body": square(2, 6)}}, "CC-BY-SA-4.0")
    colours = {
        name: {"body": f'<path fill="{name}" d="M2 2h{side}v12h-{side}z"/>'}
        for name, side in (("red", 20), ("blue", 9))
    }
    add("palette", colours, "CC-BY-4.0", palette=True)
    (folder / "collections.json").write_text(json.dumps(about))
    (folder / "package.json").write_text(json.dumps({"name": "@iconify/json", "version": "9.9.9"}))
    return folder
