"""CelebA and CelebA-HQ: folders of faces, with lists that are joined to them by file name or number, never by place.

Every attribute is a column whose values are its name and "not " before its name; `identity` says who it is.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dpldm.data.folders import FolderSource, folder_with_table
from dpldm.data.names import has_image_suffix
from dpldm.data.pickles import read_pickle
from dpldm.data.source import Wanted, nested
from dpldm.errors import UserError

ATTRIBUTES, PARTITION, IDENTITY = "list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt"
HQ_ATTRIBUTES = "CelebAMask-HQ-attribute-anno.txt"
HQ_MAPPINGS = ("CelebA-HQ-to-CelebA-mapping.txt", "image_list.txt")
HQ_IMAGES = ("CelebA-HQ-img", "celeba_hq_256", "images")
HQ_CAPTIONS = ("celeba-caption", "text/celeba-caption", "text")

_PLACES = ("", "Anno", "Eval")
_SPLITS = {"0": "train", "1": "val", "2": "test"}
_NUMBER = re.compile(r"(?:img)?0*([0-9]+)")

Row = Mapping[str, str]


def open_celeba(path: Path, wanted: Wanted) -> FolderSource | None:
    """`img_align_celeba`, with `list_attr_celeba.txt` and `list_eval_partition.txt`; None for anything else.

    Raises:
        UserError: one of the three is missing or damaged, or a named column is not there.
    """
    root = nested(path, "celeba", "CelebA")
    images = _images(root)
    lists = {name: _find(root, name) for name in (ATTRIBUTES, PARTITION)}
    if _is_hq(root) or (images is None and not any(lists.values())):
        return None
    missing = [name for name, place in lists.items() if place is None]
    if images is None:
        missing.append("the folder img_align_celeba (unpack img_align_celeba.zip)")
    if missing or images is None:
        raise UserError(f"{root} lacks {' and '.join(missing)}: get what is missing of CelebA.")
    rows = _celeba_rows(root)
    names = list(rows)
    prefix = images.relative_to(root).as_posix()
    table = {"file_name": [f"{prefix}/{name}" for name in names]} | _columns(rows, names)
    kept = [place for place, name in enumerate(names) if rows[name]["partition"] == wanted.split]
    return folder_with_table(
        root, root / ATTRIBUTES, table, replace(wanted, image="file_name"), layout="CelebA", rows=kept
    )


def open_celebahq(path: Path, wanted: Wanted) -> FolderSource | None:
    """CelebA-HQ: images by number, with the captions of MM-CelebA-HQ, or attributes, or both; None for anything else.

    Of ten captions an image has, the first is taken, as in the paper. A split is what `train_filenames.pickle` lists
    (or `train/filenames.pickle`; so for test), or what CelebA's own partition says by way of the mapping from
    CelebA-HQ to CelebA; without either, all images are the training part.

    Raises:
        UserError: there are no images, or an image has no caption or attributes, or nothing tells the split.
    """
    root = nested(path, "CelebAMask-HQ", "celebahq", "CelebAHQ")
    if not path.is_dir() or not _is_hq(root):
        return None
    folder = next((root / name for name in HQ_IMAGES if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(f"{root} lacks CelebA-HQ's images: put 0.jpg to 29999.jpg into a folder CelebA-HQ-img there.")
    files = {number: file for file in sorted(folder.iterdir()) if (number := _number_of(file)) is not None}
    columns = _hq_columns(root, list(files))
    chosen = _hq_split(root, wanted.split, columns, list(files))
    names = [file.relative_to(root).as_posix() for file in files.values()]
    kept = None if chosen is None else [place for place, number in enumerate(files) if number in chosen]
    return folder_with_table(
        root,
        root / HQ_ATTRIBUTES,
        {"file_name": names} | columns,
        replace(wanted, image="file_name"),
        layout="CelebA-HQ" + (" with captions" if "caption" in columns else ""),
        rows=kept,
    )


# --- CelebA -----------------------------------------------------------------------------------------------------------


def _images(root: Path) -> Path | None:
    """The folder of aligned faces; some archives hold it in another one of the same name."""
    name = "img_align_celeba"
    places = (f"{name}/{name}", name, f"Img/{name}")
    return next((root / place for place in places if (root / place).is_dir()), None)


def _find(root: Path, name: str) -> Path | None:
    return next((root / place / name for place in _PLACES if (root / place / name).is_file()), None)


def _celeba_rows(root: Path) -> dict[str, dict[str, str]]:
    """By file name: attributes, partition (train, val, test), and identity where it is known."""
    attributes, partition = _find(root, ATTRIBUTES), _find(root, PARTITION)
    if attributes is None or partition is None:
        raise UserError(f"{root} lacks {ATTRIBUTES} or {PARTITION}: get what is missing of CelebA.")
    rows = _attributes(attributes)
    parts = {name: _SPLITS.get(part, "") for name, part in _pairs(partition)}
    if rows.keys() != parts.keys() or "" in parts.values():
        raise UserError(f"{attributes} and {partition} do not list the same images: get both again.")
    for name, part in parts.items():
        rows[name]["partition"] = part
    if (identity := _find(root, IDENTITY)) is not None:
        for name, person in _pairs(identity):
            if name in rows:
                rows[name]["identity"] = person
    return rows


def _attributes(path: Path) -> dict[str, dict[str, str]]:
    """A line with the number of images, one with names of attributes, then a file name and as many 1 and -1 a line."""
    lines = _lines(path)
    names = lines[1].split() if len(lines) > 1 else []
    rows: dict[str, dict[str, str]] = {}
    for line in lines[2:]:
        file, *values = line.split()
        if len(values) != len(names) or not set(values) <= {"1", "-1"}:
            raise UserError(f"{path} has a line that does not give 1 or -1 for each attribute: get it again.")
        rows[file] = {name: name if value == "1" else f"not {name}" for name, value in zip(names, values, strict=True)}
    return rows


def _pairs(path: Path) -> list[tuple[str, str]]:
    pairs = [line.split() for line in _lines(path)]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{path} has a line that is not a file name and a number: get it again.")
    return [(name, value) for name, value in pairs]


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        raise UserError(f"{path} cannot be read as text: get it again.") from None


def _columns(rows: Mapping[str, Row], names: list[str]) -> dict[str, list[str]]:
    """The rows of these names, column by column; a value that a row lacks is empty."""
    columns = dict.fromkeys(column for name in names for column in rows[name])
    return {column: [rows[name].get(column, "") for name in names] for column in columns}


# --- CelebA-HQ --------------------------------------------------------------------------------------------------------


def _is_hq(root: Path) -> bool:
    folders, files = (*HQ_IMAGES[:2], *HQ_CAPTIONS[:2]), (HQ_ATTRIBUTES, HQ_MAPPINGS[0])
    return any((root / name).is_dir() for name in folders) or any((root / name).is_file() for name in files)


def _number_of(file: Path) -> int | None:
    match = _NUMBER.fullmatch(file.stem) if has_image_suffix(file.name) else None
    return int(match[1]) if match else None


def _hq_columns(root: Path, numbers: list[int]) -> dict[str, list[str]]:
    """Captions, attributes and what the mapping to CelebA adds, for images of these numbers."""
    columns: dict[str, list[str]] = {}
    captions = next((root / name for name in HQ_CAPTIONS if (root / name).is_dir()), None)
    if captions is not None:
        columns["caption"] = [_first_caption(captions / f"{number}.txt") for number in numbers]
    originals = _originals(root)
    if (root / HQ_ATTRIBUTES).is_file():
        rows = _attributes(root / HQ_ATTRIBUTES)
        named = {number: row for name, row in rows.items() if (number := _number_of(Path(name))) is not None}
        columns |= _joined(named, numbers, root / HQ_ATTRIBUTES)
    if originals and _find(root, PARTITION) and _find(root, ATTRIBUTES):
        celeba = _celeba_rows(root)
        known = {number: celeba[name] for number, name in originals.items() if name in celeba}
        columns |= _joined(known, numbers, root / ATTRIBUTES)
    return columns


def _first_caption(path: Path) -> str:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        lines = []
    if not lines:
        raise UserError(f"{path.parent} has no caption for one of the images: get MM-CelebA-HQ's text.zip again.")
    return lines[0]


def _joined(rows: Mapping[int, Row], numbers: list[int], place: Path) -> dict[str, list[str]]:
    if not rows.keys() >= set(numbers):
        raise UserError(f"{place} does not list every image of CelebA-HQ that is there: get it again.")
    by_name = {str(number): rows[number] for number in numbers}
    return _columns(by_name, list(by_name))


def _originals(root: Path) -> dict[int, str]:
    """The file of CelebA that each image of CelebA-HQ was made from; {} without the mapping."""
    path = next((root / name for name in HQ_MAPPINGS if (root / name).is_file()), None)
    if path is None:
        return {}
    header, *lines = (line.split() for line in _lines(path))
    try:
        number, original = header.index("idx"), header.index("orig_file")
        return {int(line[number]): line[original] for line in lines}
    except (ValueError, IndexError):
        raise UserError(f"{path} is not the mapping from CelebA-HQ to CelebA (idx, orig_idx, orig_file).") from None


def _hq_split(root: Path, split: str, columns: Mapping[str, list[str]], numbers: list[int]) -> set[int] | None:
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
        f"{root} does not tell CelebA-HQ's split {split!r}: add {split}_filenames.pickle, or {HQ_MAPPINGS[0]} with "
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
