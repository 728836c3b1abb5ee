"""What was not tuned is the public backbone's: weights as float16, settings word for word. No torch.

For every kind of model: which parameters were tuned follows from the choice that is declared, by the family's names.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpldm.errors import UserError
from dpldm.models.choices import Names, rank_of, tuned_names
from dpldm.scanning.kinds import Kind
from dpldm.scanning.texts import parsed
from dpldm.scanning.weights import Weights

TOKEN_LAYER = "encoder_hid_proj.weight"
CLASS_TABLE = re.compile(r"\.class_embedder\.embedding_table\.weight$")
ADAPTER = re.compile(r"(unet|text_encoder)\.(.+)\.lora_([AB])\.weight")
COUNTS = ("encoder_hid_dim", "num_embeds_ada_norm")
"""Settings that follow from the number of private classes."""
UNBOUND = ("_diffusers_version", "_name_or_path")
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""What a public pipeline may have beside its model; a release has nothing there."""

Declared = Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """What a released network can be told."""

    classes: int  # of its own
    publics: int  # of the backbone, beside them; 0: its own alone


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Weights
    name: str

    @property
    def shape(self) -> list[int]:
        """Its sides."""
        return list(self.file.tensors[self.name]["shape"])

    def values(self) -> NDArray[np.float32]:
        """Its numbers.

        Raises:
            LookupError: they are no floating-point numbers.
        """
        data, kind = self.file.bytes_of(self.name), self.file.tensors[self.name]["dtype"]
        if kind == "BF16":
            return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(self.shape)
        return np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[kind]).astype("<f4").reshape(self.shape)

    def equals(self, other: "Stored") -> bool:
        """Bit for bit, as the float16 that released weights are."""
        if self.shape != other.shape:
            return False
        try:
            ours, theirs = (_halves(tensor.values()).view("<u2") for tensor in (self, other))
        except LookupError:  # whole numbers
            return self.file.bytes_of(self.name) == other.file.bytes_of(other.name)
        return bool(np.array_equal(ours, theirs))


Network = Mapping[str, Stored]
"""Tensors by the names of the parameters that are tuned."""


def network_of(directory: Path, files: Iterable[str], kind: Kind, *, ours: bool) -> Network:
    """The tensors of a model's denoiser and text encoder.

    Args:
        files: names of its weights files below `directory`.
        ours: written by this package, with nothing in it but tensors.

    Raises:
        OSError, ValueError, LookupError: they cannot be read.
    """
    found: dict[str, Stored] = {}
    for file in files:
        part = file.partition("/")[0]
        if part in kind.tuned_parts and file.endswith(".safetensors"):
            weights = Weights.open(place_of(directory, file), ours=ours)
            found |= {kind.in_network(part, name): Stored(weights, name) for name in weights.tensors}
    return found


def place_of(directory: Path, file: str) -> Path:
    """Where a file lies that may be stored in half precision alone, when it counts under the plain name."""
    half = directory / (file.removesuffix(".safetensors") + ".fp16.safetensors")
    return half if half.is_file() and not (directory / file).is_file() else directory / file


def changed_weight(ours: Network, theirs: Network, declared: Declared, called: Names, told: Told) -> str | None:
    """The first tensor of a released network that cannot have come from the public one, or None.

    Args:
        declared: the statement's declared constants, which say what was tuned.
        called: names of the family.
    """
    try:
        tuned = set(tuned_names(theirs, declared["trainable"], embedder=declared["tune_embedder"], called=called))
    except UserError as error:
        return str(error)
    # Older files hold the numbers of the positions, 0, 1, 2, ..., which newer classes make themselves.
    unmatched = {name for name in ours.keys() ^ theirs.keys() if not name.endswith(".position_ids")}
    if unmatched:
        return min(unmatched)
    shared = sorted(ours.keys() & theirs.keys())
    return next((name for name in shared if not _may_be(ours, theirs, name, name in tuned, told)), None)


def _may_be(ours: Network, theirs: Network, name: str, tuned: bool, told: Told) -> bool:
    new, old = ours[name], theirs[name]
    if name == TOKEN_LAYER:
        return _has_class_columns(new, old, tuned, told)
    if CLASS_TABLE.search(name):
        return _has_class_rows(new, old, tuned, told.classes)
    return new.shape == old.shape if tuned else new.equals(old)


def _has_class_columns(new: Stored, old: Stored, tuned: bool, told: Told) -> bool:
    """A column for each class, those of the public classes if they are told too, and one for no class. Without tuning:
    the mean of the public ones, or nothing beside them, and the others as they were (families/class_token.py)."""
    public, null = np.split(old.values(), [-1], 1)
    mean = np.repeat(public.mean(1, keepdims=True), told.classes, 1)
    expected = np.concatenate([np.zeros_like(mean), public, null] if told.publics else [mean, null], 1)
    return new.shape == list(expected.shape) and (tuned or _close(new.values(), expected))


def _has_class_rows(new: Stored, old: Stored, tuned: bool, classes: int) -> bool:
    """As many rows as the stock pipeline wants: those of the classes, their mean again and again, and the one for no
    class (families/transformer.py)."""
    if new.shape[1:] != old.shape[1:] or new.shape[0] <= classes:
        return False
    rows, public = new.values(), old.values()
    mean = rows[:classes].mean(0) if classes else rows[-1]
    filled = _close(rows[classes:-1], np.broadcast_to(mean, rows[classes:-1].shape))
    start = _close(rows[:classes], np.broadcast_to(public[:-1].mean(0), rows[:classes].shape))
    return filled and (tuned or (start and np.array_equal(_halves(rows[-1]), _halves(public[-1]))))


def _close(new: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Up to the rounding of means to float16."""
    return bool(np.allclose(new, expected, rtol=2e-3, atol=1e-4))


def _halves(values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return values.astype("<f2")


# --- adapters ----------------------------------------------------------------------------------------------------


def strange_adapter(path: Path, public: Network | None, declared: Declared, called: Names) -> str | None:
    """The first tensor of a file of adapters that the declared choice would not have made, or None.

    Args:
        public: the network that they add to; None: it is not at hand, and only names and ranks are looked at.
    """
    weights, rank = Weights.open(path), rank_of(declared["trainable"])
    found: dict[str, dict[str, list[int]]] = {}
    for name, tensor in weights.tensors.items():
        parts = ADAPTER.fullmatch(name)
        if parts is None or rank is None or tensor["shape"][parts[3] == "B"] != rank:
            return name
        layer = f"{parts[1]}.{parts[2].removeprefix('text_model.') if parts[1] == 'text_encoder' else parts[2]}.weight"
        found.setdefault(layer, {})[parts[3]] = tensor["shape"]
    alone = next((layer for layer, sides in found.items() if len(sides) < 2), None)
    if alone is not None or public is None:
        return alone
    tuned = tuned_names(public, declared["trainable"], embedder=declared["tune_embedder"], called=called)
    if set(tuned) != found.keys():
        return min(set(tuned) ^ found.keys())
    return next((layer for layer, sides in found.items() if not _adds_to(public[layer].shape, sides)), None)


def _adds_to(whole: list[int], sides: Mapping[str, list[int]]) -> bool:
    """B A has the shape of the weight: A holds what goes in (for a convolution, whole patches), B what comes out."""
    return sides["A"][1:] == whole[1:] and sides["B"][0] == whole[0] and set(sides["B"][2:]) <= {1}


# --- settings ----------------------------------------------------------------------------------------------------


def changed_setting(model: Path, public: Path, kind: Kind, declared: Declared) -> str | None:
    """The first file of settings in which a released model and its public backbone differ, or None.

    Raises:
        OSError, ValueError, LookupError, TypeError, AttributeError: one is missing or cannot be read.
    """
    for name in (*(f"{part}/config.json" for part in sorted(kind.parts)), "scheduler/scheduler_config.json"):
        settings = [_read(directory / name) for directory in (model, public)]
        ours, theirs = ({k: v for k, v in each.items() if k not in COUNTS + UNBOUND} for each in settings)
        if ours != theirs:
            return name
    index = [_read(directory / "model_index.json") for directory in (model, public)]
    if not all(_is_of_index(key, value, index[1], declared) for key, value in index[0].items()):
        return "model_index.json"
    return None if _origin(model, index[1]) == _origin(public, index[1]) else "backbone.json"


def _is_of_index(key: str, value: Any, theirs: Mapping[str, Any], declared: Declared) -> bool:
    """Whether a line of a released model_index.json is the public one's, or one that a release changes."""
    names = {str(number): label.replace(",", ";") for number, label in enumerate(declared["labels"])}
    return (
        value == theirs.get(key)
        or key in UNBOUND
        or (key in LEFT_OUT and value == [None, None])
        or (key == "requires_safety_checker" and value is False)
        or (key == "id2label" and value == names)
        or (key == "transformer" and value == ["diffusers", "DiTTransformer2DModel"])
    )


def _origin(directory: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of where the public model comes from; a foreign directory has no card, but a pipeline."""
    path = directory / "backbone.json"
    card = _read(path) if path.is_file() else {"pipeline": index["_class_name"]}
    return {key: value for key, value in card.items() if key not in ("name", "tuned", "sha256")}


def _read(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = parsed(path.read_text(encoding="utf-8"))
    return settings


def is_named(public: Path, names: Mapping[str, str]) -> bool:
    """Whether a directory holds, and says that it holds, the files that a statement names by their sha256.

    Raises:
        OSError, ValueError: they cannot be read.
    """
    card = public / "backbone.json"
    if card.is_file() and _read(card).get("sha256") != dict(names):
        return False
    places = {name: place_of(public, name) for name in names}
    return all(place.is_file() and _digest(place) == names[name] for name, place in places.items())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
