"""A row of a table: which recipes it is made of, at which scale, and where its files lie.

    DATA/mnist  DATA/emnist-letters  ...      sets as they are published, and checkpoints; never written to
    OUTPUT/SCALE/  public/NAME  backbones/NAME  runs/ROW

Everything a row is made of is in the recipes; this file puts them at their places.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from dpldm.config import RunConfig
from dpldm.data.published import Published, published
from dpldm.errors import UserError
from dpldm.loading import overlaid, put, read_raw, recipes, validate
from dpldm.recipe import BackboneRecipe

ScaleName = Literal["smoke", "laptop", "paper"]
SCALES: tuple[ScaleName, ...] = ("smoke", "laptop", "paper")

PAIRS = {
    "mnist": "EMNIST letters -> MNIST, told digits",
    "cifar10": "ImageNet 32x32 -> CIFAR-10, told classes",
    "cifar10-pixels": "the same on pixels, all of the denoiser tuned, as DP-Diffusion does",
    "celeba32": "ImageNet 32x32 -> CelebA 32x32, told nothing",
    "celeba64": "ImageNet 64x64 -> CelebA 64x64, told nothing",
    "camelyon17": "ImageNet 32x32 -> Camelyon17-WILDS, told tumour or none",
    "celebahq-class": "ImageNet 256x256 -> CelebA-HQ, told Male or not",
    "celebahq-text": "LAION -> CelebA-HQ, told captions",
    "fashion-mnist": "icons and letters (the bundled grey32) -> Fashion-MNIST, told classes; no row of the paper",
}
"""Public set -> private set, what the network is told."""

PUBLISHED_AS = {"imagenet32": "imagenet-batches", "imagenet64": "imagenet-batches"}
"""Names of folders that are not those of `dpldm public check`."""

CHECKPOINTS = {
    "cin256-v2": "CompVis' cin256-v2.ckpt (Rombach et al. 2022)",
    "txt2img-1.4B": "CompVis' txt2img-1.4B.ckpt (Rombach et al. 2022)",
}
"""Backbones that are downloaded: name -> what to get."""


@dataclass(frozen=True)
class Row:
    """A row at a scale, with all places filled in."""

    name: str  # such as mnist/eps10, perhaps with +CHOICE
    scale: ScaleName
    data: Path
    run: RunConfig
    pretraining: BackboneRecipe | None  # None: the backbone is bundled or downloaded
    checkpoint: Path | None  # of a backbone that is downloaded

    @property
    def pair(self) -> str:
        """Key of `PAIRS`."""
        return self.name.partition("/")[0]

    @property
    def backbone(self) -> Path:
        """Where the backbone is, or will be."""
        return Path(self.run.backbone)

    def sets(self) -> Iterator[tuple[Path, Published]]:
        """Folders of published sets that the row reads, and what must be in each."""
        public = () if self.pretraining is None else self.pretraining.public
        for folder in (self.run.data.path, *(self.data / path.name for path in public)):
            yield folder, published(PUBLISHED_AS.get(folder.name, folder.name))


def row_names() -> list[str]:
    """All rows, in the order of `PAIRS`, the weakest promise first."""
    return [f"{pair}/eps{e}" for pair in PAIRS for e in (10, 5, 1) if (recipes() / pair / f"eps{e}.yaml").is_file()]


def row_of(name: str, scale: ScaleName, data: Path, output: Path, overrides: Sequence[tuple[str, str]] = ()) -> Row:
    """The row of a name.

    Args:
        overrides: settings of `runtime` (dotted key, YAML text), which change no figure.

    Raises:
        UserError: there is none, or not at this scale, or another setting is to be changed.
    """
    if any(not key.startswith("runtime.") for key, _ in overrides):
        raise UserError("A row is what its recipe says: only settings of runtime may be changed, as --runtime.KEY.")
    bare, _, choice = name.partition("+")
    if bare not in row_names():
        raise UserError(f"There is no row {name!r}: `dpldm reproduce` lists them; append +CHOICE for what is tuned.")
    smaller = {} if scale == "paper" else _scale(scale)
    place = output / scale
    raw = overlaid(read_raw(Path(name)), smaller.get("run", {}))
    raw |= {"trainable": choice} if choice else {}
    backbone = Path(raw["backbone"])
    made, downloaded = backbone.parts[0] == "backbones", backbone.name in CHECKPOINTS
    if downloaded and scale == "laptop":
        raise UserError(
            f"{name} tunes a published model of full size, too much for a laptop: use --scale smoke or paper."
        )
    _put_at(raw, data, place, smaller)
    for key, text in overrides:
        put(raw, key, text)
    recipe = recipes() / f"{backbone}.yaml"
    return Row(
        name=name,
        scale=scale,
        data=data,
        run=validate(RunConfig, raw),
        pretraining=_pretraining(recipe, place, smaller) if made and recipe.is_file() else None,
        checkpoint=data / f"{backbone.name}.ckpt" if downloaded else None,
    )


def _scale(name: ScaleName) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((recipes() / "scales" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def _put_at(raw: dict[str, Any], data: Path, place: Path, smaller: dict[str, Any]) -> None:
    """Fill in the places of a run's config, and keep its images as small as the scale asks."""
    settings, evaluation = raw["data"], raw.get("evaluation", {})
    raw["data"] = settings | {name: str(data / Path(settings[name]).name) for name in ("path", "test_path")}
    raw["data"]["image_size"] = min(settings["image_size"], smaller.get("largest", settings["image_size"]))
    if raw["backbone"].startswith("backbones/"):
        raw["backbone"] = str(place / raw["backbone"])
    if evaluation.get("inception_weights"):
        raw["evaluation"] = evaluation | {"inception_weights": str(data / Path(evaluation["inception_weights"]).name)}
    if prompts := raw.get("sampling", {}).get("prompts"):
        raw["sampling"] = raw["sampling"] | {"prompts": str(recipes() / prompts)}
    raw["runtime"] = raw.get("runtime", {}) | {"output": str(place / "runs")}


def _pretraining(file: Path, place: Path, smaller: dict[str, Any]) -> BackboneRecipe:
    raw = overlaid(read_raw(file), smaller.get("backbone", {}))
    raw["public"] = [str(place / path) for path in raw["public"]]
    raw["output"] = str(place / raw["output"])
    raw["image_size"] = min(raw["image_size"], smaller.get("largest", raw["image_size"]))
    for stage in ("autoencoder", "diffusion"):
        if widths := raw.get(stage, {}).get("widths"):
            raw[stage]["widths"] = [min(width, smaller.get("widest", width)) for width in widths]
    return validate(BackboneRecipe, raw)
