"""The clipped sum against an autograd loop over single examples, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpldm.models.denoiser import build_denoiser, build_scheduler, condition, denoising_losses
from dpldm.models.trainable import choose_trainable
from dpldm.privacy.clipping import ClippedSum, UnsupportedModel


def clipped_sum_by_loop(model: nn.Module, losses_of, examples: int, clip_norm: float) -> dict[str, Tensor]:
    """The definition: one backward pass per example, one norm over all trainable parameters."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trainable.items()}
    for i in range(examples):
        gradients = torch.autograd.grad(losses_of(i), list(trainable.values()), allow_unused=True)
        gradients = [
            torch.zeros_like(p) if g is None else g for g, p in zip(gradients, trainable.values(), strict=True)
        ]
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        factor = min(1.0, clip_norm / norm) if norm else 1.0
        for name, gradient in zip(trainable, gradients, strict=True):
            total[name] += factor * gradient
    return total


def assert_equal_sums(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert ours.keys() == theirs.keys()
    scale = max(float(t.abs().max()) for t in theirs.values())
    assert scale > 0, "an oracle of zeros would pass anything"
    for name, expected in theirs.items():
        assert float((ours[name] - expected).abs().max()) <= tolerance * scale, name


class Tokens(nn.Module):
    """A layer under test followed by a fixed non-linear read-out, one loss per example."""

    def __init__(self, layer: nn.Module, uses: int = 1) -> None:
        super().__init__()
        self.layer, self.uses = layer, uses

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.uses):
            x = torch.sin(self.layer(x))
        return x.square().flatten(1).sum(1) + x.flatten(1).sum(1)


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
        ("layer norm", nn.LayerNorm(6), (5, 6), 1),
        ("layer norm, no bias", nn.LayerNorm(6, bias=False), (5, 6), 1),
        ("group norm", nn.GroupNorm(2, 6), (6, 4, 4), 1),
        ("group norm, used twice", nn.GroupNorm(2, 6), (6, 4, 4), 2),
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


def test_cancelling_tokens_cannot_hide_a_norm() -> None:
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
    x = torch.cat([base, base + 1e-6 * torch.randn(1, 1, 300)], 1) * 1e4
    with ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped:
        clipped.accumulate(model(x))
        total = clipped.take()["linear.weight"]
    assert float(total.double().norm()) <= 1 + 1e-5


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


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Bare(), "scale"),
        (Tied(), r"second\.weight is tied"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "1.weight"),
        (nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), "0.weight"),
        (nn.Sequential(nn.Embedding(3, 3)), "0.weight"),
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
