"""What the gradient engine is held against: the definition, one backward pass per example."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Gradients = dict[str, Tensor]


class Tokens(nn.Module):
    """A layer under test followed by a fixed non-linear read-out, one loss per example."""

    def __init__(self, layer: nn.Module, uses: int = 1) -> None:
        super().__init__()
        self.layer, self.uses = layer, uses

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.uses):
            x = torch.sin(self.layer(x))
        return x.square().flatten(1).sum(1) + x.flatten(1).sum(1)


def gradients_by_loop(model: nn.Module, losses_of: Callable[[int], Tensor], examples: int) -> list[Gradients]:
    """The gradient of each example's loss by one backward pass of its own; zero where autograd finds none."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for i in range(examples):
        gradients = torch.autograd.grad(losses_of(i), list(trainable.values()), allow_unused=True)
        found.append(
            {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(trainable.items(), gradients, strict=True)}
        )
    return found


def norm_of(gradients: Gradients) -> float:
    """One norm over all parameters."""
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))


def clipped_sum_by_loop(
    model: nn.Module, losses_of: Callable[[int], Tensor], examples: int, clip_norm: float
) -> Gradients:
    """sum_i min(1, C / ||g_i||) g_i."""
    gradients = gradients_by_loop(model, losses_of, examples)
    factors = [min(1.0, clip_norm / norm) if (norm := norm_of(each)) else 1.0 for each in gradients]
    return {name: sum(f * each[name] for f, each in zip(factors, gradients, strict=True)) for name in gradients[0]}


def assert_equal_sums(ours: Gradients, theirs: Gradients, tolerance: float = 1e-10) -> None:
    """Equal names, and equal values up to `tolerance` of the largest."""
    assert ours.keys() == theirs.keys()
    scale = max(float(t.abs().max()) for t in theirs.values())
    assert scale > 0, "an oracle of zeros would pass anything"
    for name, expected in theirs.items():
        assert float((ours[name] - expected).abs().max()) <= tolerance * scale, name
