"""tools/ceiling.py: its rungs, against the latents that they come from."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpldm.config import RunConfig
from dpldm.models.autoencoder import decode, encode
from dpldm.models.backbone import Backbone, load_backbone

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def ceiling(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])
    return runpy.run_path(str(TOOLS / "ceiling.py"))


@pytest.fixture
def config(raw: dict[str, Any]) -> RunConfig:
    for name in ("expected_batch_size", "steps", "reserve_steps"):
        del raw["privacy"][name]
    raw["sampling"] = {"count": 24}
    raw["privacy"] |= {"class_means_clip": 3.0, "class_parts": 2}
    return RunConfig.model_validate(raw | {"method": "portraits"})


@pytest.fixture
def backbone(config: RunConfig) -> Backbone:
    return load_backbone(config.backbone)


def images_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(400) % 2
    levels = np.where(labels, 190, 60)[:, None, None, None]
    return np.clip(rng.normal(levels, 25, (400, 16, 16, 1)), 0, 255).astype(np.uint8), labels


def test_rungs_are_ever_further_from_the_images(ceiling: dict[str, Any], config: RunConfig, backbone: Backbone) -> None:
    pixels, labels = images_of(0)
    found = dict(ceiling["rungs"](config, pixels, labels))
    names = ["real images", "reconstructions", "portraits without noise", "portraits with the plan's noise"]
    assert list(found) == names
    assert all(images.shape == pixels.shape and images.dtype == np.uint8 for images in found.values())
    assert found[names[0]] is pixels
    assert np.array_equal(found[names[1]], decode(backbone.autoencoder, encode(backbone.autoencoder, pixels).mean, 16))
    assert not np.array_equal(found[names[2]], found[names[3]])


def test_portraits_without_noise_have_the_means_of_the_latents(
    ceiling: dict[str, Any], config: RunConfig, backbone: Backbone
) -> None:
    pixels, labels = images_of(1)
    latents, told = encode(backbone.autoencoder, pixels).mean, torch.from_numpy(labels)
    exact, noisy = (ceiling["portraits"](config, backbone, latents, told, noise) for noise in (False, True))
    for label in (0, 1):
        own = latents[told == label].flatten(1).mean(0)
        drawn = exact.draw(torch.full((20_000,), label), torch.Generator().manual_seed(0)).flatten(1).mean(0)
        assert torch.cosine_similarity(drawn, own, dim=0) > 0.95
    assert (exact.means - noisy.means).norm() > 0.1 * exact.means.norm()
