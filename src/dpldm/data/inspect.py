"""A look at a set of images by its holder. INTERNAL: everything here is about private data."""

import hashlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import yaml

from dpldm.data.decode import Unreadable
from dpldm.data.folders import FOLDER_PER_CLASS
from dpldm.data.ingest import MIN_READABLE
from dpldm.data.names import printable
from dpldm.data.readers import open_source
from dpldm.data.source import Source
from dpldm.errors import UserError

_LISTED = 10  # entries of a long list that are shown
_TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".xlsx", ".xls", ".ods")
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class Inspection:
    """What `inspect_source` found. INTERNAL: exact facts about private data, not to be published."""

    path: Path
    layout: str
    """The format that was recognised."""
    records: int
    sizes: dict[tuple[int, int], int]
    """Number of readable images of each (width, height), most frequent first."""
    modes: dict[str, int]
    """Number of readable images of each kind: L, LA, RGB, RGBA, I;16, I."""
    bit_depth: int
    """8, or 16 as soon as one image has 16 bits."""
    labels: dict[str, int] | None
    """Records of each class, in `label_order`; None without classes."""
    captions: bool
    groups: int | None
    """Number of distinct groups; None when no group column was named."""
    max_images_per_group: int | None
    unreadable: list[tuple[str, str]]
    """(key, reason)."""
    duplicates: list[list[str]]
    """Sets of keys whose images are equal, pixel for pixel."""
    ignored: list[str]
    """Files that are no records."""
    deeper_folders: bool
    """Whether class folders hold folders of their own."""
    linked: list[str]
    """Linked folders, which are not entered."""
    unused_columns: list[str]
    label_column: str | None
    caption_column: str | None
    group_column: str | None

    @property
    def readable(self) -> int:
        """Number of records that hold an image."""
        return self.records - len(self.unreadable)


def inspect_source(
    path: str | Path,
    *,
    label_column: str | None = None,
    caption_column: str | None = None,
    group_column: str | None = None,
    image_column: str = "file_name",
    split: str = "train",
) -> Inspection:
    """Opens a set of images as `open_source` does, and looks at every record. INTERNAL.

    Raises:
        UserError, MissingExtra: as `open_source`.
    """
    source = open_source(
        path,
        label_column=label_column,
        caption_column=caption_column,
        group_column=group_column,
        image_column=image_column,
        split=split,
    )
    sizes, modes, unreadable, duplicates = _look_at_images(source)
    labels = None if source.labels is None else Counter(source.labels)
    groups = None if source.groups is None else Counter(source.groups)
    return Inspection(
        path=Path(path),
        layout=source.layout,
        records=len(source),
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        bit_depth=16 if {"I", "I;16"} & modes.keys() else 8,
        labels=None if labels is None else {label: labels[label] for label in label_order(labels)},
        captions=source.captions is not None,
        groups=None if groups is None else len(groups),
        max_images_per_group=None if groups is None else max(groups.values(), default=0),
        unreadable=unreadable,
        duplicates=duplicates,
        ignored=source.ignored,
        deeper_folders=source.layout == FOLDER_PER_CLASS and any(key.count("/") > 1 for key in source.keys),
        linked=[key for key in source.ignored if (Path(path) / key).is_dir()],
        unused_columns=source.unused_columns,
        label_column=label_column,
        caption_column=caption_column,
        group_column=group_column,
    )


def label_order(labels: dict[str, int]) -> list[str]:
    """The names sorted: as numbers when all of them are whole numbers, otherwise as text."""
    if all(label.isascii() and label.isdigit() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


_Look = tuple[Counter[tuple[int, int]], Counter[str], list[tuple[str, str]], list[list[str]]]


def _look_at_images(source: Source) -> _Look:
    """(sizes, modes, unreadable records, sets of equal images)."""
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    unreadable = []
    same: defaultdict[bytes, list[str]] = defaultdict(list)
    for index, key in enumerate(source.keys):
        try:
            image = source.image(index)
        except Unreadable as error:
            unreadable.append((key, error.reason))
            continue
        sizes[image.size] += 1
        modes[image.mode] += 1
        same[hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest()].append(key)
    return sizes, modes, unreadable, [keys for keys in same.values() if len(keys) > 1]


def render(inspection: Inspection) -> str:
    """The inspection as text for the holder's terminal. INTERNAL."""
    found = inspection
    lines = [
        "INTERNAL: exact facts about private images. Do not publish.",
        "",
        f"data         {printable(str(found.path))}  ({found.layout})",
        f"records      {found.records}, of them {found.readable} readable",
        f"sizes        {_listing([f'{w}x{h}: {n}' for (w, h), n in found.sizes.items()])}",
        f"modes        {_listing([f'{mode}: {n}' for mode, n in found.modes.items()])}",
        f"depth        {found.bit_depth} bits",
        f"classes      {_classes(found)}",
    ]
    if found.captions:
        lines.append("captions     yes")
    if found.groups is not None:
        lines.append(f"groups       {found.groups}, with at most {found.max_images_per_group} images each")
    if found.unused_columns:
        lines.append(f"not read     columns {_listing([printable(name) for name in found.unused_columns])}")
    if found.ignored:
        lines.append(f"not read     {len(found.ignored)} files: {_listing([printable(k) for k in found.ignored])}")
    lines += _paragraph("unreadable", [f"{printable(key)}: {reason}" for key, reason in found.unreadable])
    lines += _paragraph("equal images", [", ".join(map(printable, keys)) for keys in found.duplicates])
    warnings = _warnings(found)
    if warnings:
        lines += ["", *(f"WARNING: {warning}" for warning in warnings)]
    return "\n".join(lines) + "\n"


def _classes(found: Inspection) -> str:
    if found.labels is None:
        return "none"
    return _listing([f"{printable(label)}: {count}" for label, count in found.labels.items()])


def _listing(entries: list[str]) -> str:
    more = len(entries) - _LISTED
    return ", ".join(entries[:_LISTED] + ([f"and {more} more"] if more > 0 else [])) or "none"


def _paragraph(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = len(entries) - _LISTED
    shown = entries[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
    return [f"{title:12} {len(entries)}", *(f"  {entry}" for entry in shown)]


def _warnings(found: Inspection) -> list[str]:
    warnings = []
    if found.readable < MIN_READABLE:
        warnings.append(f"fewer than {MIN_READABLE} images can be read, so a run would refuse: check the folder.")
    if tables := [key for key in found.ignored if _may_be_a_table(found, key)]:
        warnings.append(
            f"{printable(tables[0])} is not read: a table of classes and persons is one named metadata.csv, with the "
            "names of the files in a column file_name."
        )
    if found.labels is None and found.caption_column is None and found.unused_columns:
        warnings.append("no class column was found: if one of the columns holds the class, use --label-column.")
    if found.labels is not None and set(found.labels) <= SPLIT_NAMES:
        warnings.append(
            "the classes have names of splits: give the training folder alone, and the other one as data.test_path."
        )
    if found.deeper_folders:
        warnings.append("folders inside the class folders were taken for no classes: only the first level counts.")
    if found.labels is not None and not all(label.strip() for label in found.labels):
        warnings.append("some records have no class name: fill it in, or take them out.")
    if found.linked:
        warnings.append(f"linked folders are not entered: {_listing([printable(key) for key in found.linked])}.")
    if found.captions:
        remedy = "look again with --caption-column" if found.caption_column is None else "choose one"
        warnings.append(
            f"captions are used by a backbone that is told captions only, which grey32 is not: {remedy} "
            "(rgb32-text, or see docs/backbones.md)."
        )
    if (found.max_images_per_group or 0) > 1:
        warnings.append(
            "several images share a group: set privacy.unit: group and privacy.max_images_per_group (--write does), or "
            "the guarantee is per image, not per person."
        )
    elif found.unused_columns and found.group_column is None:
        warnings.append(
            "if one of the columns that are not read names a person, look again with --group-column: the "
            "guarantee is per image, not per person."
        )
    if found.duplicates:
        warnings.append("equal images are separate records: the guarantee covers one of them at a time.")
    if found.bit_depth == 16:
        deep = sum(found.modes.get(mode, 0) for mode in ("I", "I;16"))
        own = "DICOM images are shown by the windows in their own headers, others" if "I" in found.modes else "they"
        warnings.append(
            f"{deep} of the images have 16 bits: set data.window, from the instrument's range and not from the images. "
            f"Without it {own} contribute nothing."
        )
    if found.unreadable:
        warnings.append("unreadable records stay in the index and contribute nothing: repair them if you can.")
    return warnings


def _may_be_a_table(found: Inspection, key: str) -> bool:
    return "metadata." not in found.layout and "/" not in key and key.lower().endswith(_TABLE_SUFFIXES)


def write_config(inspection: Inspection, path: Path) -> None:
    """Writes the start of a run's configuration (YAML), without any count of the data.

    With a caption column it declares no classes, since an image is told by one of the two.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    portrayed = bool(inspection.labels) and inspection.caption_column is None
    text = _CONFIG.format(
        path=_yaml(str(inspection.path)),
        labels=_yaml([] if inspection.caption_column is not None else list(inspection.labels or ())),
        label_column=_yaml(inspection.label_column),
        caption_column=_yaml(inspection.caption_column),
        group_column=_yaml(inspection.group_column),
        method=_PORTRAITS if portrayed else _DIFFUSION,
        recipe=_OF_PORTRAITS if portrayed else _OF_DIFFUSION,
        unit=_UNIT_GROUP if inspection.group_column else _UNIT_IMAGE,
        dataset_id=_yaml(_dataset_id(inspection.path.resolve().name.split(".")[0])),
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} exists: choose another name, or remove it.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another place.") from None


def _dataset_id(name: str) -> str:
    """The name with everything that `privacy.dataset_id` does not allow made a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")[:64] or "data"


def _yaml(value: str | list[str] | None) -> str:
    """A value in YAML's one-line form, quoted; empty for None."""
    if value is None:
        return ""
    # In a list, because a bare value would be followed by the end mark of a document. In quotes, because 1e3 is a
    # number to us (see loading.py) and text to YAML 1.1. Letters of all scripts stay legible, and what could hide or
    # act in a terminal is escaped.
    legible = all(printable(text) == text for text in ([value] if isinstance(value, str) else value))
    dumped = yaml.safe_dump(
        [value], default_flow_style=True, default_style='"', width=float("inf"), allow_unicode=legible
    )
    return str(dumped).strip()[1:-1]


_CONFIG = """\
# Start of a configuration. What it says becomes part of the release: nothing here may come from counting
# or measuring the private images. `dpldm plan --help` lists all settings.
name: run              # the run's folder. Another name is another run, and paid for again
{method}
data:
  path: {path}
  image_size: 32       # every image is resized to it: 32 for grey32 and rgb32, 64 for grey64
  channels: 1          # 1 grey, 3 colour
  # The class names that were found. They are published with the release, so they must be public knowledge:
  # add the classes that may occur, and take out any whose mere existence tells something. [] = no classes.
  labels: {labels}
  label_column: {label_column}        # column of the metadata table with the class
  caption_column: {caption_column}        # column with a text for each image, instead of labels: see docs/backbones.md
  group_column: {group_column}        # column that names the person, for privacy.unit: group
  # For 16-bit images: [low, high] shown as black and white. Take it from the instrument, not from the images.
  window:
  test_path:           # held-out private images in a folder of their own, for internal evaluation only

backbone: grey32       # grey; so is grey64; rgb32 is in colour

privacy:
  # One name per data set, for ever: everything that is spent on these images is added up under it.
  dataset_id: {dataset_id}
{unit}
  epsilon: 10
  delta: 1.0e-5        # well below 1 / records
  # The most that may ever be spent on this data set, [epsilon, delta]; fixed by the first run. Blank: that run's own,
  # so that there can be no second run and no baseline.
  cap:
{recipe}

sampling:
  count: 10000         # synthetic images: more cost time, no privacy

evaluation:
  protocol: screen     # of data.test_path: a CNN that learns from 10,000 of them. quick takes fewer, full 60,000
"""

_PORTRAITS = """\
# portraits: all of epsilon for a noised portrait of each class, in minutes; best where the images are to train a
# classifier. diffusion: a model is tuned, as in the paper (docs/choosing.md).
method: portraits"""

_OF_PORTRAITS = """\
  # How many parts of each class are portrayed apart, by the declared records over the number of classes:
  # 1 for some hundred, 64 for several thousand.
  class_parts: 1
  # Take away this mark for 58 % of the noise: but then a crash in the seconds of asking ends the run, all spent.
  # query_reserve: 0"""

_DIFFUSION = """\
method: diffusion      # a model is tuned; portraits are for images with classes"""

_OF_DIFFUSION = """\
  steps: 150           # updates, each of a Poisson batch of an eighth of the records if you leave that out"""

_UNIT_IMAGE = """\
  # A public lower bound of the number of images, which you fill in. The exact number is itself private:
  # round it down, for example 11,873 to 10000.
  records:"""

_UNIT_GROUP = """\
  unit: group          # the promise is for all images of a person together
  max_images_per_group: 4   # of a person with more, so many are used: costs time, no privacy
  # A public lower bound of the number of PERSONS, which you fill in. The exact number is itself private:
  # round it down, for example 1,187 to 1000.
  records:"""
