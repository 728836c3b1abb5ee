"""Per-example gradients of one parameter, in the forms that need the least work.

B examples, T tokens per example (K noise draws of an example are tokens of ONE example), a weight of p x d:

* `Dense`: the gradients themselves, (B, *shape).
* `Outer`: inputs a (B, T, d) and output gradients g (B, T, p), standing for sum_t g_t a_t^T. Norms come from Gram
  matrices without forming the gradient ("ghost norm", Goodfellow 2015; Li et al. 2022), and the clipped sum is one
  matrix product.
* `Convolved` (privacy/convolved.py): the same for a convolution, whose inputs a are patches that are never formed.
* `Rows`: ids (B, T) and gradients g (B, T, d) of the rows of an embedding.

Which is cheaper for a linear layer: T (d + p) <= d p means Outer. The one inequality decides arithmetic for the
norm, memory to hold until the clip factors are known, and bounds the Gram matrices by d p / 2 floats. For a convolution
it reads the same, with the floats of its images for T (d + p): pixels, not patches. Where the gradients of all examples
would not fit into `DENSE_BYTES`, inputs and output gradients are kept all the same. Gradients, or Gram matrices, that
do not fit are formed for a few examples at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

DENSE_BYTES = 256 * 2**20
"""Most that the materialised gradients of one parameter may take, all examples of a physical pass together."""


class PerExample(Protocol):
    """The gradients of one parameter, an example each."""

    def squared_norms(self) -> Tensor:
        """An upper bound of ||g_i||^2 that is exact up to rounding, (B,)."""
        ...

    def add_weighted(self, total: Tensor, weights: Tensor) -> None:
        """total += sum_i weights_i g_i, in place; `total` has the parameter's shape, and weights (B,) are finite.

        0 * inf and 0 * NaN are not 0: an example that must not count is taken out beforehand, by `without`.
        """
        ...

    def without(self, ignored: Tensor) -> "PerExample":
        """The same gradients, but exactly 0 where `ignored` (B,) is True."""
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

    def add_weighted(self, total: Tensor, weights: Tensor) -> None:
        flat = self.gradients.flatten(1)
        if total.is_contiguous():
            total.view(-1).addmv_(flat.mT, weights)
        else:
            total += (weights @ flat).view(total.shape)

    def without(self, ignored: Tensor) -> "Dense":
        return Dense(_emptied(self.gradients, ignored))

    def dense(self) -> "Dense":
        return self


@dataclass
class Outer:
    """Gradients sum_t g_t a_t^T of a p x d weight."""

    inputs: Tensor  # (B, T, d)
    outputs: Tensor  # (B, T, p)

    def squared_norms(self) -> Tensor:
        ghost = self.ghost_is_cheaper()
        examples, needed = len(self.inputs), self.gram_bytes() if ghost else self.dense_bytes()
        if needed > DENSE_BYTES and examples > 1:
            return torch.cat([part.squared_norms() for part in self._parts(max(1, examples * DENSE_BYTES // needed))])
        return self.ghost_norms() if ghost else self.dense_norms()

    def ghost_norms(self) -> Tensor:
        """||sum_t g_t a_t^T||^2 = sum_{t,s} (a_t . a_s)(g_t . g_s), without forming a gradient."""
        of_inputs, of_outputs = self.grams()
        products = of_inputs.mul_(of_outputs)
        # T terms at a time, which the rounding bound counts on
        return products.sum(2).sum(1).add_(self._rounding_bound(products)).clamp_(min=0)

    def dense_norms(self) -> Tensor:
        """From the gradients themselves."""
        lengths = self.inputs.norm(dim=2) * self.outputs.norm(dim=2)
        return self.dense().squared_norms() + _order_bound(lengths)

    def grams(self) -> tuple[Tensor, Tensor]:
        """(a_t . a_s) and (g_t . g_s) of the tokens of every example, (B, T, T) each; not shared with anybody."""
        return torch.bmm(self.inputs, self.inputs.mT), torch.bmm(self.outputs, self.outputs.mT)

    def _rounding_bound(self, products: Tensor) -> Tensor:
        """What cancellation between tokens may have hidden from the Gram sum, (B,).

        Every one of the T^2 products carries a relative error of at most (d + p) u, and adding them up, T terms at a
        time and twice, another 2 T u in whatever order (u = unit round-off; Higham 2002, sec. 3.1 and 4.2), all of it
        relative to absolute values, which sum to at most (sum_t ||a_t|| ||g_t||)^2. Adding the bound can only clip
        more, never less. The squares of ||a_t|| ||g_t|| stand on the diagonal of the products (B, T, T), where nothing
        cancels.
        """
        width, height = self.sizes()
        unit = torch.finfo(products.dtype).eps / 2
        factor = (width + height + 2 * products.shape[1]) * unit
        bound: Tensor = factor * products.diagonal(dim1=1, dim2=2).sqrt().sum(1).square()
        return bound

    def add_weighted(self, total: Tensor, weights: Tensor) -> None:
        inputs, outputs, weights = self.inputs, self.outputs, weights[:, None, None]
        if inputs.shape[2] < outputs.shape[2]:  # weigh the smaller of the two
            inputs = inputs * weights
        else:
            outputs = outputs * weights
        total.addmm_(outputs.flatten(0, 1).mT, inputs.flatten(0, 1))

    def without(self, ignored: Tensor) -> Self:
        return replace(self, inputs=_emptied(self.inputs, ignored), outputs=_emptied(self.outputs, ignored))

    def dense(self) -> Dense:
        return Dense(torch.bmm(self.outputs.mT, self.inputs))

    def sizes(self) -> tuple[int, int]:
        """(d, p)."""
        return self.inputs.shape[2], self.outputs.shape[2]

    def ghost_is_cheaper(self) -> bool:
        """T (d + p) <= d p: what is held is no larger than the gradient, and the norm costs no more arithmetic."""
        width, height = self.sizes()
        return self.inputs[0].numel() + self.outputs[0].numel() <= width * height

    def dense_bytes(self) -> int:
        """Memory of the materialised gradients of all examples."""
        width, height = self.sizes()
        return len(self.inputs) * width * height * self.inputs.element_size()

    def gram_bytes(self) -> int:
        """Memory of the Gram matrices of all examples."""
        return 2 * len(self.inputs) * self.inputs.shape[1] ** 2 * self.inputs.element_size()

    def _parts(self, examples: int) -> Iterator[Self]:
        """So many examples at a time."""
        pieces = zip(torch.split(self.inputs, examples), torch.split(self.outputs, examples), strict=True)
        for inputs, outputs in pieces:
            yield replace(self, inputs=inputs, outputs=outputs)

    def is_like(self, other: "Outer") -> bool:
        """Whether tokens of both can stand side by side, as those of one layer."""
        shapes = [(each.inputs.shape[2:], each.outputs.shape[2:]) for each in (self, other)]
        return type(self) is type(other) and shapes[0] == shapes[1]


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

    def add_weighted(self, total: Tensor, weights: Tensor) -> None:
        outputs = self.outputs * weights[:, None, None]
        total.index_add_(0, self.ids.flatten(), outputs.flatten(0, 1))

    def without(self, ignored: Tensor) -> "Rows":
        return replace(self, outputs=_emptied(self.outputs, ignored))

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


def _emptied(rows: Tensor, ignored: Tensor) -> Tensor:
    """Rows of these examples set to 0."""
    return rows.masked_fill(ignored.view(-1, *[1] * (rows.dim() - 1)), 0.0)


def compact(gradient: PerExample) -> PerExample:
    """The cheapest form to hold until the clip factors are known."""
    if isinstance(gradient, Outer) and not gradient.ghost_is_cheaper() and gradient.dense_bytes() <= DENSE_BYTES:
        return gradient.dense()
    return gradient


def merge(first: PerExample, second: PerExample) -> PerExample:
    """Gradients of a parameter that was used twice: their sum, which is not the sum of their norms."""
    if isinstance(first, Outer) and isinstance(second, Outer) and first.is_like(second):
        inputs, outputs = torch.cat([first.inputs, second.inputs], 1), torch.cat([first.outputs, second.outputs], 1)
        return compact(replace(first, inputs=inputs, outputs=outputs))
    if isinstance(first, Rows) and isinstance(second, Rows):
        return Rows(torch.cat([first.ids, second.ids], 1), torch.cat([first.outputs, second.outputs], 1), first.height)
    return Dense(first.dense().gradients + second.dense().gradients)
