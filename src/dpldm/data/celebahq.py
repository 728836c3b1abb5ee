"""CelebA-HQ: images by number, with the captions of MM-CelebA-HQ, attributes, or both, joined by that number.

The authors' code joined them by place in a folder's listing, so that 10 stood before 2.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dpldm.data.celeba import (
    ATTRIBUTES,
    PARTITION,
    Listed,
    attribute_list,
    celeba_lists,
    find_list,
    lines_of,
)
from dpldm.data.folders import FolderSource, folder_with_table
from dpldm.data.names import has_image_suffix
from dpldm.data.pickles import read_pickle
from dpldm.data.source import Wanted, nested
from dpldm.errors import UserError

ANNOTATIONS = "CelebAMask-HQ-attribute-anno.txt"
MAPPINGS = ("CelebA-HQ-to-CelebA-mapping.txt", "image_list.txt")
IMAGES = ("CelebA-HQ-img", "celeba_hq_256", "images")
CAPTIONS = ("celeba-caption", "text/celeba-caption", "text")

_NUMBER = re.compile(r"(?:img)?0*([0-9]+)")


def open_celebahq(path: Path, wanted: Wanted) -> FolderSource | None:
    """A folder of numbered images, and beside it what is known of them; None for anything else.

    Of ten captions an image has, the first is taken, as in the paper. A split is what `train_filenames.pickle` lists
    (or `train/filenames.pickle`; so for test), or what CelebA's own partition says by way of the mapping from
    CelebA-HQ to CelebA; without either, all images are for training.

    Raises:
        UserError: there are no images, or an image has no caption or attributes, or nothing tells the split.
    """
    root = nested(path, "CelebAMask-HQ", "celebahq", "CelebAHQ")
    if not path.is_dir() or not _is_hq(root):
        return None
    folder = next((root / name for name in IMAGES if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(f"{root} lacks CelebA-HQ's images: put 0.jpg to 29999.jpg into a folder CelebA-HQ-img there.")
    files = {number: file for file in sorted(folder.iterdir()) if (number := _number_of(file)) is not None}
    columns = _columns(root, list(files))
    chosen = _split(root, wanted.split, columns, list(files))
    names = [file.relative_to(root).as_posix() for file in files.values()]
    return folder_with_table(
        root,
        root / ANNOTATIONS,
        {"file_name": names} | columns,
        replace(wanted, image="file_name"),
        layout="CelebA-HQ" + (" with captions" if "caption" in columns else ""),
        rows=None if chosen is None else [row for row, number in enumerate(files) if number in chosen],
    )


def _is_hq(root: Path) -> bool:
    folders, files = (*IMAGES[:2], *CAPTIONS[:2]), (ANNOTATIONS, MAPPINGS[0])
    return any((root / name).is_dir() for name in folders) or any((root / name).is_file() for name in files)


def _number_of(file: Path) -> int | None:
    match = _NUMBER.fullmatch(file.stem) if has_image_suffix(file.name) else None
    return int(match[1]) if match else None


def _columns(root: Path, numbers: list[int]) -> dict[str, list[str]]:
    """Captions, attributes and what the mapping to CelebA adds, for images of these numbers."""
    columns: dict[str, list[str]] = {}
    captions = next((root / name for name in CAPTIONS if (root / name).is_dir()), None)
    if captions is not None:
        columns["caption"] = [_first_caption(captions / f"{number}.txt") for number in numbers]
    if (root / ANNOTATIONS).is_file():
        listed = attribute_list(root / ANNOTATIONS)
        originals = {number: name for name in listed.rows if (number := _number_of(Path(name))) is not None}
        columns |= _joined(listed, originals, numbers, root / ANNOTATIONS)
    originals = _originals(root)
    if originals and find_list(root, PARTITION) and find_list(root, ATTRIBUTES):
        columns |= _joined(celeba_lists(root), originals, numbers, root / ATTRIBUTES)
    return columns


def _joined(listed: Listed[str], originals: Mapping[int, str], numbers: list[int], place: Path) -> dict[str, list[str]]:
    try:
        return listed.table([originals[number] for number in numbers])
    except KeyError:
        raise UserError(f"{place} does not list every image of CelebA-HQ that is there: get it again.") from None


def _first_caption(path: Path) -> str:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        lines = []
    if not lines:
        raise UserError(f"{path.parent} has no caption for one of the images: get MM-CelebA-HQ's text.zip again.")
    return lines[0]


def _originals(root: Path) -> dict[int, str]:
    """The file of CelebA that each image of CelebA-HQ was made from; {} without the mapping."""
    path = next((root / name for name in MAPPINGS if (root / name).is_file()), None)
    if path is None:
        return {}
    try:
        header, *lines = (line.split() for line in lines_of(path))
        number, original = header.index("idx"), header.index("orig_file")
        return {int(line[number]): line[original] for line in lines}
    except (ValueError, IndexError):
        raise UserError(
            f"{path} is not the mapping from CelebA-HQ to CelebA (idx, orig_idx, orig_file): get it again."
        ) from None


def _split(root: Path, split: str, columns: Mapping[str, list[str]], numbers: list[int]) -> set[int] | None:
    """The numbers of the images of a split; None where no list tells one, for training."""
    lists = [root / name for name in (f"{split}_filenames.pickle", f"{split}/filenames.pickle")]
    listed = next((path for path in lists if path.is_file()), None)
    if listed is not None:
        return _listed(listed)
    if "partition" in columns:
        return {number for number, part in zip(numbers, columns["partition"], strict=True) if part == split}
    if split == "train" and not any(root.glob("*_filenames.pickle")) and not any(root.glob("*/filenames.pickle")):
        return None
    raise UserError(
        f"{root} does not tell CelebA-HQ's split {split!r}: add {split}_filenames.pickle, or {MAPPINGS[0]} with "
        f"CelebA's {PARTITION} and {ATTRIBUTES}."
    )


def _listed(path: Path) -> set[int]:
    """The numbers in a pickled list of file names or numbers."""
    found = read_pickle(path)
    names = found.texts.get("items") or [str(number) for number in found.arrays.get("items", ())]
    matches = [_NUMBER.fullmatch(Path(name).stem) for name in names]
    if not names or not all(matches):
        raise UserError(f"{path} is not a list of CelebA-HQ's images: get it again.")
    return {int(match[1]) for match in matches if match}
