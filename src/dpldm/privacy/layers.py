"""One tap per kind of layer: the ordinary forward, and a backward that returns only the input's gradient.

Autograd would also compute the weight gradient summed over the batch, which DP-SGD cannot use. A tap leaves it
out and hands (inputs, output gradients) of its layer to a recorder instead, which is all that per-example
gradients need. A layer is tapped while `tapped(...)` is open, and restored afterwards.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpldm.privacy.per_example import Dense, Outer, PerExample

Record = Callable[[nn.Module, Tensor, Tensor], None]


class _Tap(torch.autograd.Function):
    """y = layer(x) with a backward that yields dL/dx and reports (x, dL/dy)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: nn.Module, record: Record) -> Tensor:
        # `anchor` requires a gradient, so backward reaches this layer even when x is a constant.
        ctx.save_for_backward(x)
        ctx.layer, ctx.record = layer, record
        y: Tensor = KINDS[type(layer)].forward(layer, x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (x,) = ctx.saved_tensors
        (grad_output,) = gradients
        ctx.record(ctx.layer, x, grad_output)
        grad_input = KINDS[type(ctx.layer)].grad_input(ctx.layer, x, grad_output) if ctx.needs_input_grad[0] else None
        return grad_input, None, None, None


@contextmanager
def tapped(layers: list[nn.Module], record: Record) -> Iterator[None]:
    """While open, every layer of the list reports its calls to `record(layer, input, output gradient)`."""
    anchor = torch.zeros((), requires_grad=True)

    def tap(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        # Called by keyword or by position, as the stock modules do; one tensor in, one tensor out.
        return lambda input: _Tap.apply(input, anchor, layer, record)  # type: ignore[no-untyped-call]

    for layer in layers:
        layer.forward = tap(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # uncovers the method of the class


class LinearTap:
    """y = x W^T + b over tokens: example gradient of W is sum_t g_t x_t^T, of b is sum_t g_t."""

    @staticmethod
    def forward(layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    def grad_input(layer: nn.Linear, x: Tensor, grad: Tensor) -> Tensor:
        return grad @ layer.weight

    @staticmethod
    def gradients(layer: nn.Linear, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        inputs = x.reshape(examples, -1, layer.in_features)
        outputs = grad.reshape(examples, -1, layer.out_features)
        found: dict[str, PerExample] = {"weight": Outer(inputs, outputs)}
        if layer.bias is not None:
            found["bias"] = Dense(outputs.sum(1))
        return found


class Conv2dTap:
    """A convolution is a linear layer over patches: the tokens are output positions, the inputs unfolded patches."""

    @staticmethod
    def forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def grad_input(layer: nn.Conv2d, x: Tensor, grad: Tensor) -> Tensor:
        padding, groups = list(layer.padding), layer.groups
        return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
            grad,
            x,
            layer.weight,
            None,
            list(layer.stride),
            padding,
            list(layer.dilation),
            False,
            [0, 0],
            groups,
            [True, False, False],
        )[0]

    @staticmethod
    def gradients(layer: nn.Conv2d, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0):
            patches = x.flatten(2)  # (rows, d, T)
        else:
            padding = cast(tuple[int, int], layer.padding)  # text such as "same" is refused when tapping
            patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
        tokens = _by_example(patches, examples)
        outputs = _by_example(grad.flatten(2), examples)
        found: dict[str, PerExample] = {"weight": Outer(tokens, outputs, layer.weight.shape)}
        if layer.bias is not None:
            found["bias"] = Dense(outputs.sum(1))
        return found


def _by_example(rows: Tensor, examples: int) -> Tensor:
    """(rows, channels, T) -> (examples, rows/examples * T, channels)."""
    return rows.transpose(1, 2).reshape(examples, -1, rows.shape[1])


class LayerNormTap:
    """y = x_hat * w + b: example gradients are sums of g * x_hat and of g."""

    @staticmethod
    def forward(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)

    @staticmethod
    def grad_input(layer: nn.LayerNorm, x: Tensor, grad: Tensor) -> Tensor:
        shape = list(layer.normalized_shape)
        _, mean, rstd = torch.native_layer_norm(x, shape, None, None, layer.eps)
        return torch.ops.aten.native_layer_norm_backward(  # type: ignore[no-any-return]
            grad.contiguous(), x, shape, mean, rstd, layer.weight, layer.bias, [True, False, False]
        )[0]

    @staticmethod
    def gradients(layer: nn.LayerNorm, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        normalised = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        shape = (examples, -1, *layer.normalized_shape)
        found: dict[str, PerExample] = {"weight": Dense((grad * normalised).reshape(shape).sum(1))}
        if layer.bias is not None:
            found["bias"] = Dense(grad.reshape(shape).sum(1))
        return found


class GroupNormTap:
    """As LayerNormTap, with statistics over groups of channels of one image."""

    @staticmethod
    def forward(layer: nn.GroupNorm, x: Tensor) -> Tensor:
        return F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)

    @staticmethod
    def grad_input(layer: nn.GroupNorm, x: Tensor, grad: Tensor) -> Tensor:
        x, grad = x.contiguous(), grad.contiguous()
        rows, channels, positions = x.shape[0], x.shape[1], x[0, 0].numel()
        _, mean, rstd = torch.native_group_norm(x, None, None, rows, channels, positions, layer.num_groups, layer.eps)
        return torch.ops.aten.native_group_norm_backward(  # type: ignore[no-any-return]
            grad,
            x,
            mean,
            rstd,
            layer.weight,
            rows,
            channels,
            positions,
            layer.num_groups,
            [True, False, False],
        )[0]

    @staticmethod
    def gradients(layer: nn.GroupNorm, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        normalised = F.group_norm(x, layer.num_groups, eps=layer.eps)
        return {
            "weight": Dense(_by_example((grad * normalised).flatten(2), examples).sum(1)),
            "bias": Dense(_by_example(grad.flatten(2), examples).sum(1)),
        }


KINDS: dict[type[nn.Module], Any] = {
    nn.Linear: LinearTap,
    nn.Conv2d: Conv2dTap,
    nn.LayerNorm: LayerNormTap,
    nn.GroupNorm: GroupNormTap,
}
