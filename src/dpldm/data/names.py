"""Text that others wrote (file names, labels) made fit for a terminal, a log, a table or a file system."""

import os
import unicodedata
from collections.abc import Sequence

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Lower-case endings of the formats that Pillow decodes."""
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
IMAGE_SUFFIXES = PICTURE_SUFFIXES | DICOM_SUFFIXES
"""Lower-case endings by which a file of a folder counts as an image."""

_LONGEST_FOLDER_NAME = 60  # characters: at most 240 bytes of UTF-8, below the 255 of common file systems
_FORBIDDEN = frozenset('/\\:*?"<>|')  # on one of the common file systems
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet evaluates (OWASP, "CSV injection")
_WINDOWS_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{device}{digit}" for device in ("com", "lpt") for digit in range(1, 10))]
)
_BESIDE_CLASS_FOLDERS = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "readme.md")


def has_image_suffix(name: str) -> bool:
    """Whether the name ends like an image file, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def printable(text: str) -> str:
    """The text on one line with control, format and undecodable characters written as escapes.

    Terminal escapes, bidirectional overrides and line breaks in a file name can neither act nor hide
    anything; the result can always be encoded as UTF-8.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii") if _is_invisible(character) else character
        for character in text
    )


def spreadsheet_safe(text: str) -> str:
    """`printable(text)`, with a leading apostrophe when a spreadsheet would take it for a formula."""
    return f"'{printable(text)}" if text.startswith(_FORMULA_STARTS) else printable(text)


def folder_names(labels: Sequence[str]) -> list[str]:
    """One folder name for each label: safe on common file systems, distinct even where case is ignored.

    An ordinary label (letters of any script, digits, spaces inside) is its own folder name. The result
    depends on nothing but the labels and their order.
    """
    taken = set(_BESIDE_CLASS_FOLDERS)
    names = []
    for label in labels:
        name = _folder_name(label)
        while name.casefold() in taken:
            name += "_"
        taken.add(name.casefold())
        names.append(name)
    return names


def _folder_name(label: str) -> str:
    characters = unicodedata.normalize("NFC", label)[:_LONGEST_FOLDER_NAME]
    name = "".join("_" if c in _FORBIDDEN or _is_invisible(c) else c for c in characters)
    name = name.strip().rstrip(".")
    if name.startswith((".", "~", *_FORMULA_STARTS)):  # hidden, expanded by a shell, or read as an option
        name = "_" + name[1:]
    if name.split(".")[0].strip().casefold() in _WINDOWS_DEVICES:
        name = "_" + name
    if has_image_suffix(name):  # a folder named like an image would be taken for an unreadable one
        name += "_"
    return name.strip() or "_"


def _is_invisible(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in ("Zl", "Zp")
