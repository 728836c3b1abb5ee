"""What is tuned on private images, and what is frozen because it has no influence."""

import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpldm.errors import UserError
from dpldm.models.denoiser import build_denoiser, build_scheduler, condition, denoising_losses
from dpldm.models.trainable import PRESETS, choose_trainable

USELESS = re.compile(r"attn2\.to_q|attn2\.to_k|transformer_blocks\.\d\.norm2")


def small() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_denoiser(2, 4, 5, widths=(16, 16), layers_per_block=1, heads=2, condition_dim=8).eval()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_with_one_context_token_queries_keys_and_their_norm_have_no_gradient(kind: str) -> None:
    """By autograd over the whole network; and everything else has one."""
    network, generator = small(), torch.Generator().manual_seed(3)
    network.requires_grad_(True)
    # Random biases and norms: at their initial zeros and ones some gradients vanish by accident.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    z, noise = (torch.randn(4, 2, 4, 4, generator=generator) for _ in range(2))
    context = condition(torch.tensor([0, 1, 4, 5]), 5)
    times = torch.tensor([10, 300, 600, 900])
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel rounds: its zeros are 1e-9
        denoising_losses(network, build_scheduler(kind), z, context, times, noise).sum().backward()
    gradients = {name: float(p.grad.abs().max()) for name, p in network.named_parameters()}
    without = {name for name, size in gradients.items() if size == 0.0}
    assert without == {name for name in gradients if USELESS.search(name)}
    assert len(without) == 7 * 4, "2 + 1 + 4 blocks with queries, keys, and a norm of two parameters"


def test_presets_choose_what_the_paper_tunes() -> None:
    names = [name for name, _ in small().named_parameters()]
    live = {name for name in names if not USELESS.search(name)}
    chosen = {preset: set(choose_trainable(small(), preset)) for preset in PRESETS}
    assert chosen["all"] == live
    assert chosen["condition"] == {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}
    assert chosen["attention"] == {n for n in live if "attentions" in n.split(".")} | chosen["condition"]
    assert len(chosen["condition"]) < len(chosen["attention"]) < len(chosen["all"])


@pytest.mark.parametrize("choice", [*PRESETS, r"attn1\.to_v", r"^conv_in\.", r"norm2"])
def test_what_is_not_chosen_is_frozen(choice: str) -> None:
    network = small()
    chosen = choose_trainable(network, choice)
    parameters = dict(network.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == set(chosen)
    assert all(parameters[name] is p for name, p in chosen.items())
    assert not any(USELESS.search(name) for name in chosen)
    assert all(re.search(PRESETS.get(choice, choice), name) for name in chosen)
    assert chosen
    again = choose_trainable(network, "condition")
    assert {name for name, p in parameters.items() if p.requires_grad} == set(again), "an earlier choice is undone"


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ("(", "no valid regular expression"),
        ("nothing", "matches no parameter"),
        (r"attn2\.to_q", "matches no parameter"),
    ],
)
def test_a_choice_without_sense_is_refused(choice: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        choose_trainable(small(), choice)
