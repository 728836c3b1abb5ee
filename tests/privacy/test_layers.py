"""The whole table: kind of layer x form of its gradient x tokens x draws x uses x bias x precision, against a loop."""

import copy
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dpldm.privacy import per_example
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.layers import KINDS as KNOWN
from dpldm.privacy.per_example import Outer
from oracles import Tokens, assert_equal_sums, clipped_sum_by_loop, gradients_by_loop, norm_of

SIDES = {1: (1, 1), 16: (4, 4), 77: (7, 11), 256: (16, 16)}
"""Height and width of images with so many positions."""

KINDS: dict[str, Callable[[bool], tuple[nn.Module, Callable[[int], tuple[int, ...]]]]] = {
    "linear": lambda bias: (nn.Linear(6, 6, bias=bias), lambda tokens: (tokens, 6)),
    "conv 1x1": lambda bias: (nn.Conv2d(4, 4, 1, bias=bias), lambda tokens: (4, *SIDES[tokens])),
    "conv 3x3": lambda bias: (nn.Conv2d(3, 3, 3, padding=1, bias=bias), lambda tokens: (3, *SIDES[tokens])),
    "conv in groups": lambda bias: (
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=bias),
        lambda tokens: (4, *SIDES[tokens]),
    ),
    "conv 1d": lambda bias: (nn.Conv1d(3, 3, 3, padding=1, bias=bias), lambda tokens: (3, tokens)),
    "layer norm": lambda bias: (nn.LayerNorm(5, bias=bias), lambda tokens: (tokens, 5)),
    "group norm": lambda bias: (nn.GroupNorm(2, 6), lambda tokens: (6, *SIDES[tokens])),
    "rms norm": lambda bias: (nn.RMSNorm(5, eps=1e-5), lambda tokens: (tokens, 5)),
    "embedding": lambda bias: (Vocabulary(), lambda tokens: (tokens,)),
}
"""Every kind of layer that the engine knows, with the shape of one row of so many tokens."""


class Vocabulary(nn.Module):
    """An embedding of places and signs, so that it can stand where layers of numbers stand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 1)

    def forward(self, x: Tensor) -> Tensor:
        ids = (2 * torch.arange(x.shape[-1]) + (x > 0)) % 9
        return self.table(ids)[..., 0] + x


HAS_TWO_FORMS = ("linear", "conv 1x1", "conv 3x3", "conv 1d")


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("tokens", [1, 16, 77, 256])
@pytest.mark.parametrize(("kind", "form"), [(k, "dense") for k in KINDS] + [(k, "ghost") for k in HAS_TWO_FORMS])
def test_every_kind_of_layer_in_every_form(
    monkeypatch: pytest.MonkeyPatch, kind: str, tokens: int, draws: int, uses: int, form: str
) -> None:
    """The whole table, with and without bias, whatever form the inequality prefers."""
    monkeypatch.setattr(Outer, "_rounding_bound", lambda self, products: torch.zeros(len(self.inputs)))
    monkeypatch.setattr(per_example, "_order_bound", lambda lengths: torch.zeros(len(lengths)))
    monkeypatch.setattr(Outer, "ghost_is_cheaper", lambda self: form == "ghost")
    for bias in (True, False):
        torch.manual_seed(tokens)
        layer, shape_of = KINDS[kind](bias)
        model = Tokens(layer, uses)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p) / math.sqrt(p[0].numel()))
        x = torch.randn(3, draws, *shape_of(tokens))
        x *= torch.tensor([0.1, 1.0, 3.0]).view(3, *[1] * (x.dim() - 1))
        exact, inputs = copy.deepcopy(model).double(), x.double()
        mean_loss = partial(lambda of, data, i: of(data[i]).mean(), exact, inputs)
        norms = sorted(norm_of(each) for each in gradients_by_loop(exact, mean_loss, 3))
        clip_norm = (norms[0] + norms[-1]) / 2  # some are clipped, some are not
        theirs = clipped_sum_by_loop(exact, mean_loss, 3, clip_norm)
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            same, rows = copy.deepcopy(model).to(dtype), x.to(dtype)
            with ClippedSum(same, dict(same.named_parameters()), clip_norm, draws) as clipped:
                clipped.accumulate(same(rows.flatten(0, 1)).view(3, draws).mean(1))
                assert_equal_sums(clipped.take(), theirs, tolerance)


def test_no_kind_of_layer_is_left_out() -> None:
    tested = {type(m) for build in KINDS.values() for m in build(True)[0].modules()} - {Vocabulary}
    assert tested == set(KNOWN)
