"""What is tuned on private images, and what is frozen because it has no influence."""

import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpldm.errors import UserError
from dpldm.models.choices import PRESETS, attention_modules
from dpldm.models.denoiser import build_denoiser, build_scheduler, condition, denoising_losses
from dpldm.models.trainable import choose_trainable

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


def names_of(network: UNet2DConditionModel) -> list[str]:
    """All that have influence."""
    return [name for name, _ in network.named_parameters() if not USELESS.search(name)]


def chosen_names(choice: str, *, embedder: bool = False) -> set[str]:
    return set(choose_trainable(small(), choice, embedder=embedder))


OWNERS = {"norm1", "norm2", "norm3", "norm", "conv_norm_out", "group_norm"}


def test_presets_choose_what_they_are_named_for() -> None:
    live = names_of(small())
    parts = {name: name.split(".") for name in live}
    assert chosen_names("all") == {n for n in live if parts[n][0] != "encoder_hid_proj"}
    assert chosen_names("attention") == {n for n in live if "attentions" in parts[n]}
    for place, block in (("in", "down_blocks"), ("mid", "mid_block"), ("out", "up_blocks")):
        assert chosen_names(f"attention-{place}") == {n for n in chosen_names("attention") if parts[n][0] == block}
    for kind in ("attn1", "attn2"):
        assert chosen_names(kind) == {n for n in live if kind in parts[n]}
    assert chosen_names("resblocks") == {n for n in live if "resnets" in parts[n]}
    assert chosen_names("norms") == {n for n in live if parts[n][-2] in OWNERS}
    assert all(chosen_names(preset) for preset in PRESETS if preset != "condition")


@pytest.mark.parametrize("choice", [*PRESETS, "attention-from-2", r"attn1\.to_v"])
def test_the_embedder_is_tuned_beside_any_choice_or_left_alone(choice: str) -> None:
    embedder = {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}
    assert embedder <= chosen_names(choice, embedder=True)
    if choice == "condition":
        assert chosen_names(choice, embedder=True) == embedder
    else:
        assert chosen_names(choice, embedder=True) - embedder == chosen_names(choice)
        assert not chosen_names(choice) & embedder


def test_attention_modules_are_counted_along_the_way_of_the_data() -> None:
    network, seen = small(), []
    for name, module in network.named_modules():
        if re.search(r"attentions\.\d$", name):
            module.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    network(torch.randn(1, 2, 4, 4), torch.tensor([3]), condition(torch.tensor([1]), 5))
    assert attention_modules(dict(network.named_parameters())) == seen
    assert len(seen) == 7, "two down, one in the middle, four up"
    for number in range(1, 8):
        wanted = {n for n in names_of(network) if any(n.startswith(f"{name}.") for name in seen[number - 1 :])}
        assert chosen_names(f"attention-from-{number}") == wanted
    assert chosen_names("attention-from-1") == chosen_names("attention")


@pytest.mark.parametrize("choice", [*PRESETS, r"attn1\.to_v", r"^conv_in\.", r"norm2"])
def test_what_is_not_chosen_is_frozen(choice: str) -> None:
    network = small()
    chosen = choose_trainable(network, choice)
    parameters = dict(network.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == set(chosen)
    assert all(parameters[name] is p for name, p in chosen.items())
    assert not any(USELESS.search(name) for name in chosen)
    assert all(re.search(PRESETS.get(choice, choice), name) for name in chosen if "encoder_hid_proj" not in name)
    assert chosen
    again = choose_trainable(network, "condition")
    assert {name for name, p in parameters.items() if p.requires_grad} == set(again), "an earlier choice is undone"


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ("(", "no valid regular expression"),
        ("nothing", "matches no parameter"),
        ("attention-from-0", "modules are 1 to 7"),
        ("attention-from-8", "modules are 1 to 7"),
        (r"attn2\.to_q", "matches no parameter"),
    ],
)
def test_a_choice_without_sense_is_refused(choice: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        choose_trainable(small(), choice)


def test_nothing_is_left_of_the_embedder_alone_without_the_embedder() -> None:
    with pytest.raises(UserError, match="matches no parameter"):
        choose_trainable(small(), "condition", embedder=False)
