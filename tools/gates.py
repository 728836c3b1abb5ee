"""The gates that a grey backbone must pass before any private budget is spent on it, on Fashion-MNIST.

    python tools/gates.py BACKBONE [--noiseless-steps 150]

1. A CNN trained on real images must recognise reconstructed real test images (>= 87 %): does the autoencoder keep what
   matters?
2. The same fine-tuning without noise must give images that train a CNN to >= 84 %: can the denoiser learn the task at
   all? NOT PRIVATE, hence only for a public benchmark.

Writes results/gates-NAME.json and logs the looks at the benchmark.
"""

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dpldm.config import RunConfig
from dpldm.data.ingest import Ingested, ingest
from dpldm.data.latents import preprocessing_of, private_latents
from dpldm.data.readers import open_source
from dpldm.evaluation.classifiers import TrainedClassifier, train_classifier
from dpldm.evaluation.utility import SCREEN, train_on_synthetic
from dpldm.loading import load_config
from dpldm.models.autoencoder import decode, encode
from dpldm.models.backbone import load_backbone
from dpldm.privacy.entropy import SeededEntropy
from dpldm.privacy.ledger import open_ledger
from dpldm.run import Run, plan_of
from dpldm.sampling import Sampler
from dpldm.sheet import save_contact_sheet
from dpldm.train.finetune import Tuner, algorithm_1
from dpldm.tuned import with_weights

CONFIG = Path("examples/fashion-mnist.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("--epochs", type=int, default=5, help="of the CNN on 50,000 real images")
    parser.add_argument("--noiseless-steps", type=int, default=0, help="run gate 2 with this many updates")
    given = parser.parse_args()
    config = load_config(RunConfig, CONFIG, [("backbone", given.backbone)])
    train, test = (load(config, split) for split in ("train", "test"))
    result = {"backbone": Path(given.backbone).name, "date": time.strftime("%Y-%m-%d"), "commit": commit()}
    result |= reconstruction_gate(config, train, test, given.epochs)
    if given.noiseless_steps:
        result |= noiseless_gate(config, test, given.noiseless_steps)
    text = json.dumps(result, indent=2)
    Path(f"results/gates-{result['backbone']}.json").write_text(text + "\n")
    with Path("results/benchmark-looks.jsonl").open("a") as log:
        log.write(json.dumps({"why": "gates", "data": "fashion-mnist", **result}) + "\n")
    print(text)


def load(config: RunConfig, split: str) -> Ingested:
    return ingest(open_source(config.data.path, split=split), preprocessing_of(config.data), config.data.labels)


def reconstruction_gate(config: RunConfig, train: Ingested, test: Ingested, epochs: int) -> dict[str, float]:
    """Accuracy of a CNN trained on real images, on real and on reconstructed test images."""
    autoencoder = load_backbone(config.backbone).autoencoder
    restored = decode(autoencoder, encode(autoencoder, test.pixels).mean, config.data.image_size)
    classifier: TrainedClassifier = train_classifier(
        "cnn",
        train.pixels[:50_000],
        train.labels[:50_000],
        classes=10,
        epochs=epochs,
        seed=0,
        validation=(train.pixels[50_000:], train.labels[50_000:]),
    )
    error = (torch.from_numpy(restored).float() - torch.from_numpy(test.pixels).float()).abs().mean() / 127.5
    return {
        "cnn_epochs": epochs,
        "real_test_accuracy": classifier.accuracy(test.pixels, test.labels),
        "reconstructed_test_accuracy": classifier.accuracy(restored, test.labels),
        "reconstruction_l1": float(error),
    }


def noiseless_gate(config: RunConfig, test: Ingested, steps: int) -> dict[str, float]:
    """Screen accuracy after the same fine-tuning with sigma = 0."""
    with tempfile.TemporaryDirectory(dir="candidates") as folder:
        config = config.model_copy(
            update={
                "name": "noiseless",
                "runtime": config.runtime.model_copy(update={"output": Path(folder)}),
                "privacy": config.privacy.model_copy(update={"steps": steps}),
            }
        )
        run, plan = Run(config), replace(plan_of(config), noise_multiplier=0.0)
        run.create()
        backbone = load_backbone(config.backbone)
        latents = private_latents(config.data, backbone.autoencoder, config.backbone, run.latents)
        tuner = Tuner(backbone, config, plan)
        with open_ledger(run.ledger, plan.dataset_id, None) as ledger:
            ledger.register(plan)
            for step in algorithm_1(tuner, backbone.scheduler, latents, plan, ledger, run, SeededEntropy(0)):
                print(f"noiseless {step.number}/{step.steps}", flush=True)
        average = dict(zip(tuner.trainable, tuner.average.shadow_params, strict=True))
    network = with_weights(load_backbone(config.backbone).denoiser, 10, average)
    draw, labels = Sampler(backbone, network, config.sampling, config.data.image_size), torch.arange(10_000) % 10
    batches = [draw(part, torch.Generator().manual_seed(k)) for k, part in enumerate(labels.split(500))]
    images = np.concatenate(batches)
    save_contact_sheet(Path("candidates/noiseless.png"), images, labels.numpy())
    result = train_on_synthetic(
        images, labels.numpy(), test.pixels, test.labels, protocol=SCREEN, classes=10, public_benchmark=True
    )
    return {"noiseless_steps": steps, "noiseless_screen_accuracy": result.scores["cnn"].mean}


def commit() -> str:
    return subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()


if __name__ == "__main__":
    main()
