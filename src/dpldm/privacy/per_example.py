"""Per-example gradients of one parameter, in the forms that need the least work.

B examples, T tokens per example (K noise draws of an example are tokens of ONE example), a weight of p x d:

* `Dense`: the gradients themselves, (B, *shape).
* `Outer`: inputs a (B, T, d) and output gradients g (B, T, p), standing for sum_t g_t a_t^T. Norms come from Gram
  matrices without forming the gradient ("ghost norm", Goodfellow 2015; Li et al. 2022), and the clipped sum is one
  matrix product.
* `Rows`: ids (B, T) and gradients g (B, T, d) of the rows of an embedding.

Which is cheaper for a linear layer: T (d + p) <= d p means Outer. The one inequality decides arithmetic for the
norm, memory to hold until the clip factors are known, and bounds the Gram matrices by d p / 2 floats. Where the
gradients of all examples would not fit into `DENSE_BYTES`, Outer is kept all the same, and its norms are taken from
a few examples' gradients at a time.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

DENSE_BYTES = 256 * 2**20
"""Most that the materialised gradients of one parameter may take, all examples of a physical pass together."""


class PerExample(Protocol):
    """The gradients of one parameter, an example each."""

    def squared_norms(self) -> Tensor:
        """An upper bound of ||g_i||^2 that is exact up to rounding, (B,)."""
        ...

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """sum_i weights_i g_i in the parameter's shape; an example of weight 0 contributes exactly 0."""
        ...

    def dense(self) -> "Dense":
        """The same gradients, materialised."""
        ...


@dataclass
class Dense:
    """Materialised gradients (B, *shape)."""

    gradients: Tensor

    def squared_norms(self) -> Tensor:
        return self.gradients.flatten(1).square().sum(1)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        flat = _without_ignored(self.gradients.flatten(1), weights)
        return (weights @ flat).view(self.gradients.shape[1:])

    def dense(self) -> "Dense":
        return self


@dataclass
class Outer:
    """Gradients sum_t g_t a_t^T of a p x d weight (viewed as `shape`, if given)."""

    inputs: Tensor  # (B, T, d)
    outputs: Tensor  # (B, T, p)
    shape: torch.Size | None = None

    def squared_norms(self) -> Tensor:
        if not self.ghost_is_cheaper():
            lengths = self.inputs.norm(dim=2) * self.outputs.norm(dim=2)
            return self._squared_norms_in_parts() + _order_bound(lengths)
        # ||sum_t g_t a_t^T||^2 = sum_{t,s} (a_t . a_s)(g_t . g_s)
        grams = self.inputs @ self.inputs.mT, self.outputs @ self.outputs.mT
        squared: Tensor = (grams[0] * grams[1]).sum(2).sum(1) + self._rounding_bound(*grams)  # T terms at a time
        return squared.clamp(min=0)

    def _rounding_bound(self, of_inputs: Tensor, of_outputs: Tensor) -> Tensor:
        """What cancellation between tokens may have hidden from the Gram sum, (B,).

        Every one of the T^2 products carries a relative error of at most (d + p) u, and adding them up, T terms at a
        time and twice, another 2 T u in whatever order (u = unit round-off; Higham 2002, sec. 3.1 and 4.2), all of it
        relative to absolute values, which sum to at most (sum_t ||a_t|| ||g_t||)^2. Adding the bound can only clip
        more, never less. The squares of the norms stand on the diagonals of the Gram matrices (B, T, T), where nothing
        cancels.
        """
        _, tokens, width = self.inputs.shape
        unit = torch.finfo(self.inputs.dtype).eps / 2
        factor = (width + self.outputs.shape[2] + 2 * tokens) * unit
        lengths = [gram.diagonal(dim1=1, dim2=2).sqrt() for gram in (of_inputs, of_outputs)]
        bound: Tensor = factor * (lengths[0] * lengths[1]).sum(1).square()
        return bound

    def weighted_sum(self, weights: Tensor) -> Tensor:
        inputs, outputs = _without_ignored(self.inputs, weights), _without_ignored(self.outputs, weights)
        if inputs.shape[2] < outputs.shape[2]:  # weigh the smaller of the two
            inputs = inputs * weights[:, None, None]
        else:
            outputs = outputs * weights[:, None, None]
        total = outputs.flatten(0, 1).mT @ inputs.flatten(0, 1)
        return total if self.shape is None else total.view(self.shape)

    def dense(self) -> Dense:
        gradients = torch.bmm(self.outputs.mT, self.inputs)
        return Dense(gradients if self.shape is None else gradients.view(-1, *self.shape))

    def ghost_is_cheaper(self) -> bool:
        """T (d + p) <= d p: norms from Gram matrices cost less than gradients, in arithmetic and in memory."""
        _, tokens, width = self.inputs.shape
        height = self.outputs.shape[2]
        return tokens * (width + height) <= width * height

    def dense_bytes(self) -> int:
        """Memory of the materialised gradients of all examples."""
        examples, _, width = self.inputs.shape
        return examples * width * self.outputs.shape[2] * self.inputs.element_size()

    def _squared_norms_in_parts(self) -> Tensor:
        """Norms of materialised gradients, so few examples at a time that they fit into `DENSE_BYTES`."""
        examples = len(self.inputs)
        part = max(1, examples * DENSE_BYTES // max(1, self.dense_bytes()))
        pieces = zip(torch.split(self.inputs, part), torch.split(self.outputs, part), strict=True)
        return torch.cat([Outer(inputs, outputs).dense().squared_norms() for inputs, outputs in pieces])


@dataclass
class Rows:
    """Gradients of an embedding of `height` rows: token t of an example adds g_t to row ids_t."""

    ids: Tensor  # (B, T) int64
    outputs: Tensor  # (B, T, d)
    height: int

    def squared_norms(self) -> Tensor:
        """Tokens of one example with the same id are added before the square."""
        examples, width = len(self.ids), self.outputs.shape[2]
        example = torch.arange(examples, device=self.ids.device)[:, None]
        places, inverse = torch.unique(example * self.height + self.ids, return_inverse=True)
        rows = self.outputs.new_zeros(len(places), width).index_add_(0, inverse.flatten(), self.outputs.flatten(0, 1))
        squares = rows.square().sum(1)
        norms = squares.new_zeros(examples).index_add_(0, places // self.height, squares)
        return norms + _order_bound(self.outputs.norm(dim=2))

    def weighted_sum(self, weights: Tensor) -> Tensor:
        outputs = _without_ignored(self.outputs, weights) * weights[:, None, None]
        total = outputs.new_zeros(self.height, outputs.shape[2])
        return total.index_add_(0, self.ids.flatten(), outputs.flatten(0, 1))

    def dense(self) -> Dense:
        examples, _, width = self.outputs.shape
        gradients = self.outputs.new_zeros(examples, self.height, width)
        return Dense(gradients.scatter_add_(1, self.ids[..., None].expand(-1, -1, width), self.outputs))


def _order_bound(lengths: Tensor) -> Tensor:
    """What is added to a squared norm because tokens of these lengths (B, T) may cancel in it, (B,).

    The norm adds an example's tokens in one order, the clipped sum in another, between those of other examples. With
    a norm of at least sqrt(8 u) sum_t length (u = unit round-off), the parts of a clipped example stay below
    C / sqrt(8 u), and what float32 loses beside them below sqrt(u / 8) C = 1e-4 C; and 2 T u sum_t length is what
    adding them up in the norm may have lost itself. Only where tokens cancel almost wholly does either change a norm.
    """
    unit = torch.finfo(lengths.dtype).eps / 2
    bound: Tensor = max(8 * unit, (2 * lengths.shape[1] * unit) ** 2) * lengths.sum(1).square()
    return bound


def _without_ignored(rows: Tensor, weights: Tensor) -> Tensor:
    """Rows of weight 0 set to 0, because 0 * inf and 0 * NaN are not 0."""
    ignored = weights == 0
    if not bool(ignored.any()):
        return rows
    return rows.masked_fill(ignored.view(-1, *[1] * (rows.dim() - 1)), 0.0)


def compact(gradient: PerExample) -> PerExample:
    """The cheapest form to hold until the clip factors are known."""
    if isinstance(gradient, Outer) and not gradient.ghost_is_cheaper() and gradient.dense_bytes() <= DENSE_BYTES:
        return gradient.dense()
    return gradient


def merge(first: PerExample, second: PerExample) -> PerExample:
    """Gradients of a parameter that was used twice: their sum, which is not the sum of their norms."""
    if isinstance(first, Outer) and isinstance(second, Outer) and first.shape == second.shape:
        inputs, outputs = torch.cat([first.inputs, second.inputs], 1), torch.cat([first.outputs, second.outputs], 1)
        return compact(Outer(inputs, outputs, first.shape))
    if isinstance(first, Rows) and isinstance(second, Rows):
        return Rows(torch.cat([first.ids, second.ids], 1), torch.cat([first.outputs, second.outputs], 1), first.height)
    return Dense(first.dense().gradients + second.dense().gradients)
