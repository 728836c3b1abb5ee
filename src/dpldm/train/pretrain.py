"""Stages 1 and 2 one after another: from public sets to a backbone directory, resumable at any point."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel
from torch import nn

import dpldm
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.models.autoencoder import Autoencoder, Pixels, Posterior
from dpldm.models.backbone import OWN, OWN_OF_PIXELS, OWN_UNCONDITIONAL, Backbone, load_backbone, read_card
from dpldm.models.denoiser import build_scheduler
from dpldm.models.minilm import read_texts, save_told_by_minilm, write_reader
from dpldm.recipe import BackboneRecipe
from dpldm.train.adversarial import stage_1
from dpldm.train.autoencoder import mean_absolute_error
from dpldm.train.begun import require_as_begun, without_places
from dpldm.train.diffusion import (
    DiffusionTraining,
    Told,
    encode_public,
    pseudo_classes,
    told_classes,
    told_nothing,
)
from dpldm.train.public_data import PublicImages, load_public_images

SOME = 16
"""Captions that are named in a card, to draw from."""


@dataclass(frozen=True)
class PretrainStep:
    """Progress of pre-training; all of it public."""

    stage: str  # "autoencoder" or "diffusion"
    number: int
    steps: int
    loss: float


def pretrain(recipe: BackboneRecipe) -> Iterator[PretrainStep]:
    """Run both stages and write the backbone to `recipe.output`. The same call resumes.

    Checkpoints live in `<output>.work/`, beside the result.

    Raises:
        UserError: a public set is missing or has another size, a backbone that the recipe builds on does not fit, or
            the recipe is not the one that an earlier call began with.
    """
    work = recipe.output.with_name(recipe.output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    device = chosen_device(recipe.device)
    public = load_public_images(recipe.public, recipe.image_size, recipe.channels)
    images = public.pixels
    require_as_begun(recipe, public.sets, work)

    autoencoder = ready_autoencoder(recipe, device)
    if autoencoder is None:
        first = stage_1(recipe.autoencoder)(
            *(recipe.autoencoder, images, recipe.seed, work / "autoencoder.safetensors"),
            jittered=recipe.jitter,
            device=device,
        )
        for step in first.steps():
            yield PretrainStep("autoencoder", step.number, recipe.autoencoder.steps, step.loss)
        autoencoder = first.finish()

    posterior = encode_public(autoencoder, images, recipe.seed, jittered=recipe.jitter)
    told = what_is_told(recipe, public, posterior, work)
    second = DiffusionTraining(
        *(recipe.diffusion, posterior, told, recipe.seed + 1, work / "diffusion.safetensors"), device=device
    )
    for step in second.steps():
        yield PretrainStep("diffusion", step.number, recipe.diffusion.steps, step.loss)

    facts = _provenance(recipe, autoencoder, public, told)
    _save(recipe, autoencoder.cpu(), second.averaged().cpu(), facts)


def ready_autoencoder(recipe: BackboneRecipe, device: torch.device) -> Autoencoder | None:
    """An autoencoder without training: another backbone's, or the pixels themselves. None: stage 1 makes it.

    Raises:
        UserError: that of the other backbone does not fit.
    """
    if recipe.space == "pixels":
        return Pixels(recipe.channels).to(device)
    if recipe.autoencoder_of is None:
        return None
    other = load_backbone(recipe.autoencoder_of, device)
    usable = (AutoencoderKL,) if recipe.diffusion.told == "names" else (AutoencoderKL, VQModel)
    if not isinstance(other.autoencoder, usable):
        raise UserError(
            f"The backbone {recipe.autoencoder_of} has no autoencoder of the class "
            f"{' or '.join(kind.__name__ for kind in usable)}: set autoencoder_of to one that has, or leave it out."
        )
    if other.channels != recipe.channels:
        raise UserError(
            f"The autoencoder of {recipe.autoencoder_of} has {other.channels} channels, the recipe {recipe.channels}: "
            "set autoencoder_of to another backbone, or leave it out."
        )
    return other.autoencoder


def what_is_told(recipe: BackboneRecipe, public: PublicImages, posterior: Posterior, work: Path) -> Told:
    """What the denoiser is told about each public image; a text encoder that is needed is put into `work`.

    Raises:
        UserError: MiniLM is needed and not installed.
    """
    if recipe.diffusion.told == "nothing":
        return told_nothing(len(public.labels))
    if recipe.diffusion.told == "labels":
        return told_classes(torch.from_numpy(public.labels), public.classes)
    if recipe.diffusion.told == "names":
        return _told_names(public.names, work / "reader")
    clusters = recipe.diffusion.pseudo_classes
    return told_classes(pseudo_classes(posterior.mean, clusters, recipe.seed), clusters)


def _told_names(names: np.ndarray, reader: Path) -> Told:
    different, rows = np.unique(names, return_inverse=True)
    texts = tuple(different.tolist())
    write_reader(reader)
    return Told(read_texts(reader, [*texts, ""]), torch.from_numpy(rows.astype(np.int64)), texts)


def _save(recipe: BackboneRecipe, autoencoder: Autoencoder, denoiser: nn.Module, facts: dict[str, Any]) -> None:
    scheduler = build_scheduler(recipe.diffusion.prediction_type)
    if recipe.diffusion.told == "names":
        save_told_by_minilm(recipe.output, recipe.name, autoencoder, denoiser, scheduler, facts)
        return
    index = OWN if recipe.space == "latents" else OWN_OF_PIXELS
    index = OWN_UNCONDITIONAL if recipe.diffusion.told == "nothing" else index
    Backbone(recipe.name, autoencoder, denoiser, scheduler, facts, index=index).save(recipe.output)


def _provenance(recipe: BackboneRecipe, autoencoder: Autoencoder, public: PublicImages, told: Told) -> dict[str, Any]:
    builds_on = {recipe.autoencoder_of, recipe.autoencoder.start, recipe.diffusion.start}
    cards, images = [read_card(name) for name in sorted(filter(None, builds_on))], public.pixels
    return {
        "recipe": without_places(recipe),
        "public_sets": [dict(provenance) for provenance in public.sets],
        "public_images": len(images),
        "builds_on": {card["name"]: card["sha256"] for card in cards},
        **_about(told),
        "reconstruction_l1": mean_absolute_error(autoencoder, images[:: max(1, len(images) // 2000)]),
        "versions": {
            "dpldm": dpldm.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }


def _about(told: Told) -> dict[str, Any]:
    if told.texts:
        return {"captions": len(told.texts), "some_captions": list(told.texts[:: -(-len(told.texts) // SOME)])}
    return {"pseudo_class_sizes": torch.bincount(told.rows, minlength=len(told.table) - 1).tolist()}
