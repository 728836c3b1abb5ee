"""Released weights: tensors of a network and nothing else; where nothing was tuned, those of the public backbone.

Reads safetensors by hand (a JSON header and one block of bytes), so that no tensor library is needed.
"""

import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpldm.errors import UserError
from dpldm.models.choices import EMBEDDER, tuned_names
from dpldm.scanning.texts import parsed

LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")
NOT_OF_A_NETWORK = re.compile(
    r"(^|[./_])(optimizer|exp_avg|exp_avg_sq|average|ema|latents?|labels?|usable|members|log_variance|rng|seed|generator"
    r"|noise|grads?|loss(es)?)([./_]|$)"
)
"""What a training run holds beside its network, by the names that checkpoints of ours and others give it."""
HALF = frozenset({"F16", "I64"})
PUBLIC = HALF | {"F32", "BF16"}
"""Types of tensors in what we store, and in what is copied from others."""


@dataclass(frozen=True)
class Weights:
    """A safetensors file, opened far enough to compare."""

    path: Path
    tensors: Mapping[str, Mapping[str, Any]]  # name -> dtype, shape, data_offsets
    start: int  # of the data

    @classmethod
    def open(cls, path: Path) -> "Weights":
        """Read the header.

        Raises:
            ValueError: it is none, has a key twice, foreign metadata, or does not account for every byte.
        """
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError("no header")
            header = parsed(file.read(length).decode("utf-8"))
        if header.pop("__metadata__", {"format": "pt"}) != {"format": "pt"}:
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

    def halves(self, name: str) -> NDArray[np.float32]:
        """A float16 tensor, as float32."""
        shape = self.tensors[name]["shape"]
        return np.frombuffer(self.bytes_of(name), dtype="<f2").reshape(shape).astype(np.float32)


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


def changed_frozen_weight(released: Path, public: Path, declared: Mapping[str, Any]) -> str | None:
    """The first tensor of a released denoiser that was not to be tuned and is not the public one, or None.

    Args:
        released: weights file of the release.
        public: that of the public backbone.
        declared: the statement's declared constants, which say what was tuned.
    """
    try:
        ours, theirs = Weights.open(released), Weights.open(public)
        tuned = set(tuned_names(theirs.tensors, declared["trainable"], embedder=declared["tune_embedder"]))
    except UserError as error:
        return str(error)
    if ours.tensors.keys() != theirs.tensors.keys():
        return sorted(ours.tensors.keys() ^ theirs.tensors.keys())[0]
    for name in sorted(ours.tensors.keys() - tuned):
        if name == "encoder_hid_proj.weight":
            same = _is_adapted(ours, theirs, name)
        else:
            alike = all(ours.tensors[name][key] == theirs.tensors[name][key] for key in ("dtype", "shape"))
            same = alike and ours.bytes_of(name) == theirs.bytes_of(name)
        if not same:
            return name
    return next((name for name in sorted(tuned) if not _same_shape(ours, theirs, name)), None)


def _same_shape(ours: Weights, theirs: Weights, name: str) -> bool:
    """The embedder has a column for each class of its own; nothing else may have grown."""
    shapes = [weights.tensors[name]["shape"] for weights in (ours, theirs)]
    return shapes[0] == shapes[1] or (EMBEDDER.search(name) is not None and shapes[0][0] == shapes[1][0])


def _is_adapted(ours: Weights, theirs: Weights, name: str) -> bool:
    """An embedder that was not tuned: class columns at the mean of the public ones (`adapt_to_labels`), null's kept."""
    new, old = ours.halves(name), theirs.halves(name)
    expected = np.concatenate([np.repeat(old[:, :-1].mean(1, keepdims=True), new.shape[1] - 1, 1), old[:, -1:]], 1)
    return bool(np.allclose(new, expected, rtol=2e-3, atol=1e-4))


def public_half(directory: Path) -> dict[str, Any]:
    """What must be equal in a released model and its public backbone, beside the weights: settings and provenance."""
    parts: dict[str, Any] = {}
    for name in ("vae/config.json", "unet/config.json", "scheduler/scheduler_config.json", "backbone.json"):
        part = json.loads((directory / name).read_text(encoding="utf-8"))
        own = ("name", "tuned", "sha256", "encoder_hid_dim", "_diffusers_version", "_name_or_path")
        parts[name] = {key: value for key, value in part.items() if key not in own}
    return parts
