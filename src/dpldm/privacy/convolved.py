"""Per-example gradients of a convolution's weight, without its patches.

A convolution is a linear layer over patches: token t is a place of the output, a_t what the kernel sees there. Patches
repeat every pixel for every place of the kernel (nine times for 3 x 3), so none are formed:

* a_t . a_s is the sum over places of the kernel of x_u . x_v, u and v being the pixels below that place: windows over
  the Gram matrix of the pixels, one axis of the image after the other;
* the clipped sum is the ordinary weight gradient of the convolution, with the output gradients weighted.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

from dpldm.privacy.per_example import Dense, Outer

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """How a kernel moves over the height and the width of an image."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


@dataclass
class Convolved(Outer):
    """Gradients of a weight (p, c, *kernel), c channels to p in K images an example. T = K h w, d = c * kernel."""

    inputs: Tensor  # (B, K, c, H, W)
    outputs: Tensor  # (B, K, p, h, w)
    window: Window

    def sizes(self) -> Pair:
        height, width = self.window.kernel
        return self.inputs.shape[2] * height * width, self.outputs.shape[2]

    def gram_bytes(self) -> int:
        """Of places of the output or of pixels, whichever are more."""
        places = max(each[0, :, 0].numel() for each in (self.inputs, self.outputs))
        return 2 * len(self.inputs) * places**2 * self.inputs.element_size()

    def grams(self) -> tuple[Tensor, Tensor]:
        """The sums of a window have c * kernel terms in all, as those of a patch would have: the same rounding bound.

        What the padding adds is 0.
        """
        examples, images, _, height, width = self.inputs.shape
        pixels, places = (each.transpose(1, 2).flatten(2) for each in (self.inputs, self.outputs))  # (B, channels, T)
        gram = torch.bmm(pixels.mT, pixels).view(examples, images, height, width, images, height, width)
        window, margins = self.window, [side for width in self.window.padding[::-1] for side in (width, width)]
        if any(margins):
            gram = F.pad(gram, (*margins, 0, 0, *margins))
        for axis in range(2):
            gram = _windows(gram, (2 + axis, 5 + axis), window.kernel[axis], window.stride[axis], window.dilation[axis])
        tokens = places.shape[2]
        return gram.reshape(examples, tokens, tokens), torch.bmm(places.mT, places)

    def dense_norms(self) -> Tensor:
        return self._unfolded().dense_norms()

    def add_weighted(self, total: Tensor, weights: Tensor) -> None:
        outputs = (self.outputs * weights.view(-1, 1, 1, 1, 1)).flatten(0, 1)
        window, shape_only = self.window, total.new_empty(self._shape())
        settings = (None, window.stride, window.padding, window.dilation, False, (0, 0), 1, (False, True, False))
        found = torch.ops.aten.convolution_backward(outputs, self.inputs.flatten(0, 1), shape_only, *settings)[1]
        total += found.view(total.shape)

    def dense(self) -> Dense:
        gradients = self._unfolded().dense().gradients
        return Dense(gradients.view(-1, *self._shape()))

    def is_like(self, other: Outer) -> bool:
        return isinstance(other, Convolved) and self.window == other.window and super().is_like(other)

    def _shape(self) -> tuple[int, int, int, int]:
        return self.outputs.shape[2], self.inputs.shape[2], *self.window.kernel

    def _unfolded(self) -> Outer:
        """With patches."""
        window = self.window
        patches = F.unfold(self.inputs.flatten(0, 1), window.kernel, window.dilation, window.padding, window.stride)
        tokens = (torch.unflatten(patches, 0, self.inputs.shape[:2]), self.outputs.flatten(3))  # (B, K, channels, T)
        return Outer(*(each.transpose(2, 3).flatten(1, 2) for each in tokens))


def _windows(gram: Tensor, axes: Pair, kernel: int, stride: int, dilation: int) -> Tensor:
    """Sums along the diagonals of two axes: entry (t, s) is the sum over k of entries (u, v) + k * dilation."""
    count = (gram.shape[axes[0]] - dilation * (kernel - 1) - 1) // stride + 1

    def seen(place: int) -> Tensor:
        index = [slice(None)] * gram.dim()
        for axis in axes:
            index[axis] = slice(place * dilation, place * dilation + stride * (count - 1) + 1, stride)
        return gram[tuple(index)]

    return reduce(add, (seen(place) for place in range(kernel)))
