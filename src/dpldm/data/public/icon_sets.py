"""Which icons of an unpacked `@iconify/json` package may be used, and the SVG document of each.

The package holds SVG bodies in `json/<set>.json` and each set's licence and category in `collections.json`.
Taken are sets under permissive licences only; left out are logos (trade marks), whatever may show a digit
(`digits.py`), whatever is held out (`emoji.py`), and all but one of the sizes in which a set draws the same icon.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpldm.data.public.digits import digit_reason, split_size, uses_sizes
from dpldm.errors import UserError

LICENCES = """
    MIT Apache-2.0 BSD-2-Clause BSD-3-Clause ISC CC0-1.0 OFL-1.1 CC-BY-3.0 CC-BY-4.0
"""
LOGO_SETS = """
    simple-icons logos cib bxl fa-brands fa6-brands fa7-brands devicon devicon-plain skill-icons
    cryptocurrency cryptocurrency-color token token-branded brandico vscode-icons material-icon-theme
    file-icons catppuccin gcp k8s unjs thesvg thesvg-color selfhst nonicons academicons bitcoin-icons
    entypo-social streamline-logos
"""
BRAND_WORDS = """
    brand brands logo logos logotype facebook twitter instagram linkedin google github gitlab bitbucket
    apple android windows microsoft amazon aws azure paypal visa mastercard youtube vimeo whatsapp wechat
    telegram tiktok snapchat pinterest reddit discord slack skype dropbox spotify netflix steam xbox
    playstation nintendo docker kubernetes python javascript typescript react angular vuejs nodejs
    wordpress adobe figma behance dribbble bitcoin ethereum dogecoin litecoin chrome firefox safari opera
    edge ubuntu debian fedora linux ibm
"""
_LICENCES, _LOGO_SETS, _BRAND_WORDS = (frozenset(words.split()) for words in (LICENCES, LOGO_SETS, BRAND_WORDS))


@dataclass(frozen=True)
class Icon:
    """One icon: its set, its name (without the size) and an SVG document in which currentColor is white."""

    family: str
    name: str
    svg: str


@dataclass(frozen=True)
class Selection:
    """The icons of a package, sorted by set and name.

    Args:
        package: name and version of the package.
        sets: name, author, licence and the like of each allowed set.
        kept: icons that may be used.
        digits: icons that the digit rule refused.
        dropped: number of icons refused, by reason.
    """

    package: tuple[str, str]
    sets: Mapping[str, Mapping[str, Any]]
    kept: list[Icon]
    digits: list[Icon]
    dropped: Counter[str]


def select_icons(
    folder: Path, *, multicolour_only: bool, held_out: Callable[[str, str], bool] | None = None
) -> Selection:
    """Read a package and sort its icons out.

    Args:
        held_out: whether the icon of this set and name is to be left out, because private data show the same.

    Raises:
        UserError: if `folder` is not an unpacked package.
    """
    package, collections = read_package(folder)
    dropped: Counter[str] = Counter()
    sets = {
        family: about
        for family, about in sorted(collections.items())
        if (about.get("palette") or not multicolour_only) and _allow_set(family, about, dropped)
    }
    kept: list[Icon] = []
    digits: list[Icon] = []
    for family in sets:
        path = folder / "json" / f"{family}.json"
        if not path.is_file():
            raise UserError(f"{folder} is incomplete: collections.json names the set {family}, which json/ lacks.")
        _sort_out(family, json.loads(path.read_text(encoding="utf-8")), held_out, kept, digits, dropped)
    return Selection((package["name"], package["version"]), sets, kept, digits, dropped)


def read_package(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """package.json and collections.json of an unpacked package.

    Raises:
        UserError: it is none.
    """
    paths = [folder / "package.json", folder / "collections.json"]
    if not all(path.is_file() for path in paths):
        raise UserError(f"{folder} is not an unpacked @iconify/json package: it needs package.json, collections.json.")
    package, collections = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    return package, collections


def require_licence(family: str, about: Mapping[str, Any]) -> None:
    """Refuse a set under a licence that public sets may not have.

    Raises:
        UserError: it is under one.
    """
    licence = about["license"].get("spdx")
    if licence not in _LICENCES:
        raise UserError(f"The set {family} is under {licence}: choose one under {', '.join(sorted(_LICENCES))}.")


def _allow_set(family: str, about: Mapping[str, Any], dropped: Counter[str]) -> bool:
    licence = about["license"].get("spdx")
    if licence not in _LICENCES:
        dropped[f"licence {licence}"] += about["total"]
    elif family in _LOGO_SETS or about.get("category") == "Logos":
        dropped["set of logos"] += about["total"]
    else:
        return True
    return False


def _sort_out(
    family: str,
    data: Mapping[str, Any],
    held_out: Callable[[str, str], bool] | None,
    kept: list[Icon],
    digits: list[Icon],
    dropped: Counter[str],
) -> None:
    for name, largest in _one_per_size(data["icons"], dropped).items():
        icon = Icon(family, name, document(data["icons"][largest], data))
        reason = "text in the drawing" if "<text" in icon.svg else digit_reason(name)
        if held_out is not None and held_out(family, name):
            dropped["held out"] += 1
        elif reason is not None:
            dropped[reason] += 1
            digits.append(icon)
        elif _BRAND_WORDS & set(re.split(r"[^a-z]+", name)):
            dropped["brand in the name"] += 1
        else:
            kept.append(icon)


def _one_per_size(icons: Mapping[str, Mapping[str, Any]], dropped: Counter[str]) -> dict[str, str]:
    """{name without size: full name of the largest size}, without hidden icons and skin-tone variants."""
    names = sorted(name for name, icon in icons.items() if not icon.get("hidden") and "skin-tone" not in name)
    dropped["hidden or skin-tone variant"] += len(icons) - len(names)
    sized = uses_sizes(names)
    split = {name: split_size(name) if sized else (name, 0) for name in names}
    largest = {split[name][0]: name for name in sorted(names, key=lambda name: split[name][1])}
    dropped["other size of a kept icon"] += len(names) - len(largest)
    return dict(sorted(largest.items()))


def document(icon: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """The SVG of an icon of the set `data`, with white for currentColor."""
    # A field of the icon wins over that of the set; the format's default size is 16.
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
    box = " ".join(str(icon.get(key, data.get(key, default))) for key, default in defaults.items())
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{icon["body"].replace("currentColor", "#fff")}</svg>'
    )
