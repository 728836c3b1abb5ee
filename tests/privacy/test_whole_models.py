"""The clipped sum of whole models, as their libraries build them, against one backward pass per example.

Each in float64 to 1e-10, in float32 to 1e-5, and under bfloat16 autocast against what the taps recorded, recomputed.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.layers import UnsupportedModel
from oracles import assert_equal_sums, clipped_sum_by_loop, gradients_by_loop, norm_of

EXAMPLES, DRAWS = 3, 2


class TextEncoder(nn.Module):
    """A CLIP-like encoder with its own queries, keys and values: ids (R, T) to one loss per row."""

    def __init__(self, shared_positions: bool = False, words: int = 20, width: int = 12, tokens: int = 5) -> None:
        super().__init__()
        self.shared = shared_positions
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(tokens, width)
        self.norm1, self.norm2, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.places_of: Callable[[Tensor], Tensor] = lambda ids: torch.arange(ids.shape[1])[None]

    def forward(self, ids: Tensor) -> Tensor:
        places = self.places_of(ids)
        x = self.words(ids) + self.places(places if self.shared else places.expand(len(ids), -1))
        for _ in range(2):  # the same block twice, as some encoders share weights between layers
            h = self.norm1(x)
            heads = (to(h).unflatten(2, (2, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
            x = x + self.to_out(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
            x = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        return (x := self.last(x)[:, -1]).square().mean(1) + x[:, 0]


def conditional_unet() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=6,
        norm_num_groups=4,
    )


def unconditional_unet() -> nn.Module:
    return UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=5,
    )


def transformer() -> nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=6,
        in_channels=2,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        norm_num_groups=2,
        num_embeds_ada_norm=10,
    )


Losses = Callable[[slice], Tensor]
"""Rows to one loss per row."""


def losses_of(model: nn.Module, rows: int, dtype: torch.dtype) -> Losses:
    """A fixed loss of each of `rows` rows of random inputs, of scales that differ so that only some are clipped."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        scales = torch.logspace(-1.5, 0.5, rows).view(-1, *[1] * len(shape))
        return (torch.randn(rows, *shape, generator=generator) * scales).to(dtype)

    def integers(below: int, *shape: int) -> Tensor:
        return torch.randint(below, (rows, *shape), generator=generator)

    if isinstance(model, TextEncoder):
        ids, weights = integers(20, 5), torch.logspace(-2, 1, rows).to(dtype)
        return lambda part: model(ids[part]) * weights[part]
    config = model.config
    x, times = normal(config.in_channels, config.sample_size, config.sample_size), integers(10)
    extra: dict[str, Tensor] = {}
    if isinstance(model, UNet2DConditionModel):
        extra["encoder_hidden_states"] = normal(4, 6)
    else:
        extra["class_labels"] = integers(5)
    target = normal(*x.shape[1:])

    def losses(part: slice) -> Tensor:
        output = model(x[part], timestep=times[part], **{k: v[part] for k, v in extra.items()}).sample
        error = output[:, : x.shape[1]].to(dtype) - target[part]  # a DiT predicts variances too
        return error.square().flatten(1).mean(1)

    return losses


def randomised(model: nn.Module) -> nn.Module:
    """Fresh weights everywhere: zero initialisations would hide whole branches."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / math.sqrt(max(1, p[0].numel())) if p.dim() > 1 else torch.randn_like(p))
    return model.eval()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def lora_unet() -> nn.Module:
    """Adapters on the attention of a frozen UNet: below other layers, of linear layers and of convolutions."""
    network = conditional_unet().requires_grad_(False)
    network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v", "to_out.0", "conv1", "proj_in"]))
    return network


def lora_encoder(**settings: Any) -> nn.Module:
    """Adapters on some linear layers of an encoder, one of them trained whole."""
    names = {"target_modules": ["to_q", "to_v", "wide"], "modules_to_save": ["narrow"]}
    return inject_adapter_in_model(LoraConfig(r=3, **names, **settings), TextEncoder())


MODELS = {
    "conditional UNet": conditional_unet,
    "unconditional UNet": unconditional_unet,
    "diffusion transformer": transformer,
    "text encoder": TextEncoder,
    "LoRA of a UNet": lora_unet,
    "LoRA of an encoder": lora_encoder,
}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return randomised(MODELS[kind]())


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_whole_model_equals_autograd_loop(model: nn.Module, dtype: torch.dtype, tolerance: float) -> None:
    exact, model = copy.deepcopy(model).double(), model.to(dtype)
    exactly = losses_of(exact, EXAMPLES * DRAWS, torch.float64)

    def loss_of(i: int) -> Tensor:
        return exactly(slice(i * DRAWS, (i + 1) * DRAWS)).mean()

    norms = sorted(norm_of(each) for each in gradients_by_loop(exact, loss_of, EXAMPLES))
    clip_norm = (norms[0] + norms[-1]) / 2  # some are clipped, some are not
    losses = losses_of(model, EXAMPLES * DRAWS, dtype)
    with ClippedSum(model, trainable(model), clip_norm, DRAWS) as clipped:
        clipped.accumulate(losses(slice(None)).view(EXAMPLES, DRAWS).mean(1))
        ours = clipped.take()
    assert_equal_sums(ours, clipped_sum_by_loop(exact, loss_of, EXAMPLES, clip_norm), tolerance)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["conditional UNet", "unconditional UNet", "diffusion transformer", "LoRA of a UNet"])
def test_gradient_checkpointing_changes_nothing(kind: str, training: bool) -> None:
    """By diffusers' own switch, in evaluation mode and, where nothing is drawn in it, in training mode."""
    sums, calls = [], []
    for checkpointing in (True, False):
        model = build(kind).double().train(training and kind != "diffusion transformer")
        if checkpointing:
            model.enable_gradient_checkpointing()
            layer = next(m for n, m in model.named_modules() if n.endswith(("conv1", "to_k")))
            layer.register_forward_hook(lambda *_: calls.append("forward"))
        losses = losses_of(model, EXAMPLES, torch.float64)
        with ClippedSum(model, trainable(model), 1.0) as clipped:
            clipped.accumulate(losses(slice(None)))
            sums.append(clipped.take())
    assert len(calls) == 2, "the layer was computed again on the way back"
    assert_equal_sums(*sums, 1e-12)


def test_dropout_of_adapters_is_part_of_an_examples_loss() -> None:
    """Against gradients of a pass with the same masks, which cannot be drawn again one example at a time."""
    model = randomised(lora_encoder(lora_dropout=0.5)).double().train()
    losses = losses_of(model, EXAMPLES, torch.float64)
    with ClippedSum(model, trainable(model), 1.0) as clipped:
        torch.manual_seed(5)
        clipped.accumulate(losses(slice(None)))
        ours = clipped.take()

    def alone(i: int) -> Tensor:
        torch.manual_seed(5)
        return losses(slice(None))[i]

    assert not torch.equal(alone(0), losses(slice(None))[0]), "dropout is on"
    assert_equal_sums(ours, clipped_sum_by_loop(model, alone, EXAMPLES, 1.0))


@pytest.mark.parametrize("kind", ["text encoder", "LoRA of an encoder"])
def test_a_weight_tied_to_another_layer_counts_once(kind: str) -> None:
    model = build(kind).double()
    model.to_k.weight = model.to_out.weight
    losses = losses_of(model, EXAMPLES, torch.float64)
    with ClippedSum(model, trainable(model), 1.0) as clipped:
        clipped.accumulate(losses(slice(None)))
        ours = clipped.take()
    assert_equal_sums(ours, clipped_sum_by_loop(model, lambda i: losses(slice(i, i + 1))[0], EXAMPLES, 1.0))


# --- precision ----------------------------------------------------------------------------------------------------


def gradients_of_the_record(layer: nn.Module, x: Tensor, grad: Tensor, examples: int) -> dict[nn.Parameter, Tensor]:
    """Example gradients of one layer's parameters, each (examples, ...), by autograd in float64 from what a tap saw."""
    exact = copy.deepcopy(layer).double()
    rows = len(x) // examples
    parts = [slice(i * rows, (i + 1) * rows) for i in range(examples)]
    inputs = x.double().contiguous() if x.is_floating_point() else x  # torch's group norm crashes on other layouts
    found = {}
    for own, parameter in zip(layer.parameters(recurse=False), exact.parameters(recurse=False), strict=True):
        if own.requires_grad:
            products = [(exact(inputs[part]) * grad[part].double()).sum() for part in parts]
            found[own] = torch.stack([torch.autograd.grad(product, parameter)[0] for product in products])
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_under_bfloat16_the_sum_is_that_of_the_recorded_numbers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 changes the gradients, but not by how much an example can change the sum."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    ordinary = ClippedSum._record

    def record(clipped: ClippedSum, layer: nn.Module, x: Tensor, grad: Tensor) -> None:
        seen.append((layer, x.detach().clone(), grad.clone()))
        ordinary(clipped, layer, x, grad)

    monkeypatch.setattr(ClippedSum, "_record", record)
    model, clip_norm = build(kind), 0.3
    losses_of_rows = losses_of(model, EXAMPLES * DRAWS, torch.float32)

    def losses() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return losses_of_rows(slice(None)).float().view(EXAMPLES, DRAWS).mean(1)

    with ClippedSum(model, trainable(model), clip_norm, DRAWS) as clipped:
        clipped.accumulate(losses())
        ours, recorded = clipped.take(), list(seen)
        alone = []
        for i in range(EXAMPLES):
            clipped.accumulate(losses(), torch.arange(EXAMPLES) == i)
            alone.append(clipped.take())
    assert any(grad.dtype == torch.bfloat16 for _, _, grad in recorded), "the network did compute in bfloat16"

    gradients: dict[str, Tensor] = {}
    names = {p: name for name, p in trainable(model).items()}
    for layer, x, grad in recorded:
        for parameter, found in gradients_of_the_record(layer, x, grad, EXAMPLES).items():
            gradients[names[parameter]] = gradients.get(names[parameter], 0) + found
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    factors = (clip_norm / norms).clamp(max=1)
    assert int((factors < 1).sum()) > 0, "some example is clipped"
    theirs = {name: torch.einsum("b,b...->...", factors, gradients[name]) for name in ours}
    assert_equal_sums(ours, theirs, 1e-5)
    for total in alone:
        assert 0 < norm_of(total) <= clip_norm * (1 + 1e-6)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_positions_that_all_rows_share_are_refused_with_the_remedy() -> None:
    """Ids of shape (1, T), as CLIP keeps them: the gradient of a shared row cannot be told apart by example."""
    model = randomised(TextEncoder(shared_positions=True))
    losses = losses_of(model, EXAMPLES, torch.float32)
    with (
        ClippedSum(model, trainable(model), 1.0) as clipped,
        pytest.raises(UnsupportedModel, match=r"places\.weight saw 1 rows .*freeze it or expand its input"),
    ):
        clipped.accumulate(losses(slice(None)))
    model.places.requires_grad_(False)
    with ClippedSum(model, trainable(model), 1.0) as clipped:
        clipped.accumulate(losses(slice(None)))
        ours = clipped.take()
    theirs = clipped_sum_by_loop(model, lambda i: losses(slice(i, i + 1))[0], EXAMPLES, 1.0)
    assert_equal_sums(ours, theirs, 1e-5)


def test_dora_is_refused_by_name_with_the_remedy() -> None:
    model = lora_encoder(use_dora=True)
    with pytest.raises(UnsupportedModel, match=r"to_q\.lora_magnitude_vector.* DoRA.*use_dora=False"):
        ClippedSum(model, trainable(model), 1.0)
