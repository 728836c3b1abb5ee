"""Parts of a stock directory: their weights found, loaded and saved. safetensors only; no code in one is ever run."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dpldm.errors import UserError

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
FILE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
ADAPTED = ("encoder_hid_dim", "num_embeds_ada_norm")
"""Settings that making room for private classes changes."""


def weights_of(folder: Path) -> dict[str, Path]:
    """The weights files of a part: the name each has by convention -> where it is.

    A part that is stored in half precision alone (`.fp16.safetensors`) counts under the plain name.

    Raises:
        UserError: there are none, or only pickled ones.
    """
    for stem in (DIFFUSERS, TRANSFORMERS):
        whole, half = folder / f"{stem}.safetensors", folder / f"{stem}.fp16.safetensors"
        listing = folder / f"{stem}.safetensors.index.json"
        if whole.is_file():
            return {whole.name: whole}
        if listing.is_file():
            return {listing.name: listing} | {name: folder / name for name in _shards(listing)}
        if half.is_file():
            return {whole.name: half}
    if folder.is_dir() and any(path.suffix in PICKLED for path in folder.iterdir()):
        raise UserError(
            f"The weights in {folder} are pickled, which can run code: load the pipeline with diffusers and save it "
            "again with save_pretrained(FOLDER, safe_serialization=True)."
        )
    raise UserError(f"The backbone is incomplete, {folder} has no weights: make or copy it again.")


def _shards(listing: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(listing.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        names = []
    if not names or not all(isinstance(name, str) and FILE_NAME.fullmatch(name) for name in names):
        raise UserError(f"{listing} cannot be read: copy the whole directory again.")
    return names


def load_part(kind: Any, folder: Path) -> nn.Module:
    """A part of a stock diffusers class, in float32.

    Raises:
        UserError: it has no weights, or they do not fit the class.
    """
    variant = "fp16" if any(".fp16." in path.name for path in weights_of(folder).values()) else None
    try:
        part: nn.Module = kind.from_pretrained(
            folder,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder} cannot be loaded as {kind.__name__} ({type(error).__name__}): copy the whole directory again."
        ) from error
    return part


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The files of a tokenizer that there are, by name."""
    return {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}


def save_half(
    network: Any, folder: Path, source: Path | None = None, *, stem: str = DIFFUSERS, prefix: str = ""
) -> None:
    """Save a float16 copy without touching the float32 network.

    Args:
        source: the folder of the public part, if there is one.
        prefix: put before the names of all tensors.
    """
    state = {prefix + name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    save_config(network, folder, source)
    path = folder / f"{stem}.safetensors"
    save_file({n: t.contiguous() for n, t in state.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def save_config(network: Any, folder: Path, source: Path | None = None) -> None:
    """Save what a stock class needs to build the network: the public part's own words, but for what private classes
    changed, so that everyone can compare. Without the folder it was loaded from: a path of this machine."""
    if source is None:
        network.register_to_config(_name_or_path="")
        network.save_config(folder)
        return
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    settings |= {name: network.config[name] for name in ADAPTED if name in settings}
    settings.pop("_name_or_path", None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def copy_part(network: Any, source: Path, folder: Path) -> None:
    """Write a part that was not tuned: its weights byte for byte, so that everyone can see that they are public."""
    save_config(network, folder, source)
    for name, path in weights_of(source).items():
        shutil.copyfile(path, folder / name)


def require_class(index: Mapping[str, Any], part: str, known: tuple[str, ...]) -> str:
    """The class that model_index.json names for a part.

    Raises:
        UserError: it is not one of `known`.
    """
    entry = index.get(part)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name not in known:
        raise UserError(
            f"The backbone's {part} is {name or 'missing'}, and a {index.get('_class_name')} is tuned only with "
            f"{' or '.join(known)}: use a backbone that has one."
        )
    return str(name)
