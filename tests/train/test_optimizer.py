"""The optimizer against torch's Adam and a closed form, the averages against sums over all iterates."""

import pytest
import torch
from torch import nn

from dpldm.train.checkpoint import optimizer_tensors, restore_optimizer
from dpldm.train.optimizer import LEAST_SHARE, CorrectedAdam, averaged


def walk(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        optimizer.step()


def test_without_noise_it_is_adam() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 50, dtype=torch.float64)) for _ in range(2))
    walk(CorrectedAdam([ours], 0.1, (0.8, 0.95), 0.0), ours, 20)
    walk(torch.optim.Adam([theirs], 0.1, (0.8, 0.95), eps=1e-30), theirs, 20)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_second_moment_leaves_the_noise_out() -> None:
    deviation, gradient = 2.0, torch.tensor([3.0, 1.0])
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = CorrectedAdam([parameter], 1.0, (0.9, 0.999), deviation)
    parameter.grad = gradient
    optimizer.step()
    floor = LEAST_SHARE * deviation**2
    expected = -gradient / torch.tensor([9.0 - 4.0, floor]).sqrt()  # 1 - 4 is below the floor
    torch.testing.assert_close(parameter.detach(), expected)


def test_a_larger_signal_moves_further_although_noise_hides_it() -> None:
    """What the correction is for: Adam hardly tells the two coordinates' scales from the noise's."""
    noise = torch.Generator().manual_seed(1)
    moved = {}
    for kind, deviation in (("adam", 0.0), ("corrected", 5.0)):
        parameter = nn.Parameter(torch.zeros(2, 4000))
        optimizer = CorrectedAdam([parameter], 1e-3, (0.9, 0.999), deviation)
        for _ in range(300):
            parameter.grad = torch.tensor([[0.5], [2.0]]) + 5 * torch.randn(2, 4000, generator=noise)
            optimizer.step()
        moved[kind] = -parameter.detach().mean(1)
    adam, corrected = (moved[kind][1] / moved[kind][0] for kind in ("adam", "corrected"))
    assert float(adam) == pytest.approx(4, rel=0.1)  # proportional to the gradient: plain momentum
    assert float(corrected) < 0.9 * float(adam)  # closer to Adam's equal steps


def test_its_state_survives_a_checkpoint() -> None:
    straight, resumed = (nn.Parameter(torch.zeros(10)) for _ in range(2))
    optimizer = CorrectedAdam([straight], 0.1, (0.9, 0.99), 0.3)
    walk(optimizer, straight, 5)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, ["w"]).items()}
    with torch.no_grad():
        resumed.copy_(straight)
    again = CorrectedAdam([resumed], 0.1, (0.9, 0.99), 0.3)
    restore_optimizer(again, ["w"], kept)
    walk(optimizer, straight, 5, seed=1)
    walk(again, resumed, 5, seed=1)
    assert torch.equal(straight, resumed)


@pytest.mark.parametrize("kind", ["ema", "uniform"])
def test_the_average_is_the_stated_one(kind: str) -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    average, iterates = averaged(kind, [parameter], 0.8), []
    expected = torch.zeros(3, dtype=torch.float64)
    for number in range(1, 40):
        with torch.no_grad():
            parameter.copy_(torch.randn(3, generator=torch.Generator().manual_seed(number)))
        iterates.append(parameter.detach().clone())
        average.step([parameter])
        decay = 0.0 if number == 1 else min(0.8, number / (9 + number))
        expected = decay * expected + (1 - decay) * iterates[-1]
    if kind == "uniform":
        expected = torch.stack(iterates).mean(0)
    torch.testing.assert_close(average.shadow_params[0].double(), expected, rtol=1e-6, atol=1e-6)
