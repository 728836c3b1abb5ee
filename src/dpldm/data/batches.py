"""CIFAR and downsampled ImageNet, as they are published: pickled batches of rows, red first, then green, then blue."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpldm.data.arrays import ArraySource
from dpldm.data.pickles import Pickled, read_pickle
from dpldm.data.source import Source, Wanted, nested
from dpldm.errors import UserError


@dataclass(frozen=True)
class Batches:
    """Where the batches of a set lie, and what their keys are called."""

    title: str
    folders: tuple[str, ...]
    """What the published archive unpacks to."""
    archive: str
    parts: dict[str, tuple[str, ...]]
    """Files of each split, sorted."""
    labels: str
    """Key of the number of each image's class."""
    names: tuple[str, str] | None = None
    """File and key of the class names."""

    def files(self, split: str) -> list[str]:
        """What must be there to read a split."""
        return [*self.parts.get(split, ()), *([self.names[0]] if self.names else [])]


CIFAR10 = Batches(
    "CIFAR-10",
    ("cifar-10-batches-py",),
    "cifar-10-python.tar.gz",
    {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    labels="labels",
    names=("batches.meta", "label_names"),
)
CIFAR100 = Batches(
    "CIFAR-100",
    ("cifar-100-python",),
    "cifar-100-python.tar.gz",
    {"train": ("train",), "test": ("test",)},
    labels="fine_labels",
    names=("meta", "fine_label_names"),
)
IMAGENET = Batches(
    "downsampled ImageNet",
    ("Imagenet32", "Imagenet64"),
    "Imagenet32_train.zip (or 64)",
    {"train": tuple(sorted(f"train_data_batch_{number}" for number in range(1, 11))), "val": ("val_data",)},
    labels="labels",
)
_OTHER_VERSIONS = (".bin", ".mat", ".npz")


def open_batches(path: Path, wanted: Wanted) -> Source | None:
    """A folder of pickled batches; None if there are none.

    Raises:
        UserError: files of the set are missing, damaged, or of another version of it.
    """
    if not path.is_dir():
        return None
    for layout in (CIFAR10, CIFAR100, IMAGENET):
        root = nested(path, *layout.folders)
        if any((root / name).is_file() for name in _telling(layout)):
            return _open(layout, root, wanted.split)
        _refuse_other_versions(layout, root)
    return None


def _telling(layout: Batches) -> set[str]:
    """Names that no other set has. A folder may hold files called train and test for many reasons."""
    names = {name for split in layout.parts for name in layout.files(split)}
    return {"meta"} if layout is CIFAR100 else names


def _refuse_other_versions(layout: Batches, root: Path) -> None:
    for name in _telling(layout):
        for ending in _OTHER_VERSIONS:
            if (root / f"{name}{ending}").is_file():
                raise UserError(
                    f"{root} holds {layout.title} in another version ({name}{ending}): get the one for Python, "
                    f"{layout.archive}."
                )


def _open(layout: Batches, root: Path, split: str) -> ArraySource:
    if split not in layout.parts:
        raise UserError(f"{layout.title} has no split {split!r}: choose {' or '.join(layout.parts)}.")
    missing = [name for name in layout.files(split) if not (root / name).is_file()]
    if missing:
        raise UserError(f"{root} lacks {', '.join(missing)} of {layout.title}: unpack {layout.archive} there again.")
    names = _names(layout, root)
    pixels, labels, keys = [], list[str](), list[str]()
    for name in layout.parts[split]:
        batch = read_pickle(root / name)
        images, numbers = _rows(layout, root / name, batch)
        pixels.append(images)
        labels += [_name(names, number, layout, root / name) for number in numbers]
        keys += [f"{name}/{row:08d}" for row in range(len(images))]
    if len({images.shape[1] for images in pixels}) > 1:
        raise UserError(f"{root} holds batches of images of several sizes: keep those of one set.")
    whole = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
    return ArraySource(layout=f"{layout.title}, pickled batches", keys=keys, split=split, labels=labels, array=whole)


def _names(layout: Batches, root: Path) -> list[str] | None:
    if layout.names is None:
        return None
    file, key = layout.names
    texts = read_pickle(root / file).texts
    if key not in texts:
        raise UserError(f"{root / file} has no {key}: unpack {layout.archive} again.")
    return texts[key]


def _rows(layout: Batches, path: Path, batch: Pickled) -> tuple[NDArray[np.uint8], list[int]]:
    """Images (N, S, S, 3) and the number of the class of each."""
    data, labels = batch.arrays.get("data"), batch.arrays.get(layout.labels)
    if data is None or labels is None or data.dtype != np.uint8 or data.ndim != 2 or len(labels) != len(data):
        raise UserError(f"{path} does not hold rows of pixels with a label each: unpack {layout.archive} again.")
    side = math.isqrt(data.shape[1] // 3)
    if side == 0 or 3 * side * side != data.shape[1]:
        raise UserError(f"{path} holds rows that are no square colour images: unpack {layout.archive} again.")
    images = np.ascontiguousarray(data.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)).astype(np.uint8, copy=False)
    return images, [int(label) for label in labels]


def _name(names: list[str] | None, number: int, layout: Batches, path: Path) -> str:
    if names is None:
        return str(number)
    if not 0 <= number < len(names):
        raise UserError(f"{path} has a label without a name: unpack {layout.archive} again.")
    return names[number]
