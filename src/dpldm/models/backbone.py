"""A backbone: autoencoder, denoiser and noise schedule with their provenance, in one stock diffusers directory.

    NAME/ model_index.json  vae/  unet/  scheduler/  backbone.json (provenance, recipe, sha256 of the weights)

Weights are stored as float16 and loaded as float32. Everything in a backbone comes from public images.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from dpldm.errors import UserError

WEIGHTS = ("vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Backbone:
    """The public half of a DP-LDM."""

    name: str
    autoencoder: AutoencoderKL
    denoiser: UNet2DConditionModel
    scheduler: DDPMScheduler
    provenance: Mapping[str, Any]
    sha256: Mapping[str, str] = field(default_factory=dict)  # of the weights files it was loaded from

    @property
    def channels(self) -> int:
        """Image channels: 1 grey, 3 colour."""
        return int(self.autoencoder.config.in_channels)

    @property
    def digest(self) -> str:
        """Identity of the weights, whatever the directory is called."""
        return weights_digest(self.sha256)

    def save(self, directory: Path, tuned: Mapping[str, Any] | None = None) -> None:
        """Write the directory; weights are rounded to float16.

        Args:
            tuned: what is owed for weights that were tuned on private images; None for a public backbone.
        """
        directory.mkdir(parents=True, exist_ok=True)
        _save_half(self.autoencoder, directory / "vae")
        _save_half(self.denoiser, directory / "unet")
        self.scheduler.save_pretrained(directory / "scheduler")
        index = {
            "_class_name": "ClassConditionalLDMPipeline",
            "_diffusers_version": diffusers.__version__,
            "vae": ["diffusers", "AutoencoderKL"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
        }
        _write_json(directory / "model_index.json", index)
        card = {
            "name": self.name,
            **self.provenance,
            **({"tuned": dict(tuned)} if tuned else {}),
            "sha256": {w: sha256_of(directory / w) for w in WEIGHTS},
        }
        _write_json(directory / "backbone.json", card)


def _save_half(network: Any, directory: Path) -> None:
    """Save a float16 copy without touching the float32 network."""
    state = {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    network.register_to_config(_name_or_path="")  # diffusers keeps the folder it loaded from: a path of this machine
    network.save_config(directory)
    path = directory / "diffusion_pytorch_model.safetensors"
    save_file({n: t.contiguous() for n, t in state.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(digests: Mapping[str, str]) -> str:
    """One digest for all weights files of a backbone, from the sha256 of each."""
    return hashlib.sha256(json.dumps(dict(digests), sort_keys=True).encode()).hexdigest()


def bundled_backbones() -> dict[str, Path]:
    """Backbones that ship with the package: name -> directory."""
    root = Path(str(resources.files("dpldm") / "backbones"))
    return {card.parent.name: card.parent for card in sorted(root.glob("*/backbone.json"))}


def locate_backbone(name_or_path: str) -> Path:
    """Directory of a bundled backbone or of one given by path.

    Raises:
        UserError: neither a bundled name nor a directory with a backbone.json.
    """
    bundled = bundled_backbones()
    if name_or_path in bundled:
        return bundled[name_or_path]
    directory = Path(name_or_path)
    if (directory / "backbone.json").is_file():
        return directory
    known = f"one of {', '.join(sorted(bundled))} or " if bundled else ""
    raise UserError(f"There is no backbone {name_or_path!r}: give {known}a directory made by `dpldm pretrain`.")


def read_card(name_or_path: str) -> dict[str, Any]:
    """backbone.json of a backbone: its name, provenance, recipe, and the sha256 of its weights.

    Raises:
        UserError: it does not exist, or its card cannot be read.
    """
    directory = locate_backbone(name_or_path)
    try:
        card: dict[str, Any] = json.loads((directory / "backbone.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The card of backbone {name_or_path!r} cannot be read: make or copy it again.") from error
    return card


def load_backbone(name_or_path: str, device: torch.device | None = None) -> Backbone:
    """Load a backbone as float32, in evaluation mode, after checking its weights against their sha256.

    Args:
        name_or_path: a bundled name or a directory.
        device: where its networks compute; the CPU by default.

    Raises:
        UserError: it does not exist, is damaged, or its weights are not the ones its provenance names.
    """
    directory, card = locate_backbone(name_or_path), read_card(name_or_path)
    try:
        digests = card.pop("sha256")
        changed = [weights for weights in WEIGHTS if sha256_of(directory / weights) != digests[weights]]
    except (OSError, KeyError) as error:
        raise UserError(f"The backbone {name_or_path!r} is incomplete: make or copy it again.") from error
    if changed:
        raise UserError(f"The weights {changed} of backbone {name_or_path!r} do not match their recorded sha256.")
    autoencoder = AutoencoderKL.from_pretrained(directory / "vae", **_LOCAL)
    denoiser = UNet2DConditionModel.from_pretrained(directory / "unet", **_LOCAL)
    scheduler = DDPMScheduler.from_pretrained(directory / "scheduler", local_files_only=True)
    return Backbone(
        name=card.pop("name"),
        autoencoder=autoencoder.eval().requires_grad_(False).to(device or "cpu"),
        denoiser=denoiser.eval().requires_grad_(False).to(device or "cpu"),
        scheduler=scheduler,
        provenance=card,
        sha256=digests,
    )


_LOCAL: dict[str, Any] = {
    "torch_dtype": torch.float32,
    "low_cpu_mem_usage": False,
    "local_files_only": True,
    "use_safetensors": True,
}
