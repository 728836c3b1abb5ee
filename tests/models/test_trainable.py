"""What is tuned on private images, and what is frozen because it has no influence."""

import re
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.models.choices import PRESETS, attention_modules, tuned_names
from dpldm.models.denoiser import adapt_to_labels, build_denoiser, build_scheduler, condition, denoising_losses
from dpldm.models.trainable import choose_trainable
from dpldm.tuned import with_weights

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
        ("lora-8:nothing", "matches no parameter"),
        ("lora-0", "matches no parameter"),
    ],
)
def test_a_choice_without_sense_is_refused(choice: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        choose_trainable(small(), choice)


MATRICES = ("Linear", "Conv2d")


@pytest.mark.parametrize("choice", ["attention", "attn1", "resblocks", "all"])
def test_adapters_are_put_on_every_matrix_of_a_choice(choice: str) -> None:
    pytest.importorskip("peft")
    network, plain = small(), small()
    chosen = choose_trainable(network, f"lora-3:{choice}", embedder=False)
    of_choice = set(choose_trainable(plain, choice, embedder=False))
    matrices = {
        f"{name}.weight"
        for name, layer in plain.named_modules()
        if type(layer).__name__ in MATRICES and f"{name}.weight" in of_choice
    }
    layers = {re.sub(r"\.lora_[AB]\.default\.weight$", ".weight", name) for name in chosen}
    assert layers == matrices == set(tuned_names(dict(plain.named_parameters()), f"lora-3:{choice}", embedder=False))
    assert len(chosen) == 2 * len(matrices)
    assert all(3 in p.shape[:2] for p in chosen.values())
    assert all(p.requires_grad == (name in chosen) for name, p in network.named_parameters())


def test_adapters_alone_stand_for_attention_and_start_without_effect_and_alike() -> None:
    pytest.importorskip("peft")
    plain, one, other = small(), small(), small()
    chosen = [choose_trainable(network, choice) for network, choice in ((one, "lora-2"), (other, "lora-2:attention"))]
    assert all(torch.equal(chosen[0][name], chosen[1][name]) for name in chosen[0])
    inputs = (torch.randn(3, 2, 4, 4), torch.tensor([3, 500, 900]), condition(torch.tensor([0, 2, 5]), 5))
    torch.testing.assert_close(one(*inputs).sample, plain(*inputs).sample)


@torch.no_grad()
def test_merged_adapters_are_a_stock_network_that_computes_the_same() -> None:
    pytest.importorskip("peft")
    network, public = small(), small()
    adapt_to_labels(network, 4)
    chosen = choose_trainable(network, "lora-4:all")
    for number, parameter in enumerate(chosen.values()):
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    four = {"data": {"path": "images", "labels": ["a", "b", "c", "d"]}, "privacy": {"dataset_id": "scans"}}
    merged = with_weights(public, RunConfig.model_validate(four), chosen)
    inputs = (torch.randn(3, 2, 4, 4), torch.tensor([3, 500, 900]), condition(torch.tensor([0, 2, 4]), 4))
    torch.testing.assert_close(merged(*inputs).sample, network(*inputs).sample, rtol=1e-4, atol=1e-4)
    stock = dict(small().named_parameters())
    assert [name for name, _ in merged.named_parameters()] == list(stock)
    changed = {n for n, p in merged.named_parameters() if p.shape != stock[n].shape or not torch.equal(p, stock[n])}
    assert changed == set(tuned_names(stock, "lora-4:all"))


def test_without_peft_adapters_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"install dpldm\[lora\]"):
        choose_trainable(small(), "lora-8")


def test_nothing_is_left_of_the_embedder_alone_without_the_embedder() -> None:
    with pytest.raises(UserError, match="matches no parameter"):
        choose_trainable(small(), "condition", embedder=False)
