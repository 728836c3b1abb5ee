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
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from dpldm.baselines.noiseless import noiseless, noiseless_run
from dpldm.config import RunConfig
from dpldm.data.ingest import Ingested, ingest
from dpldm.data.latents import preprocessing_of
from dpldm.data.readers import open_source
from dpldm.evaluation.classifiers import TrainedClassifier, train_classifier
from dpldm.evaluation.utility import SCREEN
from dpldm.loading import load_config
from dpldm.models.autoencoder import decode, encode
from dpldm.models.backbone import load_backbone

CONFIG = Path("examples/fashion-mnist-diffusion.yaml")


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
        result |= noiseless_gate(config, given.noiseless_steps)
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


def noiseless_gate(config: RunConfig, steps: int) -> dict[str, float]:
    """Screen accuracy after the same fine-tuning with sigma = 0."""
    with tempfile.TemporaryDirectory(dir="candidates") as folder:
        changes = {
            "runtime": config.runtime.model_copy(update={"output": Path(folder)}),
            "privacy": config.privacy.model_copy(update={"steps": steps}),
            "sampling": config.sampling.model_copy(update={"count": SCREEN.images}),
            "evaluation": config.evaluation.model_copy(update={"protocol": SCREEN.name}),
        }
        config = config.model_copy(update=changes)
        found = noiseless(config, lambda stage, done, total: print(f"{stage} {done}/{total}", flush=True))
        run, _ = noiseless_run(config)
        shutil.copy(run.directory / "contact-sheet.png", "candidates/noiseless.png")
    return {"noiseless_steps": steps, "noiseless_screen_accuracy": found.scores["cnn"].mean}


def commit() -> str:
    return subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()


if __name__ == "__main__":
    main()
