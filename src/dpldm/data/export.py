"""Synthetic images to files that other tools open: an ImageFolder tree with a card, `.npz`, or DPImageBench's."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpldm.data.decode import Unreadable, decode, read_file
from dpldm.data.names import folder_names, spreadsheet_safe
from dpldm.errors import UserError
from dpldm.progress import OnProgress, unseen


def export_images(
    directory: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    label_names: Sequence[str] | None,
    *,
    card: str,
    prompts: Sequence[str] = (),
    on_progress: OnProgress = unseen,
) -> None:
    """Writes `<class>/<000000>.png`, `metadata.csv` (file_name, label or text) and `README.md`.

    The number in a file name is the image's row, so names do not depend on what was written before. After
    an interruption the same call goes on: a file that holds its image already is kept, every other is
    replaced in one step. Class folders are named by `folder_names`; in the table a label that a spreadsheet
    would evaluate is led by an apostrophe.

    Args:
        directory: made if missing; may hold an earlier export of the same images, whole or in part.
        images: (N, H, W, C), C in {1, 3}.
        labels: (N,) index in `label_names`; not looked at when there are none.
        label_names: None or empty writes a flat folder without labels.
        card: text of `README.md`.
        prompts: where labels are numbers of prompts, these; the table then has their text.

    Raises:
        UserError: the directory holds PNG files that are not part of this export.
        ValueError: the arrays do not fit together.
    """
    _check(images, labels, label_names)
    width = max(6, len(str(len(images) - 1)))
    folders = folder_names(label_names or ())
    names = [
        f"{folders[label]}/{row:0{width}d}.png" if folders else f"{row:0{width}d}.png"
        for row, label in enumerate(labels.tolist())
    ]
    _refuse_foreign_images(directory, set(names))
    for folder in folders or [""]:
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for done, (name, image) in enumerate(zip(names, images, strict=True), 1):
        if not _holds(directory, name, image):
            _replace(directory / name, _png(image))
        on_progress("images", done, len(names))
    _replace(directory / "metadata.csv", _metadata(names, labels, label_names, prompts).encode())
    _replace(directory / "README.md", card.encode())


def export_npz(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Writes `x` uint8 (N, H, W, C) and `y` int64 (N,); no `y` when all labels are -1 (unconditional).

    Raises:
        ValueError: the arrays do not fit together, or only some labels are negative.
    """
    _check(images, labels, None)
    arrays: dict[str, NDArray[np.generic]] = {"x": images}
    if (labels >= 0).all():
        arrays["y"] = labels
    elif (labels >= 0).any():
        raise ValueError("some labels are negative and some are not")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, buffer.getvalue())


def export_gen_npz(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """Writes what DPImageBench calls `gen.npz`: `x` float32 (N, C, H, W) in [0, 1] and `y` int64 (N,), class by number.

    Raises:
        UserError: the images have no classes, or `path` cannot be written.
        ValueError: the arrays do not fit together.
    """
    _check(images, labels, None)
    if (labels < 0).any():
        raise UserError("DPImageBench's gen.npz holds a class for each image: sample with data.labels.")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, x=images.transpose(0, 3, 1, 2).astype(np.float32) / 255, y=labels)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another place.") from None


def _check(images: NDArray[np.uint8], labels: NDArray[np.int64], label_names: Sequence[str] | None) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {images.shape}")
    if labels.shape != (len(images),):
        raise ValueError(f"labels must be of shape {(len(images),)}, not {labels.shape}")
    if label_names and len(labels) and not 0 <= labels.min() <= labels.max() < len(label_names):
        raise ValueError("a label is not an index of label_names")


def _refuse_foreign_images(directory: Path, names: set[str]) -> None:
    """Readers of the tree would take images that are left over from another export for part of this one."""
    if any(path.relative_to(directory).as_posix() not in names for path in directory.rglob("*.png")):
        raise UserError(f"{directory} holds images of something else: choose an empty directory.")


def _holds(directory: Path, name: str, image: NDArray[np.uint8]) -> bool:
    try:
        stored = np.asarray(decode(read_file(directory, name)))
    except Unreadable:
        return False
    return np.array_equal(stored.reshape(*stored.shape[:2], -1), image)


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def _metadata(
    names: Sequence[str], labels: NDArray[np.int64], label_names: Sequence[str] | None, prompts: Sequence[str]
) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if meanings := label_names or prompts:
        safe = [spreadsheet_safe(name) for name in meanings]
        writer.writerow(["file_name", "label" if label_names else "text"])
        writer.writerows((name, safe[label]) for name, label in zip(names, labels.tolist(), strict=True))
    else:
        writer.writerow(["file_name"])
        writer.writerows((name,) for name in names)
    return text.getvalue()


def _replace(path: Path, data: bytes) -> None:
    """A reader, and a run after an interruption, sees the whole file or none."""
    part = path.with_name(f".{path.name}.part")  # hidden from readers; the next attempt uses the same name
    part.write_bytes(data)
    os.replace(part, path)
