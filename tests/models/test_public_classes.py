"""Public classes beside private ones: the network's own guesses, who resembles which, and what adapting keeps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.models.backbone import load_backbone, public_classes_of
from dpldm.models.denoiser import adapt_to_labels, build_denoiser, build_scheduler, condition
from dpldm.models.public_classes import adapt, class_guesses, merged, nearest

SHAPE = torch.Size((2, 4, 4))


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_denoiser(2, 4, 5, widths=(16, 16), layers_per_block=1, heads=2, condition_dim=8).eval()


@torch.no_grad()
def predicted(denoiser: Any, context: Tensor) -> Tensor:
    noise = torch.randn(len(context), *SHAPE, generator=torch.Generator().manual_seed(3))
    return denoiser(noise, torch.tensor(500), encoder_hidden_states=context).sample


def test_public_classes_mean_what_they_meant_until_private_ones_are_tuned() -> None:
    """A private class starts as nothing that is added; alone and beside it, a public class is the old one."""
    public, told = network(), network()
    adapt_to_labels(told, 3, keep_public=True)
    ids = torch.tensor([0, 2, 4])
    before = predicted(public, condition(ids, 5))
    alone = predicted(told, condition(3 + ids, 8))
    paired = predicted(told, condition(torch.stack([torch.tensor([1, 0, 2]), 3 + ids], 1), 8))
    assert torch.allclose(before, alone, atol=1e-6)
    assert torch.allclose(before, paired, atol=1e-6)
    nothing = [predicted(each, condition(torch.full((3,), count), count)) for each, count in ((public, 5), (told, 8))]
    assert torch.allclose(*nothing, atol=1e-6)
    assert not torch.allclose(before, nothing[0], atol=1e-4)


def test_a_pair_is_told_by_the_sum_of_its_rows() -> None:
    context = condition(torch.tensor([[0, 3], [2, 2], [5, 5]]), 5)
    assert context.tolist() == [[[1, 0, 0, 1, 0, 0]], [[0, 0, 1, 0, 0, 0]], [[0, 0, 0, 0, 0, 1]]]


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_guesses_of_a_network_that_knows_its_classes_are_their_means(kind: str) -> None:
    """The network that is right about point masses: from pure noise it finds the point of the class that it is told."""
    scheduler, points = build_scheduler(kind), torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))

    class Knows(type(network())):  # type: ignore[misc]
        def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Any:
            kept = scheduler.alphas_cumprod[timesteps]
            clean = (encoder_hidden_states[:, 0, :4] @ points.flatten(1)).view_as(noisy)
            noise = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
            velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
            return type("Out", (), {"sample": velocity if kind == "v_prediction" else noise})

    knows = network()
    knows.__class__ = Knows
    state = torch.random.get_rng_state()
    guesses = class_guesses(knows, scheduler, torch.arange(4), SHAPE)
    assert torch.equal(state, torch.random.get_rng_state()), "torch's own randomness is untouched"
    assert torch.allclose(guesses, points, atol=2e-2)
    assert torch.equal(guesses, class_guesses(knows, scheduler, torch.arange(4), SHAPE)), "public: always the same"


def test_nearest_looks_at_each_latent_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, guesses = torch.randn(1500, *SHAPE, generator=generator), torch.randn(40, *SHAPE, generator=generator)
    together = nearest(latents, guesses)
    by_hand = [int((guesses - one).flatten(1).double().norm(dim=1).argmin()) for one in latents[:200]]
    assert together[:200].tolist() == by_hand
    assert torch.equal(together[700:701], nearest(latents[700:701], guesses))
    assert nearest(latents[:0], guesses).shape == (0,)
    assert nearest(torch.full((1, *SHAPE), float("nan")), guesses).shape == (1,)


def test_how_many_there_are_is_read_from_the_settings(raw: dict[str, Any]) -> None:
    backbone = load_backbone(raw["backbone"])
    assert public_classes_of(raw["backbone"]) == 5
    config = RunConfig.model_validate(raw | {"privacy": raw["privacy"] | {"public_classes_noise": 30.0}})
    adapt(backbone.denoiser, config)
    assert backbone.denoiser.config.encoder_hid_dim == 2 + 5 + 1


def test_alike_guesses_are_merged_and_always_in_the_same_way() -> None:
    places = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 10
    guesses = places.repeat(8, 1, 1, 1) + 0.1 * torch.randn(32, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    centres = merged(guesses, 4)
    assert centres.shape == (4, 2, 3, 3)
    groups = nearest(guesses, centres).view(8, 4)
    assert (groups == groups[0]).all()
    assert sorted(groups[0].tolist()) == [0, 1, 2, 3]
    torch.manual_seed(3)
    assert torch.equal(merged(guesses, 4), centres)
