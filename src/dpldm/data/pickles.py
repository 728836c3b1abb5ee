"""Arrays out of the pickles in which some benchmarks are published, without running what a pickle may say.

The file is read by another process (`unpickle_child`), which allows nothing but arrays and texts, and is believed no
further than the lengths that it states.
"""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpldm.errors import UserError

_CHILD = Path(__file__).with_name("unpickle_child.py")


class Pickled(NamedTuple):
    """What a pickled dictionary holds: arrays of whole numbers (read-only), and lists of texts, by key."""

    arrays: dict[str, NDArray[np.integer[Any]]]
    texts: dict[str, list[str]]


def read_pickle(path: Path) -> Pickled:
    """The entries of a pickled dictionary, or of a list (under "items").

    Raises:
        UserError: the file cannot be opened, is no pickle, or asks for other functions than arrays need.
    """
    try:
        with path.open("rb") as file:
            # -I: no current folder and no environment that could put another NumPy in its way.
            command = [sys.executable, "-I", str(_CHILD)]
            child = subprocess.run(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        line, _, data = child.stdout.partition(b"\n")
        header = json.loads(line)
        if header.get("refused") == "code":
            raise UserError(f"{path} asks for code to be run: get it again from where it is published.")
        return Pickled(_arrays(header["arrays"], data), dict(header["texts"]))
    except (OSError, ValueError, TypeError, LookupError, MemoryError):
        raise UserError(f"{path} is not a pickle of arrays: get it again from where it is published.") from None


def _arrays(described: list[tuple[str, str, list[int]]], data: bytes) -> dict[str, NDArray[np.integer[Any]]]:
    """`data` cut into arrays; raises ValueError if it is shorter than they are."""
    arrays: dict[str, NDArray[np.integer[Any]]] = {}
    start = 0
    for name, kind, shape in described:
        dtype, count = np.dtype(kind), math.prod(shape)
        arrays[name] = np.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape)
        start += count * dtype.itemsize
    return arrays
