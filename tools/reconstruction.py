"""What an autoencoder keeps of public images, judged by a network that took no part in its training.

    python tools/reconstruction.py RECIPE.yaml --judge PUBLIC_SET [--output FILE]
    python tools/reconstruction.py BACKBONE    --judge PUBLIC_SET [--output FILE]

Trains stage 1 of a recipe (resumes, as `dpldm pretrain` does, in the same place), or takes a backbone's autoencoder,
and compares held-out public images with their reconstructions: L1; the perceptual distance through EfficientNet-Lite2,
which no loss uses; and the KID of its features. Accuracy on reconstructed benchmark images is `tools/gates.py`, for a
whole backbone.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpldm.data.public.collection import PublicSet
from dpldm.evaluation.features import EfficientNetLite2
from dpldm.evaluation.fidelity import kid
from dpldm.loading import load_config
from dpldm.models.autoencoder import Autoencoder, decode, encode
from dpldm.models.backbone import load_backbone
from dpldm.models.perceptual import EfficientNetDistance
from dpldm.recipe import BackboneRecipe
from dpldm.train.adversarial import stage_1
from dpldm.train.autoencoder import mean_absolute_error
from dpldm.train.begun import require_as_begun
from dpldm.train.public_data import load_public_images

AT_ONCE = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("autoencoder", help="a recipe (.yaml), or the name or directory of a backbone")
    parser.add_argument("--judge", type=Path, required=True, help="a public set that it was not trained on")
    parser.add_argument("--images", type=int, default=2000, help="how many of it")
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    given = parser.parse_args()
    if given.autoencoder.endswith(".yaml"):
        autoencoder, made_by = trained(load_config(BackboneRecipe, Path(given.autoencoder)))
    else:
        autoencoder, made_by = load_backbone(given.autoencoder).autoencoder, {"backbone": given.autoencoder}
    held_out = PublicSet.load(given.judge).images
    chosen = held_out[np.random.default_rng(0).permutation(len(held_out))[: given.images]]
    result = judged(autoencoder, chosen) | {"judge": given.judge.name} | made_by
    text = json.dumps(result, indent=2)
    print(text)
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")


def trained(recipe: BackboneRecipe) -> tuple[Autoencoder, dict[str, Any]]:
    """The autoencoder of a recipe, and what there is to know of its training."""
    work = recipe.output.with_name(recipe.output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    public = load_public_images(recipe.public, recipe.image_size, recipe.channels)
    require_as_begun(recipe, public.sets, work)
    training = stage_1(recipe.autoencoder)(
        *(recipe.autoencoder, public.pixels, recipe.seed, work / "autoencoder.safetensors"), jittered=recipe.jitter
    )
    for _ in training.steps():
        pass
    settings = recipe.autoencoder.model_dump(mode="json", exclude={"adversarial": {"perceptual_weights"}})
    return training.finish(), {"trained_on": len(public.pixels), "recipe": settings}


def judged(autoencoder: Autoencoder, images: np.ndarray) -> dict[str, Any]:
    """Distances between images, uint8 (N, S, S, C), and their reconstructions."""
    restored = decode(autoencoder, encode(autoencoder, images).mean, images.shape[1])
    distance, features = EfficientNetDistance(2), EfficientNetLite2()
    with torch.no_grad():
        perceptual = [
            float(value)
            for start in range(0, len(images), AT_ONCE)
            for value in distance(*(_pixels(part[start : start + AT_ONCE]) for part in (images, restored)))
        ]
    return {
        "judged_images": len(images),
        "l1": mean_absolute_error(autoencoder, images),
        "perceptual_efficientnet_lite2": float(np.mean(perceptual)),
        f"kid_{features.name}": kid(features(images), features(restored))[0],
    }


def _pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    main()
