"""Stages 1 and 2 one after another: from public sets to a backbone directory, resumable at any point."""

from collections.abc import Iterator
from dataclasses import dataclass

import diffusers
import numpy as np
import torch
from torch import Tensor

import dpldm
from dpldm.data.public.collection import PublicSet
from dpldm.models.backbone import Backbone
from dpldm.models.denoiser import build_scheduler
from dpldm.recipe import BackboneRecipe
from dpldm.train.autoencoder import AutoencoderTraining, mean_absolute_error
from dpldm.train.diffusion import DiffusionTraining, encode_public, pseudo_classes
from dpldm.train.public_data import load_public_images


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
    images = load_public_images(recipe.public, recipe.image_size, recipe.channels)

    first = AutoencoderTraining(recipe.autoencoder, images, recipe.seed, work / "autoencoder.safetensors")
    for step in first.steps():
        yield PretrainStep("autoencoder", step.number, recipe.autoencoder.steps, step.loss)
    autoencoder = first.finish()

    posterior = encode_public(autoencoder, images, recipe.seed)
    labels = pseudo_classes(posterior.mean, recipe.diffusion.pseudo_classes, recipe.seed)
    second = DiffusionTraining(recipe.diffusion, posterior, labels, recipe.seed + 1, work / "diffusion.safetensors")
    for step in second.steps():
        yield PretrainStep("diffusion", step.number, recipe.diffusion.steps, step.loss)

    backbone = Backbone(
        recipe.name,
        autoencoder,
        second.averaged(),
        build_scheduler(recipe.diffusion.prediction_type),
        {
            "recipe": recipe.model_dump(mode="json", exclude={"public", "output"}),
            "public_sets": [dict(PublicSet.load(path).provenance) for path in recipe.public],
            "public_images": len(images),
            "pseudo_class_sizes": _sizes(labels, recipe.diffusion.pseudo_classes),
            "reconstruction_l1": mean_absolute_error(autoencoder, images[:: max(1, len(images) // 2000)]),
            "versions": {
                "dpldm": dpldm.__version__,
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
            },
        },
    )
    backbone.save(recipe.output)


def _sizes(labels: Tensor, classes: int) -> list[int]:
    return [int(n) for n in np.bincount(labels.numpy(), minlength=classes)]
