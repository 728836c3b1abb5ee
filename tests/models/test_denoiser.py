"""The conditional denoiser: its condition, its losses and its labels."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpldm.models.denoiser import (
    adapt_to_labels,
    build_denoiser,
    build_scheduler,
    class_count,
    condition,
    denoising_losses,
)


def small(classes: int = 5) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_denoiser(2, 4, classes, widths=(16, 16), layers_per_block=1, heads=2, condition_dim=8).eval()


# --- the condition --------------------------------------------------------------------------------------------------


@given(labels=st.lists(st.integers(0, 7), min_size=1, max_size=9))
def test_the_condition_is_one_hot_with_a_place_for_no_label(labels: list[int]) -> None:
    context = condition(torch.tensor(labels), 7)
    assert context.shape == (len(labels), 1, 8)
    assert context.dtype == torch.float32
    assert np.array_equal(context[:, 0].numpy(), np.eye(8, dtype=np.float32)[labels])


def test_without_classes_there_is_only_the_null_label() -> None:
    assert condition(torch.tensor([0, 0]), 0).tolist() == [[[1.0]], [[1.0]]]


def test_classes_are_counted_without_the_null_label() -> None:
    assert class_count(small(5)) == 5
    assert small(5).encoder_hid_proj.in_features == 6


# --- the losses -------------------------------------------------------------------------------------------------------


def by_hand(network: nn.Module, kind: str, z: Tensor, context: Tensor, times: Tensor, noise: Tensor) -> list[float]:
    """Row by row in float64, from the LDM schedule's definition."""
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - betas)
    losses = []
    for i in range(len(z)):
        a = alpha_bar[int(times[i])]
        clean, epsilon = z[i].double(), noise[i].double()
        noisy = a**0.5 * clean + (1 - a) ** 0.5 * epsilon
        target = {
            "epsilon": epsilon,
            "v_prediction": a**0.5 * epsilon - (1 - a) ** 0.5 * clean,
            "sample": clean,
        }[kind]
        with torch.no_grad():
            out = network(noisy[None].float(), times[i], encoder_hidden_states=context[i : i + 1]).sample[0].double()
        losses.append(float(((out - target) ** 2).mean()))
    return losses


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_losses_are_the_definition_row_by_row(kind: str) -> None:
    network, generator = small(), torch.Generator().manual_seed(1)
    z, noise = (torch.randn(6, 2, 4, 4, generator=generator) for _ in range(2))
    times = torch.tensor([0, 1, 250, 500, 998, 999])
    context = condition(torch.tensor([0, 1, 2, 3, 4, 5]), 5)
    losses = denoising_losses(network, build_scheduler(kind), z, context, times, noise)
    assert losses.shape == (6,)
    np.testing.assert_allclose(losses.detach(), by_hand(network, kind, z, context, times, noise), rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_the_clean_latent(kind: str) -> None:
    """Whatever is predicted, the weighted loss is min(SNR, gamma) times the error of the latent that it implies."""
    network, generator, gamma = small(), torch.Generator().manual_seed(1), 5.0
    z, noise = (torch.randn(6, 2, 4, 4, generator=generator) for _ in range(2))
    times = torch.tensor([1, 50, 250, 500, 800, 999])
    context, scheduler = condition(torch.arange(6) % 6, 5), build_scheduler(kind)
    losses = denoising_losses(network, scheduler, z, context, times, noise, min_snr=gamma)
    kept = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
    noisy = kept.sqrt() * z + (1 - kept).sqrt() * noise
    with torch.no_grad():
        out = network(noisy, times, encoder_hidden_states=context).sample
    of_noise, of_velocity = (
        (noisy - (1 - kept).sqrt() * out) / kept.sqrt(),
        kept.sqrt() * noisy - (1 - kept).sqrt() * out,
    )
    clean = {"epsilon": of_noise, "v_prediction": of_velocity, "sample": out}[kind]
    ratio = (kept / (1 - kept)).flatten().clamp(max=gamma)
    torch.testing.assert_close(losses.detach(), ratio * (clean - z).square().flatten(1).mean(1), rtol=1e-3, atol=1e-4)


def test_a_row_depends_on_itself_alone() -> None:
    network, generator = small(), torch.Generator().manual_seed(2)
    z, noise = (torch.randn(5, 2, 4, 4, generator=generator) for _ in range(2))
    context, times = condition(torch.arange(5), 5), torch.arange(5) * 200
    scheduler = build_scheduler("v_prediction")
    together = denoising_losses(network, scheduler, z, context, times, noise)
    z[1:] = 7.0
    changed = denoising_losses(network, scheduler, z, context, times, noise)
    torch.testing.assert_close(changed[0], together[0], rtol=1e-5, atol=1e-6)
    assert not torch.isclose(changed[1], together[1])


def test_the_schedule_is_the_one_of_latent_diffusion() -> None:
    scheduler = build_scheduler("epsilon")
    expected = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    np.testing.assert_allclose(scheduler.betas, expected, rtol=1e-5)
    assert not scheduler.config.clip_sample


# --- labels -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=8)
@given(classes=st.integers(0, 12))
def test_new_labels_start_at_the_mean_public_class_and_keep_the_null_row(classes: int) -> None:
    network = small(5)
    old = network.encoder_hid_proj
    weight, bias = old.weight.detach().clone(), old.bias.detach().clone()
    adapt_to_labels(network, classes)
    new = network.encoder_hid_proj
    assert class_count(network) == classes
    assert new.weight.shape == (8, classes + 1)
    torch.testing.assert_close(new.weight[:, classes], weight[:, 5], rtol=0, atol=0)
    torch.testing.assert_close(new.bias, bias, rtol=0, atol=0)
    for k in range(classes):
        torch.testing.assert_close(new.weight[:, k].double(), weight[:, :5].double().mean(1), rtol=1e-5, atol=1e-7)


def test_the_null_label_means_what_it_meant_before() -> None:
    network = small(5)
    z = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(z, 10, encoder_hidden_states=condition(torch.tensor([5, 5]), 5)).sample
        adapt_to_labels(network, 3)
        after = network(z, 10, encoder_hidden_states=condition(torch.tensor([3, 3]), 3)).sample
    torch.testing.assert_close(before, after)


def test_an_adapted_network_saves_and_loads(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("adapted")
    network = small(5)
    adapt_to_labels(network, 2)
    network.save_pretrained(directory)
    loaded = UNet2DConditionModel.from_pretrained(directory, local_files_only=True)
    assert torch.equal(loaded.encoder_hid_proj.weight, network.encoder_hid_proj.weight)
