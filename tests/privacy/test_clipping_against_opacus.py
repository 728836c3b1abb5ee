"""The clipped sum of a small network against Opacus, a library written by others."""

import torch
from opacus import GradSampleModule
from torch import nn

from dpldm.privacy.clipping import ClippedSum


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.SiLU(), nn.Flatten(2), nn.LayerNorm(64), nn.Linear(64, 5)
    ).double()


def losses(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().flatten(1).sum(1)


def test_clipped_sum_equals_opacus() -> None:
    x = torch.randn(7, 1, 8, 8, dtype=torch.float64) * torch.logspace(-2, 0.5, 7, dtype=torch.float64).view(-1, 1, 1, 1)
    clip_norm = 55.0
    ours_model, their_model = build(), GradSampleModule(build(), loss_reduction="sum")
    with ClippedSum(ours_model, dict(ours_model.named_parameters()), clip_norm) as clipped:
        clipped.accumulate(losses(ours_model, x))
        ours = clipped.take()
    losses(their_model, x).sum().backward()
    samples = {name.removeprefix("_module."): p.grad_sample for name, p in their_model.named_parameters()}
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in samples.values()]).norm(dim=0)
    factors = (clip_norm / norms).clamp(max=1)
    assert 0 < int((factors < 1).sum()) < 7, "some examples must be clipped and some not"
    for name, gradient in samples.items():
        expected = torch.einsum("b,b...->...", factors, gradient)
        torch.testing.assert_close(ours[name], expected, rtol=1e-10, atol=1e-10)
