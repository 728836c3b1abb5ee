"""Street View House Numbers, the cropped digits: one MATLAB file (v5) for each part."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.io

from dpldm.data.arrays import MAX_ARRAY_BYTES, ArraySource
from dpldm.data.source import Source, Wanted, nested
from dpldm.errors import UserError

_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def open_svhn(path: Path, wanted: Wanted) -> Source | None:
    """A folder with `train_32x32.mat` and `test_32x32.mat`, or one such file; None for anything else.

    Raises:
        UserError: the file of the split is missing or holds something else, or these are SVHN's uncropped numbers.
    """
    if path.suffix == ".mat" and path.is_file():
        return _open(path)
    if not path.is_dir():
        return None
    root = nested(path, "SVHN", "svhn")
    if not any((root / name).is_file() for name in _FILES.values()):
        _refuse_uncropped(root)
        return None
    if wanted.split not in _FILES or not (root / _FILES[wanted.split]).is_file():
        there = ", ".join(name for name in _FILES.values() if (root / name).is_file())
        raise UserError(
            f"{root} has no file of SVHN's split {wanted.split!r} (it has {there}): get {wanted.split}_32x32.mat."
        )
    return replace(_open(root / _FILES[wanted.split]), split=wanted.split)


def _refuse_uncropped(root: Path) -> None:
    if any((root / place / "digitStruct.mat").is_file() for place in (".", *_FILES)):
        raise UserError(
            f"{root} holds SVHN's full numbers (format 1): get the cropped digits, {' and '.join(_FILES.values())}."
        )


def _open(path: Path) -> ArraySource:
    """`X` is (32, 32, 3, N), `y` is (N, 1) with 10 for the digit 0."""
    try:
        if any(np.prod(shape, dtype=np.float64) > MAX_ARRAY_BYTES for _, shape, _ in scipy.io.whosmat(path)):
            raise UserError(f"{path} holds more than {MAX_ARRAY_BYTES // 2**30} GiB.")
        found = scipy.io.loadmat(path, variable_names=("X", "y"))
        images, numbers = found["X"], found["y"].reshape(-1)
    except UserError:
        raise
    except Exception as error:  # SciPy raises many kinds; NotImplementedError for MATLAB's v7.3, which is HDF5
        raise UserError(
            f"{path} is not a MATLAB v5 file with X and y ({type(error).__name__}): get SVHN's cropped digits again."
        ) from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3 or len(numbers) != images.shape[3]:
        raise UserError(f"{path} does not hold colour images with a label each: get SVHN's cropped digits again.")
    if not np.isin(numbers, np.arange(1, 11)).all():
        raise UserError(f"{path} has labels that are no digits: get SVHN's cropped digits again.")
    return ArraySource(
        layout="SVHN, cropped digits",
        keys=[f"{row:08d}" for row in range(len(numbers))],
        labels=[str(int(number) % 10) for number in numbers],
        array=np.ascontiguousarray(images.transpose(3, 0, 1, 2)),
    )
