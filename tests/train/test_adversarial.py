"""The papers' loss of stage 1: its parts against their formulas, its start, its resumption, and that it learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dpldm.models.autoencoder import build_autoencoder, decode, encode, standardise_latents
from dpldm.models.perceptual import Perceptual
from dpldm.recipe import AdversarialRecipe, AutoencoderRecipe
from dpldm.train import adversarial as module
from dpldm.train.adversarial import AdversarialTraining, adaptive_weight, critic_loss, stage_1
from dpldm.train.autoencoder import AutoencoderTraining, reconstructed
from dpldm.train.public_data import step_generator


class Slopes(Perceptual):
    """A perceptual network that costs nothing: differences of neighbours."""

    name = "slopes"

    def maps(self, images: Tensor) -> list[Tensor]:
        return [images[..., 1:] - images[..., :-1]]

    def weights(self, layer: int, channels: int) -> Tensor:
        return torch.full((channels,), 0.1)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "build_perceptual", lambda kind, files: Slopes())


def public_images(count: int = 64, size: int = 16) -> np.ndarray:
    """Bars: something to learn."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, size, size, 1), np.uint8)
    for image in images:
        top, left = rng.integers(0, size - 6, 2)
        image[top : top + rng.integers(3, 8), left : left + rng.integers(3, 8)] = rng.integers(100, 255)
    return images


def made(path: Path, adversarial: dict[str, Any] | None = None, **more: Any) -> AdversarialTraining:
    settings = {"discriminator_start": 2, "discriminator_width": 4, "discriminator_layers": 2} | (adversarial or {})
    small = {"latent_channels": 2, "widths": (8, 8, 8), "batch_size": 4, "steps": 6, "warmup_steps": 1, "bf16": False}
    recipe = AutoencoderRecipe.model_validate(small | {"checkpoint_every": 3, "adversarial": settings} | more)
    training = stage_1(recipe)(recipe, public_images(), 3, path)
    assert isinstance(training, AdversarialTraining)
    return training


def everything(training: AdversarialTraining) -> list[Tensor]:
    states = [
        entry[key]
        for o in (training.optimizer, training.critic_optimizer)
        for entry in o.state.values()
        for key in sorted(entry)
    ]
    return [*training.parameters, *training.average.shadow_params, *training.critic.state_dict().values(), *states]


# --- the parts ------------------------------------------------------------------------------------------------------


def test_the_adaptive_weight_makes_both_gradients_pull_alike(tmp_path: Path) -> None:
    """By autograd of each loss alone: the ratio of the norms at the last layer."""
    training = made(tmp_path / "c")
    batch = training.batch(step_generator(0, 0))

    def losses() -> tuple[Tensor, Tensor]:
        found, _ = reconstructed(training.network, batch, 1e-6, step_generator(0, 1))
        return training.reconstruction(found, batch), -training.critic(found).mean()

    norms = []
    for which in (0, 1):
        training.network.zero_grad()
        losses()[which].backward()  # type: ignore[no-untyped-call]
        assert training.last_layer.grad is not None
        norms.append(float(training.last_layer.grad.norm()))
    weight = float(adaptive_weight(*losses(), training.last_layer))
    assert weight == pytest.approx(norms[0] / (norms[1] + 1e-4), rel=1e-5)
    assert norms[1] > 1e-6
    last = torch.ones(3, requires_grad=True)
    assert float(adaptive_weight(1e9 * last.sum(), 0 * last.sum(), last)) == 1e4, "and it is bounded"


def test_the_whole_loss_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    """Once the critic has started; before, without its term."""
    training = made(tmp_path / "c", {"discriminator_weight": 0.3, "perceptual_weight": 0.7}, kl_weight=0.01)
    batch = training.batch(generator := step_generator(3, 5))
    found, cost = reconstructed(training.network, batch, 0.01, generator)
    entries = batch[0].numel()
    apart = (found - batch).abs().flatten(1).sum(1) + 0.7 * entries * Slopes()(batch, found)
    unconvincing = -training.critic(found).mean()
    weight = adaptive_weight(apart.mean(), unconvincing, training.last_layer)
    expected = float(apart.mean() + cost)
    assert float(training.loss(step_generator(3, 5))) == pytest.approx(expected, rel=1e-5)
    training.done = 2
    expected += float(weight * 0.3 * unconvincing)
    assert float(training.loss(step_generator(3, 5))) == pytest.approx(expected, rel=1e-5)
    assert abs(float(weight * 0.3 * unconvincing)) > 1e-3


def test_the_critics_loss_by_hand() -> None:
    real, false = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(critic_loss(real, false)) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))


def test_the_critic_starts_at_the_declared_step(tmp_path: Path) -> None:
    """Until then it does not move, and the autoencoder does not know it."""
    training, alone = made(tmp_path / "c"), made(tmp_path / "d", {"discriminator_start": 100})
    before = [p.detach().clone() for p in training.critic.parameters()]
    moved = []
    for step, other in zip(training.steps(), alone.steps(), strict=True):
        moved.append(not all(torch.equal(a, b) for a, b in zip(before, training.critic.parameters(), strict=True)))
        assert (step.loss == other.loss) == (step.number <= 2)
    assert moved == [False, False, True, True, True, True]
    assert training.optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert training.optimizer.param_groups[0]["lr"] == training.recipe.learning_rate, "a constant rate"


def test_the_critic_learns_to_tell_them_apart(tmp_path: Path) -> None:
    training = made(tmp_path / "c", {"discriminator_start": 0}, learning_rate=2e-3)
    real = training.batch(step_generator(0, 0))
    training._seen = (real, torch.zeros_like(real))
    losses = []
    for _ in range(30):
        training.after_update()
        losses.append(float(critic_loss(training.critic(real), training.critic(torch.zeros_like(real)))))
    assert losses[-1] < 0.5 * losses[0]


# --- the stage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codebook", [None, 16])
@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_stage_is_the_uninterrupted_one_bit_for_bit(codebook: int | None, stop: int, tmp_path: Path) -> None:
    """Critic and its optimizer included, before and after its start."""
    whole = made(tmp_path / "whole", codebook=codebook)
    losses = {step.number: step.loss for step in whole.steps()}
    steps = made(tmp_path / "resumed", codebook=codebook).steps()
    for _ in range(stop):
        next(steps)
    steps.close()
    resumed = made(tmp_path / "resumed", codebook=codebook)
    assert resumed.done == stop // 3 * 3
    assert {step.number: step.loss for step in resumed.steps()} == {
        n: loss for n, loss in losses.items() if n > stop // 3 * 3
    }
    assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(resumed), strict=True))


@pytest.mark.parametrize("codebook", [None, 32])
def test_some_steps_lower_the_error_of_reconstructions(codebook: int | None, tmp_path: Path) -> None:
    """Of images that are not jittered, before and after; with the critic from the first third on."""
    more: dict[str, Any] = {"steps": 60, "batch_size": 8, "learning_rate": 3e-3, "checkpoint_every": 100}
    training = made(tmp_path / "c", {"discriminator_start": 20}, codebook=codebook, ema_decay=0.0, **more)
    images = torch.from_numpy(public_images()).permute(0, 3, 1, 2).float() / 127.5 - 1

    def error() -> float:
        with torch.no_grad():
            found, _ = reconstructed(training.network, images, 0.0, step_generator(0, 0))
            return float(training.reconstruction(found, images))

    before = error()
    losses = [step.loss for step in training.steps()]
    assert all(np.isfinite(losses))
    assert error() < 0.8 * before


def test_the_light_loss_is_the_default(tmp_path: Path) -> None:
    recipe = AutoencoderRecipe(widths=(8, 8), latent_channels=2)
    assert stage_1(recipe) is AutoencoderTraining
    with pytest.raises(ValueError, match="perceptual_weights are files for perceptual: vgg-lpips"):
        AdversarialRecipe(perceptual="vgg-lpips")


# --- the codebook ---------------------------------------------------------------------------------------------------


def test_what_a_codebook_costs_by_hand() -> None:
    """Latents are drawn to their entry at a quarter, entries to their latents fully (arXiv 1711.00937, eq. 3)."""
    torch.manual_seed(0)
    network = build_autoencoder(1, 2, (8, 8), codebook=5)
    images = torch.randn(3, 1, 8, 8)
    _, cost = reconstructed(network, images, 1.0, torch.Generator())
    latents = network.encode(images).latents
    codebook = network.quantize.embedding.weight
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 2)
    nearest = codebook[torch.stack([(codebook - row).norm(dim=1).argmin() for row in flat])]
    assert float(cost) == pytest.approx(1.25 * float((flat - nearest).square().mean()), rel=1e-5)
    to_latents, to_entries = torch.autograd.grad(cost, [latents_of := network.quant_conv.bias, codebook])
    assert latents_of.shape == (2,)
    expected = 0.25 * 2 * (flat - nearest).sum(0) / flat.numel()
    assert torch.allclose(to_latents, expected, rtol=1e-4, atol=1e-8)
    assert torch.allclose(to_entries.sum(0), -4 * expected, rtol=1e-4, atol=1e-7)


def test_standardised_latents_of_a_codebook_are_the_same_images() -> None:
    torch.manual_seed(0)
    network = build_autoencoder(1, 2, (8, 8), codebook=16).eval().requires_grad_(False)
    network.quantize.embedding.weight.normal_()
    pixels = public_images(12)
    latents = encode(network, pixels).mean
    before = decode(network, latents, 16)
    standardise_latents(network, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    again = encode(network, pixels).mean
    assert torch.allclose(again.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert float(again.square().mean()) == pytest.approx(1.0, abs=0.05)
    assert np.abs(decode(network, again, 16).astype(int) - before).max() <= 1
    assert len(np.unique(before)) > 5
