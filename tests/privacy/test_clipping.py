"""The clipped sum against an autograd loop over single examples, in float64."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpldm.models.denoiser import build_denoiser, build_scheduler, condition, denoising_losses
from dpldm.models.trainable import choose_trainable
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.convolved import Convolved
from dpldm.privacy.layers import ConvolutionTap, UnsupportedModel
from dpldm.privacy.per_example import Outer
from oracles import Tokens, assert_equal_sums, clipped_sum_by_loop, norm_of


def layer_cases() -> list[tuple[str, nn.Module, tuple[int, ...], int]]:
    return [
        ("linear, one token", nn.Linear(5, 7), (1, 5), 1),
        ("linear, ghost", nn.Linear(40, 30), (3, 40), 1),
        ("linear, instantiated", nn.Linear(5, 7), (77, 5), 1),
        ("linear, no bias", nn.Linear(6, 4, bias=False), (16, 6), 1),
        ("linear, no token axis", nn.Linear(6, 4), (6,), 1),
        ("linear, four axes", nn.Linear(6, 4), (2, 3, 6), 1),
        ("linear, used twice", nn.Linear(6, 6), (9, 6), 2),
        ("linear, used twice, ghost", nn.Linear(40, 40), (3, 40), 2),
        ("conv 1x1", nn.Conv2d(4, 6, 1), (4, 5, 5), 1),
        ("conv 3x3", nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5), 1),
        ("conv strided", nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), (3, 8, 8), 1),
        ("conv dilated", nn.Conv2d(2, 3, 3, dilation=2), (2, 9, 9), 1),
        ("conv in groups", nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5), 1),
        ("conv depthwise, no bias", nn.Conv2d(3, 3, (3, 1), groups=3, bias=False), (3, 6, 6), 1),
        ("conv used twice", nn.Conv2d(3, 3, 3, padding=1), (3, 5, 5), 2),
        ("conv 1d", nn.Conv1d(3, 5, 3, padding=2, stride=2), (3, 9), 1),
        ("conv 1d, kernel 1", nn.Conv1d(3, 5, 1), (3, 9), 1),
        ("conv 1d in groups, dilated", nn.Conv1d(4, 4, 3, dilation=2, groups=2), (4, 9), 1),
        ("rms norm", nn.RMSNorm(6), (5, 6), 1),
        ("rms norm over two axes, own epsilon", nn.RMSNorm((3, 4), eps=1e-3), (5, 3, 4), 1),
        ("rms norm, used twice", nn.RMSNorm(6), (5, 6), 2),
        ("layer norm", nn.LayerNorm(6), (5, 6), 1),
        ("layer norm, no bias", nn.LayerNorm(6, bias=False), (5, 6), 1),
        ("group norm", nn.GroupNorm(2, 6), (6, 4, 4), 1),
        ("group norm, used twice", nn.GroupNorm(2, 6), (6, 4, 4), 2),
        ("group norm of vectors", nn.GroupNorm(2, 6), (6,), 1),
        ("group norm of sequences", nn.GroupNorm(3, 6), (6, 7), 1),
    ]


@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize(("layer", "shape", "uses"), [c[1:] for c in layer_cases()], ids=[c[0] for c in layer_cases()])
def test_clipped_sum_equals_autograd_loop(layer: nn.Module, shape: tuple[int, ...], uses: int, draws: int) -> None:
    torch.manual_seed(0)
    examples, clip_norm = 5, 3.0
    model = Tokens(layer, uses).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    # Scales spread over decades, so that some examples are clipped and some are not.
    x = torch.randn(examples, draws, *shape, dtype=torch.float64)
    x = x * torch.logspace(-3, 0.5, examples, dtype=torch.float64).view(-1, *[1] * (x.dim() - 1))
    with ClippedSum(model, dict(model.named_parameters()), clip_norm, draws) as clipped:
        clipped.accumulate(model(x.flatten(0, 1)).view(examples, draws).mean(1))
        ours = clipped.take()
    theirs = clipped_sum_by_loop(model, lambda i: model(x[i]).mean(), examples, clip_norm)
    assert_equal_sums(ours, theirs)


@pytest.mark.parametrize("form", ["ghost", "dense", "dense in parts"])
@pytest.mark.parametrize("tokens", [1, 16, 77, 256])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("uses", [1, 2])
def test_every_form_of_a_linear_gradient_gives_the_same_sum(
    monkeypatch: pytest.MonkeyPatch, form: str, tokens: int, bias: bool, draws: int, uses: int
) -> None:
    """Forced, whatever the inequality prefers; in float64 to 1e-10, in float32 to 1e-5.

    Without the rounding bound, which makes ghost norms larger on purpose (see the test of cancelling tokens).
    """
    monkeypatch.setattr(Outer, "_rounding_bound", lambda self, products: torch.zeros(len(self.inputs)))
    monkeypatch.setattr(Outer, "ghost_is_cheaper", lambda self: form == "ghost")
    if form == "dense in parts":
        monkeypatch.setattr("dpldm.privacy.per_example.DENSE_BYTES", 2 * 12 * 12 * 8)  # two examples at a time
    examples = 3
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        torch.manual_seed(0)
        model = Tokens(nn.Linear(12, 12, bias=bias), uses).to(dtype)
        x = torch.randn(examples, draws, tokens, 12, dtype=dtype) * torch.tensor([0.01, 1.0, 2.0]).view(3, 1, 1, 1)
        with ClippedSum(model, dict(model.named_parameters()), 3.0, draws) as clipped:
            clipped.accumulate(model(x.flatten(0, 1)).view(examples, draws).mean(1))
            ours = clipped.take()
        exact, inputs = copy.deepcopy(model).double(), x.double()
        theirs = clipped_sum_by_loop(
            exact, partial(lambda of, data, i: of(data[i]).mean(), exact, inputs), examples, 3.0
        )
        assert_equal_sums(ours, theirs, tolerance)


class Words(nn.Module):
    """Ids (B, T) to one loss per example; the read-out may share the embedding's weight."""

    def __init__(self, tied: bool = False, padding: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 5, padding_idx=padding)
        self.read = nn.Linear(5, 7, bias=not tied)
        if tied:
            self.read.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return torch.sin(self.read(torch.sin(self.table(ids)))).square().flatten(1).sum(1)


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize(("tied", "padding"), [(False, None), (False, 2), (True, None)])
def test_embeddings_with_repeated_ids_padding_and_ties(draws: int, tied: bool, padding: int | None) -> None:
    torch.manual_seed(0)
    model = Words(tied, padding).double()
    ids = torch.randint(7, (4, draws, 9))
    ids[0] = 2  # one id, many times
    with ClippedSum(model, dict(model.named_parameters()), 1.5, draws) as clipped:
        clipped.accumulate(model(ids.flatten(0, 1)).view(4, draws).mean(1))
        ours = clipped.take()
    theirs = clipped_sum_by_loop(model, lambda i: model(ids[i]).mean(), 4, 1.5)
    assert_equal_sums(ours, theirs)
    assert float(ours["table.weight"].norm()) > 0


def test_convolutions_that_share_a_weight_and_move_differently() -> None:
    """Places of one output cannot stand beside those of the other: the stride differs."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, stride=2, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second).double()
    x = torch.randn(4, 3, 5, 4, dtype=torch.float64)
    with ClippedSum(model, dict(model.named_parameters()), 2.0) as clipped:
        clipped.accumulate(model(x).square().flatten(1).sum(1))
        ours = clipped.take()
    assert_equal_sums(ours, clipped_sum_by_loop(model, lambda i: model(x[i : i + 1]).square().sum(), 4, 2.0))


@pytest.mark.parametrize("kernel", [(3, 3), (1, 2), (4, 1)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 5)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_norms_of_convolutions_without_patches_are_those_of_the_gradients(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    """Three images an example; also in parts of one example, and the norm from patches beside that from pixels."""
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, stride, padding, dilation).double()
    x = torch.randn(4, 3, 2, 9, 8, dtype=torch.float64)
    grad = torch.randn_like(layer(x.flatten(0, 1)))
    held = ConvolutionTap().gradients(layer, x.flatten(0, 1), grad, 4)["weight"]
    assert isinstance(held, Convolved)
    gradients = [
        torch.autograd.grad((layer(x[i]) * grad.unflatten(0, (4, 3))[i]).sum(), layer.weight)[0] for i in range(4)
    ]
    truth = torch.stack([g.square().sum() for g in gradients])
    assert torch.allclose(held.ghost_norms(), truth, rtol=1e-10)
    assert torch.allclose(held.dense_norms(), truth, rtol=1e-10)
    assert torch.allclose(held.dense().gradients, torch.stack(gradients), rtol=1e-10, atol=1e-12)
    weights, total = torch.tensor([0.5, 1.0, 0.0, 2.0]).double(), torch.ones_like(layer.weight)
    held.add_weighted(total, weights)
    assert torch.allclose(total, 1 + sum(w * g for w, g in zip(weights, gradients, strict=True)), atol=1e-10)


@pytest.mark.parametrize("form", ["ghost", "dense"])
def test_norms_of_convolutions_in_parts(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr("dpldm.privacy.per_example.DENSE_BYTES", 1)
    monkeypatch.setattr(Outer, "ghost_is_cheaper", lambda self: form == "ghost")
    torch.manual_seed(0)
    model = Tokens(nn.Conv2d(3, 4, 3, padding=1)).double()
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    with ClippedSum(model, dict(model.named_parameters()), 2.0) as clipped:
        clipped.accumulate(model(x))
        ours = clipped.take()
    assert_equal_sums(ours, clipped_sum_by_loop(model, lambda i: model(x[i : i + 1])[0], 3, 2.0))


def test_layers_before_operations_in_place() -> None:
    """What a tap reports is the gradient of its own output, with and without a gradient of its input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.ReLU(inplace=True)).double()
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    with ClippedSum(model, dict(model.named_parameters()), 0.5) as clipped:
        clipped.accumulate(model(x).square().flatten(1).sum(1))
        ours = clipped.take()
    assert_equal_sums(ours, clipped_sum_by_loop(model, lambda i: model(x[i : i + 1]).square().sum(), 4, 0.5))


def test_an_input_changed_in_place_after_its_use_is_refused() -> None:
    layer = nn.Linear(3, 3)
    with ClippedSum(layer, dict(layer.named_parameters()), 1.0) as clipped:
        x = torch.randn(2, 3)
        losses = layer(x).sum(1)
        x += 1
        with pytest.raises(UnsupportedModel, match="changed in place"):
            clipped.accumulate(losses)


def test_gradients_changed_in_place_behind_the_norm_are_refused() -> None:
    """Another hook gets the output's gradient after the norm was taken; the sum would be of other numbers."""

    def scaled(gradient: Tensor) -> None:
        gradient *= 1e6

    layer = nn.Linear(40, 30)
    with ClippedSum(layer, dict(layer.named_parameters()), 1.0) as clipped:
        y = layer(torch.randn(2, 3, 40))
        y.register_hook(scaled)
        with pytest.raises(UnsupportedModel, match="changed in place"):
            clipped.accumulate((y * torch.randn(30)).sum((1, 2)))


def test_a_pass_without_gradients_records_nothing() -> None:
    layer = nn.Linear(3, 3)
    with ClippedSum(layer, dict(layer.named_parameters()), 1.0), torch.no_grad():
        assert not layer(torch.randn(2, 3)).requires_grad


def test_layers_that_share_a_weight_share_its_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    model[2].weight = model[0].weight
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    with ClippedSum(model, dict(model.named_parameters()), 2.0) as clipped:
        clipped.accumulate(model(x).square().flatten(1).sum(1))
        ours = clipped.take()
    assert set(ours) == {"0.weight", "0.bias", "2.bias"}
    assert_equal_sums(ours, clipped_sum_by_loop(model, lambda i: model(x[i : i + 1]).square().sum(), 4, 2.0))


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_are_recomputed_by_checkpointing(reentrant: bool) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 4)).double()
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)  # the older kind needs an input with a gradient

    def losses(rows: slice) -> Tensor:
        return checkpoint(body, x[rows], use_reentrant=reentrant).square().flatten(1).sum(1)

    with ClippedSum(body, dict(body.named_parameters()), 1.0) as clipped:
        clipped.accumulate(losses(slice(None)))
        ours = clipped.take()
    plain = clipped_sum_by_loop(body, lambda i: body(x[i]).square().sum(), 4, 1.0)
    assert_equal_sums(ours, plain)


def test_a_denoiser_with_gradient_checkpointing(denoiser: nn.Module) -> None:
    trainable, inputs = choose_trainable(denoiser, "attention"), unet_inputs(3, 1)
    sums = []
    for checkpointing in (False, True):
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
            denoiser.train()  # without dropout or batch norm, training mode changes nothing else
        with ClippedSum(denoiser, trainable, 0.5) as clipped:
            clipped.accumulate(denoising_losses(denoiser, build_scheduler("epsilon"), **inputs))
            sums.append(clipped.take())
    assert_equal_sums(sums[1], sums[0], 1e-12)


def test_layers_behind_a_frozen_prefix_and_in_both_modes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double().eval()
    model[0].requires_grad_(False)
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with ClippedSum(model, trainable, 0.5) as clipped:
        clipped.accumulate(model(x).square().flatten(1).sum(1))
        ours = clipped.take()
    assert_equal_sums(ours, clipped_sum_by_loop(model, lambda i: model(x[i]).square().sum(), 4, 0.5))


def test_a_subclass_that_computes_the_same_is_known_and_another_is_not() -> None:
    class Same(nn.Linear):
        pass

    class Other(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) - super().forward(input).mean()

    model = Same(3, 3)
    ClippedSum(model, dict(model.named_parameters()), 1.0)
    mixing = Other(3, 3)
    with pytest.raises(UnsupportedModel, match="weight belongs to a Other"):
        ClippedSum(mixing, dict(mixing.named_parameters()), 1.0)


# --- precision ----------------------------------------------------------------------------------------------------


class Recorder:
    """Recomputes the clipped sum in float32 from what the taps recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        ordinary = ClippedSum._record

        def record(clipped: ClippedSum, layer: nn.Module, x: Tensor, grad: Tensor) -> None:
            self.seen.append((layer, x.detach().clone(), grad.clone()))
            ordinary(clipped, layer, x, grad)

        monkeypatch.setattr(ClippedSum, "_record", record)

    def clipped_sum(self, examples: int, clip_norm: float) -> dict[str, Tensor]:
        """For Linear layers of one use each, with materialised float32 gradients."""
        gradients = {}
        for index, (_, x, grad) in enumerate(self.seen):
            x, grad = (t.float().reshape(examples, -1, t.shape[-1]) for t in (x, grad))
            gradients[index, "weight"] = grad.mT @ x
            gradients[index, "bias"] = grad.sum(1)
        norms = sum(g.flatten(1).square().sum(1) for g in gradients.values()).sqrt()
        factors = (clip_norm / norms).clamp(max=1)
        return {key: torch.einsum("b,b...->...", factors, g) for key, g in gradients.items()}


def test_under_bfloat16_autocast_sums_and_norms_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 8))
    x = torch.randn(6, 4, 32) * torch.logspace(-2, 1, 6).view(-1, 1, 1)
    recorder = Recorder(monkeypatch)
    with ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped:
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(x).float().square().flatten(1).sum(1)
        clipped.accumulate(losses)
        ours = clipped.take()
    assert recorder.seen[0][2].dtype == torch.bfloat16, "the network did compute in bfloat16"
    assert {t.dtype for t in ours.values()} == {torch.float32}
    expected = recorder.clipped_sum(6, 1.0)
    order = [recorder.seen.index(entry) for entry in sorted(recorder.seen, key=lambda e: e[0] is model[2])]
    for layer, index in zip(("0", "2"), order, strict=True):
        for leaf in ("weight", "bias"):
            ours_of, theirs = ours[f"{layer}.{leaf}"], expected[index, leaf]
            assert float((ours_of - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 1e3]))
def test_under_autocast_no_example_contributes_more_than_C(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    model = Tokens(nn.Linear(24, 24))
    x = torch.randn(1, 5, 24) * scale
    with ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped:
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(x).float() * 1e3
        clipped.accumulate(losses)
        alone = clipped.take()
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in alone.values()))
    assert 0 < norm <= 1 + 1e-6


def test_float16_is_refused() -> None:
    model = nn.Linear(3, 3).half()
    with pytest.raises(UnsupportedModel, match="weight is float16"):
        ClippedSum(model, dict(model.named_parameters()), 1.0)


def test_float16_autocast_is_refused() -> None:
    """It would need a loss scale, whose skipped steps depend on the data."""
    model = Tokens(nn.Linear(3, 3))
    with ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped:
        with torch.autocast("cpu", torch.float16):
            losses = model(torch.randn(2, 4, 3)).float()
        with pytest.raises(UnsupportedModel, match="float16 cannot be trained privately"):
            clipped.accumulate(losses)


# --- clipping rules -----------------------------------------------------------------------------------------------


def test_automatic_clipping_equals_its_definition_and_keeps_the_bound() -> None:
    torch.manual_seed(0)
    model = Tokens(nn.Linear(4, 3)).double()
    x = torch.randn(5, 2, 4, dtype=torch.float64) * torch.logspace(-4, 2, 5, dtype=torch.float64).view(-1, 1, 1)
    trainable = dict(model.named_parameters())
    expected = {name: torch.zeros_like(p) for name, p in trainable.items()}
    for i in range(5):
        gradients = torch.autograd.grad(model(x[i : i + 1])[0], list(trainable.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for name, gradient in zip(trainable, gradients, strict=True):
            expected[name] += gradient * 0.7 / (norm + 0.01)
    with ClippedSum(model, trainable, 0.7, rule="automatic") as clipped:
        clipped.accumulate(model(x))
        assert_equal_sums(clipped.take(), expected)
        for i in range(5):
            clipped.accumulate(model(x[i : i + 1]))
            alone = math.sqrt(sum(float(t.square().sum()) for t in clipped.take().values()))
            assert 0 < alone < 0.7


@pytest.fixture
def denoiser() -> nn.Module:
    torch.manual_seed(1)
    return build_denoiser(4, 4, 3, widths=(16, 32), layers_per_block=1, heads=2, condition_dim=16).eval().double()


def unet_inputs(examples: int, draws: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "latents": torch.randn(examples * draws, 4, 4, 4, generator=generator).double(),
        "context": condition(torch.randint(4, (examples,), generator=generator), 3)
        .double()
        .repeat_interleave(draws, 0),
        "timesteps": torch.randint(1000, (examples * draws,), generator=generator),
        "noise": torch.randn(examples * draws, 4, 4, 4, generator=generator).double(),
    }


@pytest.mark.parametrize("preset", ["attention", "all"])
@pytest.mark.parametrize("draws", [1, 3])
def test_whole_denoiser_equals_autograd_loop(denoiser: nn.Module, preset: str, draws: int) -> None:
    trainable = choose_trainable(denoiser, preset)
    scheduler, inputs, examples = build_scheduler("v_prediction"), unet_inputs(4, draws), 4

    def losses(rows: slice) -> Tensor:
        return denoising_losses(denoiser, scheduler, **{k: v[rows] for k, v in inputs.items()}).view(-1, draws).mean(1)

    norms_differ = 0.5
    with ClippedSum(denoiser, trainable, norms_differ, draws) as clipped:
        clipped.accumulate(losses(slice(None)))
        ours = clipped.take()
    theirs = clipped_sum_by_loop(
        denoiser, lambda i: losses(slice(i * draws, (i + 1) * draws))[0], examples, norms_differ
    )
    assert_equal_sums(ours, theirs)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**31))
def test_sum_does_not_depend_on_physical_batches(cuts: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = Tokens(nn.Linear(4, 3)).double()
    x = torch.randn(sum(cuts), 6, 4, dtype=torch.float64)
    with ClippedSum(model, dict(model.named_parameters()), 0.7) as clipped:
        clipped.accumulate(model(x))
        whole = clipped.take()
        for part in x.split(cuts):
            clipped.accumulate(model(part))
        parts = clipped.take()
    assert_equal_sums(parts, whole, 1e-12)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e200])
def test_an_example_without_finite_gradient_contributes_exactly_zero(poison: float) -> None:
    torch.manual_seed(0)
    model = Tokens(nn.Linear(4, 3)).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    bad = x.clone()
    bad[1, 0, 0] = poison
    with ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped:
        clipped.accumulate(model(x[[0, 2]]))
        without = clipped.take()
        clipped.accumulate(model(bad) if poison != 1e200 else model(x) * torch.tensor([1, poison, 1]))
        ours = clipped.take()
    assert_equal_sums(ours, without, 1e-13)


def test_a_null_record_contributes_exactly_zero() -> None:
    torch.manual_seed(0)
    model = Tokens(nn.Linear(40, 30)).double()
    x = torch.randn(3, 2, 40, dtype=torch.float64)
    with ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped:
        clipped.accumulate(model(x), torch.tensor([True, False, True]))
        ours = clipped.take()
        clipped.accumulate(model(x[[0, 2]]))
        without = clipped.take()
    assert_equal_sums(ours, without, 1e-13)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-6, 1e6), st.sampled_from([1.0, 1e3, 1e8, 1e-8]))
def test_one_example_more_changes_the_sum_by_at_most_C(seed: int, clip_norm: float, scale: float) -> None:
    torch.manual_seed(seed)
    model = Tokens(nn.Linear(6, 5))
    x = torch.randn(4, 3, 6) * scale
    with ClippedSum(model, dict(model.named_parameters()), clip_norm) as clipped:
        clipped.accumulate(model(x[:1]) * scale)
        alone = clipped.take()
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in alone.values()))
    assert norm <= clip_norm * (1 + 1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_cancelling_tokens_cannot_hide_a_norm(autocast: bool) -> None:
    """Gram sums lose small gradients between large tokens; the rounding bound must keep the norm above the truth."""
    torch.manual_seed(0)
    linear = nn.Linear(300, 300, bias=False)

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return 1e4 * (y[:, 0] - y[:, 1]).sum(1)

    model = Cancelling()
    base = torch.randn(1, 1, 300)
    apart = 1e-2 if autocast else 1e-6  # a few units in the last place
    x = torch.cat([base, base + apart * torch.randn(1, 1, 300)], 1) * 1e4
    with ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = model(x).float()
        clipped.accumulate(losses)
        total = clipped.take()["linear.weight"]
    assert 0 < float(total.double().norm()) <= 1 + 1e-5


def test_tokens_that_cancel_in_an_embedding_do_not_wipe_out_other_examples() -> None:
    """(1e9, -1e9, 0) has norm 0 in one order of adding up; in the middle of others' sums it has none of that."""
    table = nn.Embedding(4, 3)
    scale = torch.zeros(301, 3)
    scale[:300, 0] = 1.0
    scale[300] = torch.tensor([1e9, -1e9, 0.0])

    def clipped_sum(examples: int) -> Tensor:
        with ClippedSum(table, {"weight": table.weight}, 1.0) as clipped:
            for part in torch.arange(examples).split(64):
                rows = table(torch.ones(len(part), 3, dtype=torch.int64))
                clipped.accumulate((rows.sum(2) * scale[part]).sum(1))
            return clipped.take()["weight"].double()

    assert float((clipped_sum(301) - clipped_sum(300)).norm()) <= 1 + 1e-3


def test_tokens_that_cancel_in_a_linear_layer_whose_norms_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpldm.privacy.per_example.DENSE_BYTES", 0)
    layer = nn.Linear(3, 2, bias=False)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(41, 6, 3, generator=generator)
    inputs[40, 1::2] = inputs[40, ::2]
    scale = torch.ones(41, 6)
    scale[40] = torch.tensor([1e9, -1e9] * 3)

    def clipped_sum(examples: int) -> Tensor:
        with ClippedSum(layer, {"weight": layer.weight}, 1.0) as clipped:
            clipped.accumulate((layer(inputs[:examples]).sum(2) * scale[:examples]).sum(1))
            return clipped.take()["weight"].double()

    assert not Outer(inputs, torch.ones(41, 6, 2)).ghost_is_cheaper()
    assert float((clipped_sum(41) - clipped_sum(40)).norm()) <= 1 + 1e-3


@pytest.mark.parametrize("tokens", [2, 7, 40])
def test_the_rounding_bound_is_that_of_all_pairs_of_tokens(tokens: int) -> None:
    """(d + p + 2 T) u (sum_t ||a_t|| ||g_t||)^2: rounding seldom reaches it, so no example would miss a part of it."""
    generator = torch.Generator().manual_seed(tokens)
    inputs, outputs = (torch.randn(3, tokens, width, generator=generator) for width in (90, 110))
    outer = Outer(inputs, outputs)
    assert outer.ghost_is_cheaper()
    lengths = (inputs.double().norm(dim=2) * outputs.double().norm(dim=2)).sum(1)
    wanted = (90 + 110 + 2 * tokens) * 2.0**-24 * lengths.square()
    found = outer._rounding_bound((inputs @ inputs.mT) * (outputs @ outputs.mT)).double()
    assert torch.allclose(found, wanted, rtol=1e-4)


def test_ordinary_gradients_never_exist(denoiser: nn.Module) -> None:
    trainable = choose_trainable(denoiser, "attention")
    with ClippedSum(denoiser, trainable, 1.0) as clipped:
        clipped.accumulate(denoising_losses(denoiser, build_scheduler("epsilon"), **unet_inputs(2, 1)))
    assert all(p.grad is None for p in denoiser.parameters())
    assert "forward" not in vars(next(m for m in denoiser.modules() if isinstance(m, nn.Linear)))


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).sum(1)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Bare(), "scale belongs to a Bare"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "1 is a BatchNorm1d, which mixes.*GroupNorm"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).eval()), "1.weight belongs to a BatchNorm1d"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)), "1 is a BatchNorm1d"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False, track_running_stats=False).eval()), "1 is a"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding="same")), "0.weight belongs to a convolution with padding"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), "0.weight .* pad with zeros"),
        (nn.Sequential(nn.Embedding(3, 3, scale_grad_by_freq=True)), "0.weight .*scale_grad_by_freq, which mixes"),
        (nn.Sequential(nn.Embedding(3, 3, max_norm=1.0)), "0.weight .*max_norm"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "0.in_proj_weight belongs to a MultiheadAttention"),
        (nn.Sequential(nn.ConvTranspose2d(2, 2, 2)), "0.weight belongs to a ConvTranspose2d"),
    ],
)
def test_what_cannot_be_clipped_is_refused_by_name(model: nn.Module, named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        ClippedSum(model, dict(model.named_parameters()), 1.0)


def test_unfrozen_parameter_outside_the_list_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(UnsupportedModel, match=r"1\.weight"):
        ClippedSum(model, {n: p for n, p in model.named_parameters() if n.startswith("0")}, 1.0)


def test_input_shared_between_examples_is_refused() -> None:
    model = nn.Linear(3, 2)
    with ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped:
        losses = model(torch.randn(1, 3)).expand(4, 2).sum(1) * torch.arange(4)
        with pytest.raises(UnsupportedModel, match="shared between examples"):
            clipped.accumulate(losses)


# --- nothing beside the engine --------------------------------------------------------------------------------------


class Forked(nn.Module):
    """Two layers of which a pass uses both or the second alone."""

    def __init__(self) -> None:
        super().__init__()
        self.sometimes, self.always, self.both = nn.Linear(40, 30), nn.Linear(40, 30), True

    def forward(self, x: Tensor) -> Tensor:
        y = self.always(x) + (self.sometimes(x) if self.both else 0)
        return torch.sin(y).flatten(1).sum(1)


def test_a_layer_that_a_pass_leaves_out_counts_as_zero_and_nothing_stale_is_used() -> None:
    """Not the norm that its last pass left behind, which other examples made."""
    torch.manual_seed(0)
    model, x = Forked().double(), torch.randn(3, 2, 40, dtype=torch.float64)
    with ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped:
        clipped.accumulate(1e6 * model(x))
        clipped.take()
        model.both = False
        clipped.accumulate(model(x))
        ours = clipped.take()
    assert_equal_sums(ours, clipped_sum_by_loop(model, lambda i: model(x[i : i + 1])[0], 3, 1.0))
    assert not bool(ours["sometimes.weight"].any())


def test_a_layer_unfrozen_later_is_neither_in_the_norm_nor_in_the_sum() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    model[0].requires_grad_(False)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    x = torch.randn(1, 3, 6, dtype=torch.float64)
    with ClippedSum(model, trainable, 1.0) as clipped:
        model[0].requires_grad_(True)
        clipped.accumulate(1e3 * model(x).square().flatten(1).sum(1))
        ours = clipped.take()
    assert ours.keys() == trainable.keys()
    assert norm_of(ours) == pytest.approx(1.0)


class Functional(nn.Module):
    """Calls its layer, and reads the layer's weight besides."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) @ self.layer.weight).square().flatten(1).sum(1)


def projection_of_attention() -> nn.Module:
    """nn.MultiheadAttention hands the weights of its output layer to a function."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(4, 2, batch_first=True)
            self.inner.in_proj_weight.requires_grad_(False)
            self.inner.in_proj_bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x)[0].square().flatten(1).sum(1)

    return Attention()


@pytest.mark.parametrize("build", [Functional, projection_of_attention])
def test_a_weight_used_outside_its_layer_is_refused(build: Callable[[], nn.Module]) -> None:
    model = build()
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with (
        ClippedSum(model, trainable, 1.0) as clipped,
        pytest.raises(UnsupportedModel, match="weight is used outside its own layer"),
    ):
        clipped.accumulate(model(torch.randn(2, 3, 4)))


def test_an_ordinary_gradient_left_over_is_refused() -> None:
    """From a loss of another loop: an optimizer would use it without noise."""
    model = Tokens(nn.Linear(4, 4))
    model(torch.randn(2, 3, 4)).sum().backward()
    with ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped, pytest.raises(UnsupportedModel):
        clipped.accumulate(model(torch.randn(2, 3, 4)))
