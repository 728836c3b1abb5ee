"""Examples that meet inside a network are found, those that do not are let pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dpldm.privacy.independence import ExamplesMeet, check_independence


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def normed_without_gradient(x: Tensor) -> Tensor:
    return x / x.detach().square().mean().sqrt()


def ranked(x: Tensor) -> Tensor:
    return x * (x[:1] > x[1:2]).float()


def apart(x: Tensor) -> Tensor:
    return x / x.square().mean(1, keepdim=True).sqrt()


def check(coupling: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    check_independence(
        lambda x: coupling(torch.tanh(layer(x))).square().sum(1) + coupling(layer(x)).sum(1),
        torch.randn(2, 4),
        torch.randn(2, 4),
        list(layer.parameters()),
    )


@pytest.mark.parametrize("coupling", [centred, normed_without_gradient, ranked, nn.BatchNorm1d(4)], ids=str)
def test_what_couples_examples_is_found(coupling: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ExamplesMeet, match="statistics over the batch"):
        check(coupling)


@pytest.mark.parametrize("coupling", [apart, nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4).eval()], ids=str)
def test_what_keeps_them_apart_passes(coupling: Callable[[Tensor], Tensor]) -> None:
    check(coupling)


def test_a_gradient_that_is_no_number_is_not_taken_for_equal() -> None:
    layer = nn.Linear(2, 1)
    with pytest.raises(ExamplesMeet):
        check_independence(
            lambda x: layer(x).sum(1) * float("nan"), torch.ones(2, 2), torch.ones(2, 2), list(layer.parameters())
        )
