"""Benchmarks that are published as class folders, under folders that are no classes."""

import re
from dataclasses import replace
from pathlib import Path

from dpldm.data.folders import FolderSource, open_folder
from dpldm.data.source import Wanted
from dpldm.errors import UserError

EUROSAT_CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
_EUROSAT_FOLDERS = ("EuroSAT_RGB", "2750")
_WORDNET = re.compile(r"n[0-9]{8}")
_IMAGENET_FOLDERS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "ILSVRC2012", "imagenet")


def open_eurosat(path: Path, wanted: Wanted) -> FolderSource | None:
    """`EuroSAT_RGB` (once `2750`) with a folder for each of ten classes; None for anything else. It has no splits.

    Raises:
        UserError: a class is missing, or these are the TIFF files with 13 bands.
    """
    places = [path, *(path / name for name in _EUROSAT_FOLDERS), path / "EuroSAT" / "2750"]
    found = {place: [name for name in EUROSAT_CLASSES if (place / name).is_dir()] for place in places}
    root = max(places, key=lambda place: len(found[place]))
    if len(found[root]) < 3:  # some other set may have a Forest and a River
        return None
    missing = [name for name in EUROSAT_CLASSES if name not in found[root]]
    if missing:
        raise UserError(f"{root} lacks EuroSAT's {', '.join(missing)}: unpack EuroSAT_RGB.zip there again.")
    if any((root / "Forest").glob("*.tif")):
        raise UserError(f"{root} holds EuroSAT's 13 bands: get the colour images, EuroSAT_RGB.zip.")
    return replace(open_folder(root), layout="EuroSAT, colour images")


def open_imagenet_tree(path: Path, wanted: Wanted) -> FolderSource | None:
    """ImageNet with `train` and `val` of one folder for each WordNet number; None for anything else.

    Raises:
        UserError: the split is missing, or its images are not sorted into classes.
    """
    places = [path, *(path / name for name in _IMAGENET_FOLDERS)]
    root = next((place for place in places if _has_classes(place / "train") or _has_classes(place / "val")), None)
    if root is None:
        return None
    if not (root / wanted.split).is_dir():
        raise UserError(
            f"{root} has no folder {wanted.split} of ImageNet: get it, or give the folder of another split."
        )
    if not _has_classes(root / wanted.split):
        raise UserError(
            f"{root / wanted.split} holds ImageNet's images unsorted: move each into the folder of its WordNet number."
        )
    return replace(open_folder(root / wanted.split), layout="ImageNet, class folders", split=wanted.split)


def _has_classes(folder: Path) -> bool:
    return folder.is_dir() and any(_WORDNET.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir())
