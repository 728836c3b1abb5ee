"""Released weights: tensors of a network and nothing else.

Reads safetensors by hand (a JSON header and one block of bytes), so that no tensor library is needed.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpldm.scanning.texts import parsed

LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")
NOT_OF_A_NETWORK = re.compile(
    r"(^|[./_])(optimizer|exp_avg|exp_avg_sq|average|ema|latents?|labels?|usable|members|log_variance|rng|seed|generator"
    r"|noise|grads?|loss(es)?)([./_]|$)"
)
"""What a training run holds beside its network, by the names that checkpoints of ours and others give it."""
HALF = frozenset({"F16", "I64"})
SINGLE = frozenset({"F32"})
PUBLIC = HALF | SINGLE | {"BF16"}
"""Types of tensors in what we store (adapters are small, and kept in full), and in what is copied from others."""


@dataclass(frozen=True)
class Weights:
    """A safetensors file, opened far enough to compare."""

    path: Path
    tensors: Mapping[str, Mapping[str, Any]]  # name -> dtype, shape, data_offsets
    start: int  # of the data

    @classmethod
    def open(cls, path: Path, *, ours: bool = True) -> "Weights":
        """Read the header.

        Args:
            ours: written by this package; a public file may have metadata of its own.

        Raises:
            ValueError: it is none, has a key twice, foreign metadata, or does not account for every byte.
        """
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError("no header")
            header = parsed(file.read(length).decode("utf-8"))
        if header.pop("__metadata__", {"format": "pt"}) != {"format": "pt"} and ours:
            raise ValueError("metadata of its own")
        spans = sorted(tuple(tensor["data_offsets"]) for tensor in header.values())
        ends = [0, *(end for _, end in spans)]
        if [begin for begin, _ in spans] != ends[:-1] or path.stat().st_size != 8 + length + ends[-1]:
            raise ValueError("bytes that belong to no tensor")
        return cls(path, header, 8 + length)

    def bytes_of(self, name: str) -> bytes:
        """The stored values of one tensor."""
        begin, end = self.tensors[name]["data_offsets"]
        with self.path.open("rb") as file:
            file.seek(self.start + begin)
            return file.read(end - begin)


def foreign_tensor(path: Path, types: Set[str] = HALF) -> str | None:
    """The first thing in a weights file that is no tensor of a network, of one of these types, or None."""
    try:
        weights = Weights.open(path)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{path.name}: {error}"
    for name, tensor in weights.tensors.items():
        if not NAME.fullmatch(name) or NOT_OF_A_NETWORK.search(name) or tensor["dtype"] not in types:
            return f"{path.name} holds {name}"
    return None
