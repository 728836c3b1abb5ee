"""Where points are lost before any gradient: what the papers' CNN learns from images ever further from the real ones.

    python tools/ceiling.py --config examples/fashion-mnist.yaml [--epochs 10]

All rungs have the same labels in the same order, 50,000 images to learn from and 10,000 that choose the epoch, and real
test images: real images; their reconstructions; draws of the classes' portraits without noise, and with the config's.
NOT PRIVATE, so for public benchmarks only. Writes results/ceiling-NAME.json and logs the looks.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from gates import commit, load
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.evaluation.classifiers import train_classifier
from dpldm.loading import load_config
from dpldm.models.autoencoder import decode, encode
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.models.public_classes import merged, nearest
from dpldm.privacy.queries import Places, class_spreads, class_sums, spread_sums
from dpldm.privacy.questions import LEAST_NOISE, ClassMeans, ClassSpreads
from dpldm.run import plan_of
from dpldm.train.centres import centres_of
from dpldm.train.portraits import Portraits, factors
from dpldm.train.starting import guesses_of_public_classes

AT_ONCE = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    config = load_config(RunConfig, given.config)
    if not config.privacy.public_benchmark:
        raise SystemExit("Only for a public benchmark: every rung is a function of all images.")
    train, test = load(config, "train"), load(config, "test")
    result = {"command": f"python tools/ceiling.py --config {given.config} --epochs {given.epochs}", "commit": commit()}
    result |= {"date": time.strftime("%Y-%m-%d"), "epochs": given.epochs, "accuracy": {}}
    target = Path("results") / f"ceiling-{config.name}.json"
    for rung, images in rungs(config, train.pixels, train.labels):
        learnt, chosen = (images[:50_000], train.labels[:50_000]), (images[50_000:], train.labels[50_000:])
        classes = len(config.data.labels)
        network = train_classifier("cnn", *learnt, classes=classes, epochs=given.epochs, seed=0, validation=chosen)
        result["accuracy"][rung] = network.accuracy(test.pixels, test.labels)
        print(f"{rung}: {result['accuracy'][rung]:.4f}", flush=True)
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    with Path("results/benchmark-looks.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps({"why": "ceiling", "data": config.privacy.dataset_id, **result}) + "\n")


def rungs(config: RunConfig, pixels: np.ndarray, labels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Name of each rung, and its images."""
    backbone, told = load_backbone(config.backbone), torch.from_numpy(labels)
    latents = encode(backbone.autoencoder, pixels).mean
    yield "real images", pixels
    yield "reconstructions", decode(backbone.autoencoder, latents, config.data.image_size)
    for name, noisy in (("portraits without noise", False), ("portraits with the plan's noise", True)):
        known = portraits(config, backbone, latents, told, noisy)
        yield name, drawn(known, told, backbone, config.data.image_size)


def portraits(config: RunConfig, backbone: Backbone, latents: Tensor, labels: Tensor, noisy: bool) -> Portraits:
    """As `portraits_known` makes them of a run's answers."""
    queries, (classes, d) = plan_of(config).queries, (len(config.data.labels), latents[0].numel())
    [means] = [question for question in queries if isinstance(question, ClassMeans)]
    [spreads] = [question for question in queries if isinstance(question, ClassSpreads)]
    guesses, part = guesses_of_public_classes(backbone, config), torch.zeros_like(labels)
    if guesses is not None and means.parts > 1:
        part = nearest(latents, merged(guesses, means.parts))
    rows = torch.arange(len(labels))[:, None]
    places = Places(rows, (labels * means.parts + part)[:, None], torch.ones(len(labels), 1))
    sums = class_sums(means, places, latents, classes * means.parts)
    if not noisy:
        means, spreads = (replace(question, noise_multiplier=LEAST_NOISE) for question in (means, spreads))
    generator = torch.Generator().manual_seed(config.sampling.seed)
    centres = centres_of(means, sums + noisy * noise(sums, means.noise_multiplier, generator), classes)
    moments = spread_sums(spreads, places, latents, centres.means)
    moments = class_spreads(spreads, moments + noisy * noise(moments, spreads.noise_multiplier, generator), d)
    deviation = noisy * spreads.noise_multiplier * spreads.clip_norm**2 / 2**0.5
    spread = factors(moments, centres.counts, deviation).float()
    return Portraits(centres.means.float().view(classes, -1, *latents.shape[1:]), centres.shares, spread)


def noise(like: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return deviation * torch.randn(like.shape, generator=generator, dtype=like.dtype)


def drawn(known: Portraits, labels: Tensor, backbone: Backbone, size: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    return np.concatenate(
        [decode(backbone.autoencoder, known.draw(part, generator), size) for part in labels.split(AT_ONCE)]
    )


if __name__ == "__main__":
    main()
