"""Reads one pickle of arrays and lists, and writes what it holds as plain bytes. Run as a script by `pickles`.

A pickle is a program. This one is run in a process that has nothing to lose, and with no functions to call but those of
which NumPy arrays, byte strings, dictionaries, lists and texts are made. It imports nothing of the package, so that it
starts quickly and works from any place.

Output: a line of JSON, then the bytes of the arrays in its order.

    {"arrays": [[name, dtype, shape], ...], "texts": {name: [text, ...]}}   or   {"refused": "code" | "damaged"}
"""

import json
import pickle
import sys
from typing import Any, NamedTuple

import numpy as np


class Forbidden(Exception):
    """The pickle asks for a function that no array needs."""


def _latin1(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 spell byte strings: `_codecs.encode(text, "latin1")`, and nothing else."""
    if encoding != "latin1":
        raise Forbidden
    return text.encode("latin-1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # wherever this NumPy keeps it
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (bytes, dict, list, str)},
}


class Unpickler(pickle.Unpickler):
    """Knows the names in `ALLOWED` alone."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise Forbidden from None


class Plain(NamedTuple):
    """What is taken from a pickle: arrays of whole numbers, and lists of texts; everything else is left out."""

    arrays: dict[str, Any]
    texts: dict[str, list[str]]


def plain(loaded: Any) -> Plain:
    """The entries of a dictionary, or of a list under the name "items"."""
    found = Plain({}, {})
    for key, value in loaded.items() if isinstance(loaded, dict) else [("items", loaded)]:
        name = _text(key)
        if isinstance(value, np.ndarray) and value.dtype.kind in "ui":
            found.arrays[name] = np.ascontiguousarray(value)
        elif isinstance(value, list) and all(type(item) is int for item in value):
            found.arrays[name] = np.array(value, dtype=np.int64)
        elif isinstance(value, list) and all(isinstance(item, str | bytes) for item in value):
            found.texts[name] = [_text(item) for item in value]
    return found


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def main() -> None:
    """From standard input to standard output."""
    found = Plain({}, {})
    header: dict[str, Any]
    try:
        # Python 2 wrote the batches of CIFAR, with byte strings.
        found = plain(Unpickler(sys.stdin.buffer, encoding="bytes").load())
        header = {
            "arrays": [[name, array.dtype.str, array.shape] for name, array in found.arrays.items()],
            "texts": found.texts,
        }
    except Forbidden:
        header = {"refused": "code"}
    except Exception:
        header = {"refused": "damaged"}
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n")
    for array in found.arrays.values():
        sys.stdout.buffer.write(array.data.cast("B") if array.size else b"")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
