"""A backbone: autoencoder, denoiser and noise schedule with their provenance, in one stock diffusers directory.

    NAME/ model_index.json  vae/  unet/  scheduler/  backbone.json (provenance, recipe, sha256 of the weights)

These are the folders of our own backbones; a foreign one has those of its pipeline, and no backbone.json: its card then
names its weights by their sha256 as they are, and its tokenizer too, which says what a weight means. What is saved has
one. Weights are stored as float16 and loaded as float32. Everything in a backbone comes from public images.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, VQModel
from torch import Tensor, nn

from dpldm.errors import UserError
from dpldm.models.autoencoder import Autoencoder, Pixels
from dpldm.models.borrowing import completed
from dpldm.models.families import Family, Layout, family_of, family_of_pipeline
from dpldm.models.families.parts import (
    copy_part,
    load_part,
    require_class,
    save_half,
    tokenizer_files,
    weights_of,
)
from dpldm.models.lora import save_adapters

WEIGHTS = ("vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors")
"""Of our own backbones."""
OWN = {
    "_class_name": "ClassConditionalLDMPipeline",
    "_diffusers_version": diffusers.__version__,
    "vae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
"""model_index.json of our own backbones that are told classes."""
OWN_OF_PIXELS = {
    "_class_name": "ClassConditionalPixelPipeline",
    "_diffusers_version": diffusers.__version__,
    "pixel_unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
"""The same without an autoencoder."""
OWN_UNCONDITIONAL = {
    "_class_name": "LDMPipeline",
    "_diffusers_version": diffusers.__version__,
    "vqvae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
"""The same told nothing."""
ADAPTERS = "pytorch_lora_weights.safetensors"
"""All weights of a release of adapters."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SINGLE_FILES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Backbone:
    """The public half of a DP-LDM."""

    name: str
    autoencoder: Autoencoder
    denoiser: nn.Module  # the network of its family
    scheduler: DDPMScheduler
    provenance: Mapping[str, Any]
    sha256: Mapping[str, str] = field(default_factory=dict)  # of the weights and tokenizer files it was loaded from
    index: Mapping[str, Any] = field(default_factory=lambda: OWN)  # model_index.json
    source: Path | None = None  # the directory it was loaded from

    @property
    def family(self) -> Family:
        """What the denoiser is and is told."""
        return family_of(self.denoiser)

    @property
    def channels(self) -> int:
        """Image channels: 1 grey, 3 colour."""
        return int(self.autoencoder.config.in_channels)

    @property
    def digest(self) -> str:
        """Identity of the weights, whatever the directory is called."""
        return weights_digest(self.sha256)

    def save(self, directory: Path, tuned: Mapping[str, Any] | None = None, labels: Sequence[str] = ()) -> None:
        """Write the directory; weights are rounded to float16. Parts of a foreign backbone that are never tuned are
        copied as they are.

        Args:
            tuned: what is owed for weights that were tuned on private images; None for a public backbone.
            labels: private class names, for a pipeline that can hold them.
        """
        directory.mkdir(parents=True, exist_ok=True)
        family, layout = self.family, self.family.layouts[self.index["_class_name"]]
        family.save(self.denoiser, directory, layout, self.source)
        index = family.index(self.index, labels)
        if self.source is None:
            if layout.autoencoder is not None:
                save_half(self.autoencoder, directory / layout.autoencoder)
                index[layout.autoencoder] = ["diffusers", type(self.autoencoder).__name__]
            self.scheduler.save_pretrained(directory / "scheduler")
            index["_diffusers_version"] = diffusers.__version__
        else:
            if layout.autoencoder is not None:
                copy_part(self.autoencoder, self.source / layout.autoencoder, directory / layout.autoencoder)
            (directory / "scheduler").mkdir(exist_ok=True)
            shutil.copyfile(self.source / SCHEDULE, directory / SCHEDULE)
        _write_json(directory / "model_index.json", index)
        owed = {"tuned": dict(tuned)} if tuned else {}
        certify(directory, self.name, {**self.provenance, **owed})

    def save_adapters(self, directory: Path, weights: Mapping[str, Tensor], tuned: Mapping[str, Any]) -> None:
        """Write nothing but adapters, which the stock pipeline of the public model loads by `load_lora_weights`.

        Args:
            weights: what was tuned, by peft's names.
            tuned: what is owed for them.
        """
        directory.mkdir(parents=True, exist_ok=True)
        save_adapters(weights, directory / ADAPTERS)
        digests = {ADAPTERS: sha256_of(directory / ADAPTERS)}
        card = {"name": self.name, **self.provenance, "tuned": dict(tuned), "sha256": digests}
        _write_json(directory / "backbone.json", card)

    @property
    def takes_adapters(self) -> bool:
        """Whether its stock pipeline loads adapters."""
        return self.family.layouts[self.index["_class_name"]].takes_adapters


SCHEDULE = "scheduler/scheduler_config.json"


def certify(directory: Path, name: str, provenance: Mapping[str, Any]) -> None:
    """Write the card of a stock directory: its name, where it comes from, and the sha256 of what a run is bound to."""
    index = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
    pipeline = index["_class_name"]
    layout = family_of_pipeline(pipeline, name).layouts[pipeline]
    digests = {file: sha256_of(path) for file, path in _bound(directory, layout).items()}
    _write_json(directory / "backbone.json", {"name": name, **provenance, "sha256": digests})


def _weights(directory: Path, layout: Layout) -> dict[str, Path]:
    """The weights files of a directory by the names they have by convention."""
    parts = [part for part in (layout.autoencoder, layout.denoiser, layout.text_encoder) if part is not None]
    return {f"{part}/{name}": path for part in parts for name, path in weights_of(directory / part).items()}


def _bound(directory: Path, layout: Layout) -> dict[str, Path]:
    """The files that a run is bound to: weights, and what turns words into their rows."""
    words = tokenizer_files(directory / "tokenizer") if layout.text_encoder is not None else {}
    return _weights(directory, layout) | {f"tokenizer/{name}": path for name, path in words.items()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


@lru_cache(maxsize=64)
def _sha256_of_unchanged(path: Path, size: int, modified: int) -> str:
    """Large weights are hashed once a process, as long as their file stays the same."""
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(digests: Mapping[str, str]) -> str:
    """One digest for all files of a backbone that a run is bound to, from the sha256 of each."""
    return hashlib.sha256(json.dumps(dict(digests), sort_keys=True).encode()).hexdigest()


def bundled_backbones() -> dict[str, Path]:
    """Backbones that ship with the package: name -> directory."""
    root = Path(str(resources.files("dpldm") / "backbones"))
    return {card.parent.name: card.parent for card in sorted(root.glob("*/backbone.json"))}


def locate_backbone(name_or_path: str) -> Path:
    """Directory of a bundled backbone, of one given by path, or of one on the Hugging Face hub (`owner/name`).

    Raises:
        UserError: none of these, or a file where a directory is wanted.
    """
    bundled = bundled_backbones()
    if name_or_path in bundled:
        return completed(bundled[name_or_path])
    directory = Path(name_or_path)
    if any((directory / name).is_file() for name in ("backbone.json", "model_index.json")):
        return directory
    if directory.suffix in SINGLE_FILES:
        raise UserError(
            f"The backbone {name_or_path!r} is a single file: turn it into a directory with "
            f"`dpldm backbone convert {name_or_path} --output FOLDER`, and give FOLDER."
        )
    if HUB_ID.fullmatch(name_or_path) and not directory.exists():
        return _from_hub(name_or_path)
    known = f"one of {', '.join(sorted(bundled))}, " if bundled else ""
    raise UserError(
        f"There is no backbone {name_or_path!r}: give {known}a directory made by `dpldm pretrain`, or one of diffusers "
        "(with a model_index.json)."
    )


@lru_cache(maxsize=8)
def _from_hub(name: str) -> Path:
    """The files of a repository that a backbone may have, from the account's cache or the network.

    Raises:
        UserError: it is neither here nor can be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["model_index.json", "backbone.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
    unused = ["safety_checker/*", "feature_extractor/*", "*.non_ema.*"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=unused))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"The backbone {name!r} is no folder here, and cannot be fetched from the Hugging Face hub "
            f"({type(error).__name__}): check its name and the network, or copy its directory here and give the path."
        ) from error


def read_card(name_or_path: str) -> dict[str, Any]:
    """backbone.json of a backbone: its name, provenance, recipe, and the sha256 of its weights. A foreign directory has
    none: its card is made from what it holds.

    Raises:
        UserError: it does not exist, its card cannot be read, or it is of no known family.
    """
    directory = locate_backbone(name_or_path)
    path = directory / "backbone.json"
    try:
        if not path.exists() and (directory / "model_index.json").is_file():
            return _foreign_card(directory, name_or_path)
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The card of backbone {name_or_path!r} cannot be read: make or copy it again.") from error
    return card


def _foreign_card(directory: Path, name_or_path: str) -> dict[str, Any]:
    """Name, pipeline and sha256 of its files. The name is the hub's, or that of the folder: no path of a machine."""
    _, layout, index = kind_of(name_or_path)
    of_hub = HUB_ID.fullmatch(name_or_path) and not Path(name_or_path).exists()
    name = name_or_path if of_hub else directory.resolve().name
    digests = {file: _digest(path) for file, path in _bound(directory, layout).items()}
    return {"name": name, "pipeline": index["_class_name"], "sha256": digests}


def kind_of(name_or_path: str) -> tuple[Family, Layout, dict[str, Any]]:
    """Family, folders and model_index.json of a backbone, without its weights.

    Raises:
        UserError: it is of no known family, or model_index.json cannot be read.
    """
    directory = locate_backbone(name_or_path)
    try:
        index = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
        pipeline = str(index["_class_name"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"The backbone {name_or_path!r} is incomplete: make or copy it again.") from error
    family = family_of_pipeline(pipeline, repr(name_or_path))
    return family, family.layouts[pipeline], index


def latent_entries_of(name_or_path: str, image_size: int) -> int:
    """Numbers in the latent of an image, from the backbone's settings alone.

    Raises:
        UserError: they cannot be read.
    """
    _, layout, _ = kind_of(name_or_path)
    part = layout.autoencoder or layout.denoiser
    try:
        settings = json.loads((locate_backbone(name_or_path) / part / "config.json").read_text(encoding="utf-8"))
        if layout.autoencoder is None:
            return int(settings["in_channels"]) * image_size * image_size
        side: int = -(-image_size // 2 ** (len(settings["block_out_channels"]) - 1))
        return int(settings["latent_channels"]) * side * side
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"The backbone {name_or_path!r} is incomplete: make or copy it again.") from error


def public_classes_of(name_or_path: str) -> int:
    """How many public classes the backbone has that can be kept beside private ones, from its settings alone.

    Raises:
        UserError: it has none, or its settings cannot be read.
    """
    family, layout, _ = kind_of(name_or_path)
    try:
        settings = json.loads((locate_backbone(name_or_path) / layout.denoiser / "config.json").read_text("utf-8"))
        found = family.public_classes(settings)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"The backbone {name_or_path!r} is incomplete: make or copy it again.") from error
    if not found:
        raise UserError(
            "privacy.public_classes_noise and class_parts need a backbone that is told classes by one token, such as "
            f"grey32, and {name_or_path!r} is not: leave them out, or use one."
        )
    return found


def bytes_of_network(name_or_path: str) -> int:
    """Size in float32 of what is tuned at most: denoiser and text encoder.

    Raises:
        UserError: they are not there.
    """
    _, layout, _ = kind_of(name_or_path)
    found = _weights(locate_backbone(name_or_path), layout)
    tuned = [path for name, path in found.items() if name.split("/")[0] != layout.autoencoder]
    return 2 * sum(path.stat().st_size for path in tuned)  # stored as float16, or as more


def load_backbone(name_or_path: str, device: torch.device | None = None) -> Backbone:
    """Load a backbone as float32, in evaluation mode, after checking its weights against their sha256.

    Args:
        name_or_path: a bundled name, a directory, or a hub id.
        device: where its networks compute; the CPU by default.

    Raises:
        UserError: it does not exist, is damaged, of no known family, or its weights are not the ones its provenance
            names.
    """
    directory, card = locate_backbone(name_or_path), read_card(name_or_path)
    try:
        family, layout, index = kind_of(name_or_path)
        digests, found = card.pop("sha256"), _bound(directory, layout)
        changed = [name for name, path in found.items() if _digest(path) != digests[name]]
    except (OSError, KeyError) as error:
        raise UserError(f"The backbone {name_or_path!r} is incomplete: make or copy it again.") from error
    if changed:
        raise UserError(f"The files {changed} of backbone {name_or_path!r} do not match their recorded sha256.")
    network = family.load(directory, index, layout)
    autoencoder = _load_autoencoder(directory, index, layout)
    channels = int(family.settings(network)["in_channels"])
    if channels != autoencoder.config.latent_channels:
        raise UserError(
            f"The denoiser of backbone {name_or_path!r} takes {channels} channels where its autoencoder makes "
            f"{autoencoder.config.latent_channels}, perhaps because it is told another image: use another backbone."
        )
    return Backbone(
        name=card.pop("name"),
        autoencoder=autoencoder.eval().requires_grad_(False).to(device or "cpu"),
        denoiser=network.eval().requires_grad_(False).to(device or "cpu"),
        scheduler=_load_schedule(directory),
        provenance=card,
        sha256=digests,
        index=index,
        source=directory,
    )


def _digest(path: Path) -> str:
    facts = path.stat()
    return _sha256_of_unchanged(path, facts.st_size, facts.st_mtime_ns)


def _load_autoencoder(directory: Path, index: Mapping[str, Any], layout: Layout) -> Autoencoder:
    if layout.autoencoder is None:
        settings = json.loads((directory / layout.denoiser / "config.json").read_text(encoding="utf-8"))
        return Pixels(int(settings["in_channels"]))
    name = require_class(index, layout.autoencoder, ("AutoencoderKL", "VQModel"))
    part: Autoencoder = load_part(
        {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}[name], directory / layout.autoencoder
    )
    return part


def _load_schedule(directory: Path) -> DDPMScheduler:
    """The schedule that the network was trained with, whichever solver it is stored as.

    Raises:
        UserError: it cannot be read, or is of another kind of diffusion.
    """
    try:
        settings = json.loads((directory / SCHEDULE).read_text(encoding="utf-8"))
        scheduler = DDPMScheduler.from_config(settings)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"The backbone's {SCHEDULE} cannot be read: copy the whole directory again.") from error
    kind = scheduler.config.prediction_type
    if "beta_schedule" not in settings or kind not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"The backbone's schedule ({settings.get('_class_name')}, {kind}) is not one of betas and a prediction of "
            "noise, velocity or image: use a backbone with such a schedule."
        )
    return scheduler
