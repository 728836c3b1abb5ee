"""What a complete run needs to end in seconds: 40 small images, settings, and features that cost nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpldm import auditing
from dpldm.evaluation.features import Features, Images


def write_images(folder: Path, seed: int = 0) -> Path:
    """40 grey 16x16 images in the class folders dark and light."""
    rng = np.random.default_rng(seed)
    for index in range(40):
        label = ("dark", "light")[index % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        level = 60 if label == "dark" else 190
        pixels = np.clip(rng.normal(level, 25, (16, 16)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / label / f"{index:03d}.png")
    return folder


def tiny_settings(directory: Path, backbone: Path, images: Path) -> dict[str, Any]:
    """A complete run in seconds, as raw config values: 2 updates, 24 images. Always the same plan, so that its noise
    is calibrated once, and much noise, because that is accounted for quickly."""
    return {
        "name": "tiny",
        "data": {"path": str(images), "image_size": 16, "labels": ["dark", "light"]},
        "backbone": str(backbone),
        "privacy": {
            "dataset_id": "scans",
            "records": 40,
            "epsilon": 0.5,
            "delta": 1e-3,
            "expected_batch_size": 20,
            "steps": 2,
            "reserve_steps": 1,
            "ledger": str(directory / "runs" / "ledgers" / "scans.jsonl"),
        },
        "sampling": {"count": 24, "steps": 3, "batch_size": 10},
        "evaluation": {"protocol": "quick"},
        "runtime": {"output": str(directory / "runs")},
    }


ASKED = {"histogram_noise": 30.0, "class_means_noise": 30.0}
"""Settings of `privacy` that make a tiny run ask both questions."""
SELECTION = {"learning_rates": [1e-3, 3e-3, 1e-2], "mean_trials": 3.0, "score_noise": 60.0}
"""Settings that make a tiny run a selection; at epsilon 1, since at 0.5 no noise is enough."""


class Means:
    """Features without a network: the mean of each quarter of an image."""

    name, dim = "means", 4

    def __call__(self, images: Images) -> Features:
        n, height, width, _ = images.shape
        quarters = images.reshape(n, 2, height // 2, 2, width // 2, -1)
        return quarters.mean((2, 4, 5)).reshape(n, 4).astype(np.float32) / 255


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Commands that spend time for the sake of figures spend little: audits, the baseline classifier, charts."""
    effort = auditing.Effort(attempts=300, sampler_rounds=100, canaries=500)
    patch.setattr(auditing, "Effort", lambda: effort)
    patch.setattr("dpldm.baselines.classifier.STEPS", 3)
    patch.setattr("dpldm.evaluation.neighbours.SHUFFLES", 199)
    charts = dict.fromkeys(("guesses", "delta", "attack", "spending", "accuracy"), "<svg></svg>")
    patch.setattr("dpldm.report.page._charts", lambda report: charts)


def cheap_features(patch: pytest.MonkeyPatch) -> None:
    """`Means` wherever a command looks through a network."""
    patch.setattr("dpldm.evaluation.evaluate.extractor_of", lambda config: Means())
    patch.setattr("dpldm.evaluation.memorisation.extractor_of", lambda config: Means())
    patch.setattr("dpldm.baselines.classifier.public_features", lambda config: Means())
