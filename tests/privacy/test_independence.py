"""Examples that meet inside a network are found, and layers that the engine would misread."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dpldm.privacy.independence import ExamplesMeet, check_example_gradients, check_independence
from dpldm.privacy.layers import UnsupportedModel


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


class Positions(nn.Module):
    """Rows (B, T, 4) with trained positions, whose ids (T,) all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.read = nn.Embedding(5, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.read(x + self.places(torch.arange(x.shape[1])))).square().flatten(1).sum(1)


class TokensFirst(nn.Module):
    """Rows (B, T, 4) in a layer that sees (T, B, 4), as nn.MultiheadAttention and recurrent layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.read(x.transpose(0, 1))).square().sum((0, 2))


def check_engine(model: nn.Module, tokens: int) -> None:
    torch.manual_seed(0)
    check_example_gradients(model, dict(model.named_parameters()), model, torch.randn(3, tokens, 4))


@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", [Positions, TokensFirst])
def test_rows_that_are_no_examples_are_found_however_many_there_are(kind: type[nn.Module], tokens: int) -> None:
    with pytest.raises(UnsupportedModel):
        check_engine(kind(), tokens)


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.read(x)).square().flatten(1).sum(1)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_what_the_engine_reads_rightly_passes(tokens: int) -> None:
    model = Summed()
    check_engine(model, tokens)
    assert "forward" not in vars(model.read), "the taps are taken off again"
    assert all(p.grad is None for p in model.parameters())


def test_a_tap_that_gets_another_gradient_than_autograd_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpldm.privacy.per_example.Outer.add_weighted", lambda self, total, weights: None)
    monkeypatch.setattr("dpldm.privacy.per_example.Dense.add_weighted", lambda self, total, weights: None)
    with pytest.raises(UnsupportedModel, match="cannot be told"):
        check_engine(Summed(), 2)
