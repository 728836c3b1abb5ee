"""Stages 1 and 2 one after another: from public sets to a backbone directory, resumable at any point."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

import dpldm
from dpldm.data.public.collection import PublicSet
from dpldm.device import chosen_device
from dpldm.models.autoencoder import Autoencoder, Pixels, Posterior
from dpldm.models.backbone import OWN, OWN_OF_PIXELS, OWN_UNCONDITIONAL, Backbone
from dpldm.models.denoiser import build_scheduler
from dpldm.recipe import BackboneRecipe
from dpldm.train.adversarial import stage_1
from dpldm.train.autoencoder import mean_absolute_error
from dpldm.train.diffusion import DiffusionTraining, encode_public, pseudo_classes
from dpldm.train.public_data import PublicImages, load_public_images

PLACES: Any = {"public": True, "output": True, "device": True, "autoencoder": {"adversarial": {"perceptual_weights"}}}
"""Settings that are places of a machine."""


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
        UserError: a public set is missing or has another size.
    """
    work = recipe.output.with_name(recipe.output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    device = chosen_device(recipe.device)
    public = load_public_images(recipe.public, recipe.image_size, recipe.channels)
    images = public.pixels

    autoencoder: Autoencoder = Pixels(recipe.channels)
    if recipe.space == "latents":
        first = stage_1(
            *(recipe.autoencoder, images, recipe.seed, work / "autoencoder.safetensors"),
            jittered=recipe.jitter,
            device=device,
        )
        for step in first.steps():
            yield PretrainStep("autoencoder", step.number, recipe.autoencoder.steps, step.loss)
        autoencoder = first.finish()

    posterior = encode_public(autoencoder, images, recipe.seed, jittered=recipe.jitter)
    labels, classes = told_labels(recipe, public, posterior)
    second = DiffusionTraining(
        *(recipe.diffusion, posterior, labels, recipe.seed + 1, work / "diffusion.safetensors"),
        classes=classes,
        device=device,
    )
    for step in second.steps():
        yield PretrainStep("diffusion", step.number, recipe.diffusion.steps, step.loss)

    facts = _provenance(recipe, autoencoder, images, labels, classes)
    made_backbone(recipe, autoencoder.cpu(), second.averaged().cpu(), facts).save(recipe.output)


def told_labels(recipe: BackboneRecipe, public: PublicImages, posterior: Posterior) -> tuple[Tensor, int]:
    """What the denoiser is told about each public image, (N,) int64, and how many things there are to tell."""
    if recipe.diffusion.told == "clusters":
        classes = recipe.diffusion.pseudo_classes
        return pseudo_classes(posterior.mean, classes, recipe.seed), classes
    if recipe.diffusion.told == "labels":
        return torch.from_numpy(public.labels), public.classes
    return torch.zeros(len(public.labels), dtype=torch.int64), 1


def made_backbone(
    recipe: BackboneRecipe, autoencoder: Autoencoder, denoiser: nn.Module, facts: dict[str, Any]
) -> Backbone:
    """The backbone of a recipe, to be saved."""
    index = OWN if recipe.space == "latents" else OWN_OF_PIXELS
    index = OWN_UNCONDITIONAL if recipe.diffusion.told == "nothing" else index
    scheduler = build_scheduler(recipe.diffusion.prediction_type)
    return Backbone(recipe.name, autoencoder, denoiser, scheduler, facts, index=index)


def _provenance(
    recipe: BackboneRecipe, autoencoder: Autoencoder, images: np.ndarray, labels: Tensor, classes: int
) -> dict[str, Any]:
    shown = images[:: max(1, len(images) // 2000)]
    return {
        "recipe": recipe.model_dump(mode="json", exclude=PLACES),
        "public_sets": [dict(PublicSet.load(path).provenance) for path in recipe.public],
        "public_images": len(images),
        "pseudo_class_sizes": np.bincount(labels.numpy(), minlength=classes).tolist(),
        "reconstruction_l1": mean_absolute_error(autoencoder, shown),
        "versions": {
            "dpldm": dpldm.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }
