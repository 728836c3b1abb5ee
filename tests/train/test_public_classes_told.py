"""A run that tells its network public classes too: what is counted, told, drawn and released."""

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from documents import ROOT
from dpldm.app.gallery import Painter
from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.errors import UserError
from dpldm.models.autoencoder import Posterior
from dpldm.models.backbone import load_backbone
from dpldm.models.public_classes import adapt
from dpldm.privacy.questions import ClassHistogram, PublicClassHistogram
from dpldm.releasing import release
from dpldm.run import Run, plan_of
from dpldm.sampling import Sampler, load_synthetic, released_shares, sample, with_public_classes
from dpldm.scanning.kinds import SHARES
from dpldm.train.asking import _total
from dpldm.train.checkpoint import load_checkpoint
from dpldm.train.example_losses import told
from dpldm.train.finetune import finetune, prepared
from dpldm.train.public_data import step_generator
from dpldm.tuned import public_class_shares
from dpldm.verifying import verify


@pytest.fixture
def config(raw: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(raw | {"privacy": raw["privacy"] | {"public_classes_noise": 30.0}})


def made_up(labels: Sequence[int], publics: Sequence[int], members: list[list[int]] | None = None) -> PrivateLatents:
    mean = torch.zeros(len(labels), 2, 4, 4)
    return PrivateLatents(
        Posterior(mean, mean),
        torch.tensor(labels),
        torch.ones(len(labels), dtype=torch.bool),
        None if members is None else torch.tensor(members),
        publics=torch.tensor(publics),
    )


def test_a_run_asks_once_tells_pairs_and_its_release_verifies(config: RunConfig) -> None:
    assert [step.number for step in finetune(config)] == [1, 2]
    groups, _ = load_checkpoint(Run(config).answers / "public_class_histogram.safetensors")
    assert groups["answer"]["noised"].shape == (2 * 5,)
    shares = public_class_shares(config)
    assert shares is not None
    assert shares.shape == (2, 5)
    weights, _ = load_checkpoint(Run(config).checkpoint)
    assert weights["average"]["encoder_hid_proj.weight"].shape[1] == 2 + 5 + 1
    assert list(sample(config))[-1].done == 24
    assert load_synthetic(config).labels.tolist() == [0, 1] * 12
    target = release(config, "both")
    checks = verify(target, Path(config.backbone))
    assert [check.name for check in checks if not check.passed] == []
    assert ("frozen weights", True) in [(check.name, check.done) for check in checks]
    stored = released_shares(target / "model")
    assert stored is not None
    assert torch.equal(stored, shares), "whoever has the release draws for the same pairs"
    draws_as_the_run_did(target / "model", config)
    change_the_shares(target)
    failed = {check.name for check in verify(target, Path(config.backbone)) if not check.passed}
    assert failed == {"files unchanged", "public classes"}


def change_the_shares(release_directory: Path) -> None:
    path = release_directory / "model" / SHARES
    content = json.loads(path.read_text())
    content["shares"][0][0] += 1.0
    path.write_text(json.dumps(content))


def draws_as_the_run_did(model: Path, config: RunConfig) -> None:
    """The card's code, the page of `dpldm app`, and the script that needs no dpldm."""
    made: dict[str, Any] = {}
    code = (model / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(code.replace("DIRECTORY", str(model)), made)
    assert made["labels"].shape == (16, 2)
    declared = json.loads((model.parent / "privacy.json").read_text())["declared_constants"]
    shelf = Painter(model, declared)
    asked = shelf.asked(kind=1, number=6, seed=3)
    pairs = with_public_classes(torch.ones(6, dtype=torch.int64), released_shares(model), seed=3)
    assert np.array_equal(shelf.row(1, asked).images, made_with(shelf, pairs, step_generator(3, 2)))
    script = runpy.run_path(str(ROOT / "examples" / "draw.py"))
    drawn = script["draw"](model, label=1, count=6, steps=config.sampling.steps, seed=3)[:, 0]
    expected = made_with(shelf, pairs, torch.Generator().manual_seed(3))[..., 0]
    assert np.abs(255 * drawn.numpy() - expected).max() < 1.01


def made_with(shelf: Painter, pairs: torch.Tensor, generator: torch.Generator) -> np.ndarray:
    return Sampler(shelf.backbone, shelf.backbone.denoiser, shelf.settings, shelf.size)(pairs, generator)


def test_a_light_network_is_told_the_same_public_classes(config: RunConfig) -> None:
    """Frozen weights in bfloat16 and recomputed activations change no pair: guesses are made before."""
    light = {"frozen_dtype": "bfloat16", "gradient_checkpointing": True}
    found = []
    for name, changes in (("plain", {}), ("light", light)):
        runtime = config.runtime.model_copy(update=changes)
        there = config.model_copy(update={"name": name, "trainable": "attn1", "runtime": runtime})
        _, latents = prepared(there, plan_of(there), load_backbone(there.backbone))
        assert latents.publics is not None
        found.append(latents.publics)
    assert torch.equal(*found)
    assert set(found[0].tolist()) <= set(range(2, 7))


def test_each_image_is_drawn_for_a_pair(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the second ids not told, another answer would draw the same images."""
    list(finetune(config))
    drawn = []
    for column in (0, 4):
        shares = torch.zeros(2, 5).double()
        shares[:, column] = 1
        monkeypatch.setattr("dpldm.sampling.public_class_shares", lambda _, shares=shares: shares)
        for path in Run(config).synthetic.glob("*.npz"):
            path.unlink()
        list(sample(config))
        drawn.append(load_synthetic(config).images)
    assert (drawn[0] != drawn[1]).any()


def test_public_classes_are_drawn_as_often_as_their_shares_say() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]).double()
    labels = torch.arange(8000) % 2
    pairs = with_public_classes(labels, shares, seed=3)
    assert torch.equal(pairs[:, 0], labels)
    for label in (0, 1):
        found = torch.bincount(pairs[labels == label, 1] - 2, minlength=3) / 4000
        assert torch.allclose(found.double(), shares[label], atol=0.04)  # five standard errors
    assert torch.equal(pairs, with_public_classes(labels, shares, seed=3))


def test_cells_count_units_as_the_proof_says() -> None:
    """Two classes, three public ones (ids 2 to 4). Records 0-1 and 2-4 are groups; record 2 was not read, the class of
    record 4 is unknown."""
    latents = made_up([0, 1, 1, 1, -1], [2, 4, 4, 3, 3], [[0, 1, -1], [2, 3, 4]])
    latents.usable[2] = False
    question = PublicClassHistogram(noise_multiplier=30.0, public_classes=3)
    expected = [1 / 2, 0, 0, 0, 1 / 3, 1 / 2]
    assert _total(question, latents, 2, None).tolist() == pytest.approx(expected)
    assert _total(ClassHistogram(noise_multiplier=30.0), latents, 2, None).tolist() == pytest.approx([1 / 2, 5 / 6])


def test_what_is_told(config: RunConfig) -> None:
    """Both classes; of an image without a known label the public one alone; of a hidden one nothing."""
    network = load_backbone(config.backbone).denoiser
    adapt(network, config)
    context = told(network, made_up([0, -1, 1], [3, 4, 6]), torch.arange(3), torch.tensor([False, False, True]))
    assert [row.nonzero()[:, 0].tolist() for row in context[:, 0]] == [[0, 3], [4], [7]]


def test_settings_that_do_not_go_together_are_refused(raw: dict[str, Any]) -> None:
    privacy = raw["privacy"] | {"public_classes_noise": 30.0}
    for more in (
        {"tune_embedder": False},
        {"optimizer": {"warm_start_steps": 3}, "privacy": privacy | {"class_means_noise": 30.0}},
    ):
        with pytest.raises(ValueError, match=r"public_classes_noise needs tune_embedder, and optimizer\.warm_start"):
            RunConfig.model_validate(raw | {"privacy": privacy} | more)
    with pytest.raises(ValueError, match=r"need the classes that data\.labels declares"):
        RunConfig.model_validate(raw | {"privacy": privacy, "data": raw["data"] | {"labels": []}})


def test_a_backbone_without_public_classes_is_refused(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpldm.models.families.class_token.ClassToken.public_classes", lambda *_: 0)
    with pytest.raises(UserError, match="need a backbone that is told classes by one token, such as grey32"):
        plan_of(config)
