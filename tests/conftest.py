"""Shared by all tests: one thread (so that suites can share a machine) and a tiny public backbone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dpldm.models.autoencoder import build_autoencoder
from dpldm.models.backbone import Backbone
from dpldm.models.denoiser import build_denoiser, build_scheduler

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone directory with random weights: 16x16 grey images, latents 4x4x2, a UNet of a few thousand weights."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("backbone") / "tiny"
    autoencoder = build_autoencoder(1, 2, (8, 8, 8)).eval()
    denoiser = build_denoiser(2, 4, 5, widths=(16, 16), layers_per_block=1, heads=2, condition_dim=8).eval()
    Backbone("tiny", autoencoder, denoiser, build_scheduler("v_prediction"), {"recipe": "random"}).save(directory)
    return directory


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 40 grey 16x16 images in two classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(40):
        label = ("dark", "light")[index % 2]
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True, exist_ok=True)
        level = 60 if label == "dark" else 190
        pixels = np.clip(rng.normal(level, 25, (16, 16)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return tmp_path / "images"
