"""Which font files may be used: their licence and family, read from the OpenType name table."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpldm.errors import MissingExtra, UserError

# Name IDs of the OpenType specification ("name" table).
COPYRIGHT, FAMILY, VERSION, LICENCE_TEXT, LICENCE_URL, TYPOGRAPHIC_FAMILY = 0, 1, 5, 13, 14, 16

# Refused first: a text that names one of these is refused even if it names an accepted licence too.
REFUSED = {
    "GPL": r"\b[AL]?GPL|\bGNU\b|General Public License",
    "non-commercial": r"non-?\s?commercial|\bNC\b|by-nc|personal use",
    "share-alike": r"share-?\s?alike|\bSA\b|by-sa|by-nc-sa",
    "no derivatives": r"\bND\b|by-nd|no derivatives",
}
ACCEPTED = {
    "OFL": r"\bOFL\b|\bopen\s?font\s?licen[sc]e\b",
    "Apache": r"\bapache\b",
    "CC0": r"\bCC0\b|publicdomain/zero",
    "CC BY": r"\bCC[ -]BY\b|creativecommons\.org/licenses/by/|\bcreative commons attribution\b",
    "MIT": r"\bMIT licen[sc]e\b|\bexpat licen[sc]e\b|opensource\.org/licenses/mit\b",
    "BSD": r"\bBSD\b",
    "ISC": r"\bISC licen[sc]e\b",
}
# Words of a style, cut from the end of a family name: "Source Serif Black" is of the family "Source Serif".
STYLE_WORDS = """
    thin hairline extralight ultralight light book regular normal roman text medium semi demi extra ultra
    semibold demibold bold extrabold ultrabold black heavy fat italic oblique slanted condensed cond
    semicondensed extracondensed narrow compressed wide expanded caps smallcaps sc lf osf tlf tosf lining
    display caption subhead headline small alt swash inline outline shadow
"""
_STYLE_WORDS = frozenset(STYLE_WORDS.split())
SYMBOL_FAMILY = re.compile(r"\b(orn|symbol|dingbat|keyboard|initial|icon|awesome|music|emoji|braille|semafor)", re.I)
SYSTEM_FOLDERS = (
    Path("/usr/share/fonts"),
    Path("/usr/local/share/fonts"),
    Path.home() / ".local/share/fonts",
)


@dataclass(frozen=True)
class FontFile:
    """One font file under an accepted licence."""

    path: Path
    family: str
    licence: str
    copyright: str
    version: str
    sha256: str

    def record(self) -> dict[str, str]:
        """What provenance.json says of it: everything but the place on this machine."""
        return {"file": self.path.name, "family": self.family, "licence": self.licence} | {
            "copyright": self.copyright, "version": self.version, "sha256": self.sha256
        }  # fmt: skip


def find_fonts(folders: Sequence[Path] | None, dropped: Counter[str]) -> list[FontFile]:
    """Font files (.otf, .ttf) anywhere below `folders` whose licence is accepted, each content once, sorted.

    Args:
        folders: where to look; None means the system's font folders and those bundled with matplotlib.
        dropped: receives the number of refused files by reason.

    Raises:
        UserError: if a folder does not exist.
        MissingExtra: if fonttools is not installed.
    """
    chosen = [Path(folder) for folder in folders] if folders is not None else _default_folders()
    for folder in chosen:
        if not folder.is_dir():
            raise UserError(f"The font folder {folder} does not exist.")
    paths = {path for folder in chosen for path in folder.rglob("*") if path.suffix.lower() in (".otf", ".ttf")}
    found: dict[str, FontFile] = {}
    for path in sorted(paths, key=lambda path: (path.name, str(path))):
        font = _read_font(path, dropped)
        if font is not None and font.sha256 in found:
            dropped["same file twice"] += 1
        elif font is not None:
            found[font.sha256] = font
    return sorted(found.values(), key=lambda font: (font.family, font.path.name, font.sha256))


def licence_of(copyright_notice: str, text: str, url: str) -> tuple[str | None, str]:
    """Judge the three licence fields of a name table.

    Returns: (licence, "") if accepted, (None, reason) if not. All three are read together, since some
    foundries state the licence in the copyright notice only.
    """
    statement = " ".join((text, url, copyright_notice))
    for reason, pattern in REFUSED.items():
        if re.search(pattern, statement, re.IGNORECASE):
            return None, f"licence: {reason}"
    for licence, pattern in ACCEPTED.items():
        if re.search(pattern, statement, re.IGNORECASE):
            return licence, ""
    if re.search(r"all rights\s+reserved", statement, re.IGNORECASE):
        return None, "licence: all rights reserved"
    return None, "licence: none or unknown"


def family_root(family: str) -> str:
    """A family name without words of style, weight and size at its end: one name for all cuts of a design."""
    words = re.sub(r"[\s_-]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", family)).strip().split(" ")
    while len(words) > 1 and (words[-1].lower() in _STYLE_WORDS or words[-1].isdigit()):
        words.pop()
    return re.sub(r"\d+$", "", " ".join(words)) or family


def held_out(family: str, fraction: float) -> bool:
    """Whether a family belongs to the held-out part: true for about `fraction` of all names.

    Decided by a hash of the first word of the name, regardless of case, so that related designs ("Fira Sans",
    "Fira Mono") stay together and no relative of a held-out letter is seen on the other side.
    """
    digest = hashlib.sha256(family.split(" ")[0].casefold().encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _default_folders() -> list[Path]:
    import matplotlib

    bundled = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [folder for folder in (*SYSTEM_FOLDERS, bundled) if folder.is_dir()]


def _read_font(path: Path, dropped: Counter[str]) -> FontFile | None:
    try:
        from fontTools.ttLib import TTFont, TTLibError
    except ImportError as error:
        raise MissingExtra("fonttools", "public", "Reading font licences") from error
    try:
        with TTFont(path, lazy=True) as font:
            names: Any = font["name"]
            fields = {number: names.getDebugName(number) or "" for number in (0, 1, 5, 13, 14, 16)}
    except (TTLibError, KeyError, UnicodeDecodeError):
        dropped["unreadable"] += 1
        return None
    licence, reason = licence_of(fields[COPYRIGHT], fields[LICENCE_TEXT], fields[LICENCE_URL])
    if licence is None:
        dropped[reason] += 1
        return None
    family = family_root(fields[TYPOGRAPHIC_FAMILY] or fields[FAMILY] or path.stem)
    if SYMBOL_FAMILY.search(family):
        dropped["family of symbols, by its name"] += 1
        return None
    notice = " ".join(fields[COPYRIGHT].split())
    return FontFile(path, family, licence, notice, fields[VERSION], hashlib.sha256(path.read_bytes()).hexdigest())
