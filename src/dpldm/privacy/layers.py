"""One tap per kind of layer: the ordinary forward, and a backward that returns only the input's gradient.

Autograd would also compute the weight gradient summed over the batch, which DP-SGD cannot use. A tap leaves it
out and hands (inputs, output gradients) of its layer to a recorder instead, which is all that per-example
gradients need. A layer is tapped while `tapped(...)` is open, and restored afterwards.

A tap works wherever autograd does: layers in evaluation mode, below frozen ones, called by keyword, used several times,
recomputed by gradient checkpointing, or under bfloat16 autocast.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpldm.privacy.per_example import Dense, Outer, PerExample, Rows

Record = Callable[[nn.Module, Tensor, Tensor], None]


class Kind(Protocol):
    """What an engine must know about one kind of layer. B examples, R = B K rows."""

    def forward(self, layer: Any, x: Tensor) -> Tensor:
        """The layer's own output."""
        ...

    def grad_input(self, layer: Any, x: Tensor, grad: Tensor) -> Tensor | None:
        """dL/dx from dL/dy, in the precision of `grad`; None if x has no gradient."""
        ...

    def gradients(self, layer: Any, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        """The example gradients of every parameter of the layer, by its name in the layer."""
        ...


class _Tap(torch.autograd.Function):
    """y = layer(x) with a backward that yields dL/dx and reports (x, dL/dy)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: nn.Module, record: Record) -> Tensor:
        # `anchor` requires a gradient, so backward reaches this layer even when x is a constant.
        ctx.save_for_backward(x)
        ctx.layer, ctx.record = layer, record
        return _kind_of_tapped(layer).forward(layer, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (x,) = ctx.saved_tensors
        (grad_output,) = gradients
        ctx.record(ctx.layer, x, grad_output)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        # Under autocast the layer computed in the precision of its output, whatever x and the weights are stored in.
        grad_input = _kind_of_tapped(ctx.layer).grad_input(ctx.layer, x.to(grad_output.dtype), grad_output)
        return None if grad_input is None else grad_input.to(x.dtype), None, None, None


@contextmanager
def tapped(layers: list[nn.Module], record: Record) -> Iterator[None]:
    """While open, every layer of the list reports its calls to `record(layer, input, output gradient)`."""

    def tap(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        anchor = torch.zeros((), requires_grad=True, device=next(layer.parameters(recurse=False)).device)
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

    def forward(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x, layer.weight, layer.bias)

    def grad_input(self, layer: nn.Linear, x: Tensor, grad: Tensor) -> Tensor:
        return grad @ layer.weight.to(grad.dtype)

    def gradients(self, layer: nn.Linear, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        inputs = x.reshape(examples, -1, layer.in_features)
        outputs = grad.reshape(examples, -1, layer.out_features)
        return _with_bias(layer, Outer(inputs, outputs), outputs)


class ConvolutionTap:
    """A convolution is a linear layer over patches: the tokens are output positions, the inputs unfolded patches."""

    def forward(self, layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
        operation: Any = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
        result: Tensor = operation(x, layer.weight, layer.bias, *settings)
        return result

    def grad_input(self, layer: nn.Conv1d | nn.Conv2d, x: Tensor, grad: Tensor) -> Tensor:
        stride, padding, dilation = (list(each) for each in (layer.stride, layer.padding, layer.dilation))
        weight, no_offset = layer.weight.to(grad.dtype), [0] * len(stride)
        settings = (None, stride, padding, dilation, False, no_offset, layer.groups, [True, False, False])
        result: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, *settings)[0]
        return result

    def gradients(self, layer: nn.Conv1d | nn.Conv2d, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        tokens = _by_example(_patches(layer, x), examples)  # (B, T, d), d = input channels * kernel
        outputs = _by_example(grad.flatten(2), examples)  # (B, T, p)
        if layer.groups == 1:
            return _with_bias(layer, Outer(tokens, outputs, layer.weight.shape), outputs)
        grouped = [part.reshape(*part.shape[:2], layer.groups, -1) for part in (outputs, tokens)]
        gradients = torch.einsum("btgp,btgd->bgpd", *grouped).reshape(examples, *layer.weight.shape)
        return _with_bias(layer, Dense(gradients), outputs)


def _patches(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """What the kernel sees at every output position, (R, channels * kernel, T)."""
    if {*layer.kernel_size, *layer.stride} == {1} and set(layer.padding) == {0}:
        return x.flatten(2)
    if isinstance(layer, nn.Conv2d):
        return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    # A line is an image of one row.
    kernel, dilation, stride = ((1, int(each[0])) for each in (layer.kernel_size, layer.dilation, layer.stride))
    return F.unfold(x[:, :, None], kernel, dilation, (0, int(layer.padding[0])), stride)


def _by_example(rows: Tensor, examples: int) -> Tensor:
    """(R, channels, T) -> (B, R/B * T, channels)."""
    return rows.transpose(1, 2).reshape(examples, -1, rows.shape[1])


def _with_bias(layer: Any, weight: PerExample, outputs: Tensor) -> dict[str, PerExample]:
    """Weight and, if there is one, bias: the sum of the output gradients (B, T, p) over tokens."""
    return {"weight": weight} if layer.bias is None else {"weight": weight, "bias": Dense(outputs.sum(1))}


class EmbeddingTap:
    """y_t = W[x_t]: the example gradient of row v is the sum of g_t over the tokens t with x_t = v."""

    def forward(self, layer: nn.Embedding, x: Tensor) -> Tensor:
        return F.embedding(x, layer.weight)

    def grad_input(self, layer: nn.Embedding, x: Tensor, grad: Tensor) -> None:
        return None

    def gradients(self, layer: nn.Embedding, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        ids = x.reshape(examples, -1)
        outputs = grad.reshape(examples, -1, layer.embedding_dim)
        if layer.padding_idx is not None:  # that row is never trained
            outputs = outputs.masked_fill((ids == layer.padding_idx)[..., None], 0.0)
        return {"weight": Rows(ids, outputs, layer.num_embeddings)}


class LayerNormTap:
    """y = x_hat * w + b: example gradients are sums of g * x_hat and of g."""

    def forward(self, layer: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)

    def grad_input(self, layer: nn.LayerNorm, x: Tensor, grad: Tensor) -> Tensor:
        shape = list(layer.normalized_shape)
        weight, bias = (None if p is None else p.to(grad.dtype) for p in (layer.weight, layer.bias))
        _, mean, rstd = torch.native_layer_norm(x, shape, None, None, layer.eps)
        result: Tensor = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(), x, shape, mean, rstd, weight, bias, [True, False, False]
        )[0]
        return result

    def gradients(self, layer: nn.LayerNorm, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        normalised = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        shape = (examples, -1, *layer.normalized_shape)
        return _with_bias(layer, Dense((grad * normalised).reshape(shape).sum(1)), grad.reshape(shape))


class RMSNormTap:
    """y = x / rms(x) * w (Zhang and Sennrich 2019, eq. 4), the mean square taken over the normalised axes."""

    def forward(self, layer: nn.RMSNorm, x: Tensor) -> Tensor:
        return F.rms_norm(x, layer.normalized_shape, layer.weight, layer.eps)

    def grad_input(self, layer: nn.RMSNorm, x: Tensor, grad: Tensor) -> Tensor:
        scaled, (normalised, rate) = grad * layer.weight.to(grad.dtype), self._normalised(layer, x)
        return rate * (scaled - normalised * (scaled * normalised).mean(self._axes(layer), keepdim=True))

    def gradients(self, layer: nn.RMSNorm, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        normalised, _ = self._normalised(layer, x)
        return {"weight": Dense((grad * normalised).reshape(examples, -1, *layer.normalized_shape).sum(1))}

    @staticmethod
    def _axes(layer: nn.RMSNorm) -> list[int]:
        return list(range(-len(layer.normalized_shape), 0))

    def _normalised(self, layer: nn.RMSNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x / rms(x), 1 / rms(x))."""
        epsilon = torch.finfo(x.dtype).eps if layer.eps is None else layer.eps
        rate = torch.rsqrt(x.square().mean(self._axes(layer), keepdim=True) + epsilon)
        return x * rate, rate


class GroupNormTap:
    """As LayerNormTap, with statistics over groups of channels of one image."""

    def forward(self, layer: nn.GroupNorm, x: Tensor) -> Tensor:
        return F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)

    def grad_input(self, layer: nn.GroupNorm, x: Tensor, grad: Tensor) -> Tensor:
        x, grad, weight = x.contiguous(), grad.contiguous(), layer.weight.to(grad.dtype)
        rows, channels, positions = x.shape[0], x.shape[1], x[0, 0].numel()
        sizes = (rows, channels, positions, layer.num_groups)
        _, mean, rstd = torch.native_group_norm(x, None, None, *sizes, layer.eps)
        result: Tensor = torch.ops.aten.native_group_norm_backward(
            grad, x, mean, rstd, weight, *sizes, [True, False, False]
        )[0]
        return result

    def gradients(self, layer: nn.GroupNorm, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        normalised = F.group_norm(x, layer.num_groups, eps=layer.eps)
        rows = (*grad.shape[:2], -1)  # images may have any number of axes
        weights = _by_example((grad * normalised).reshape(rows), examples).sum(1)
        return _with_bias(layer, Dense(weights), _by_example(grad.reshape(rows), examples))


KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: LinearTap(),
    nn.Conv1d: ConvolutionTap(),
    nn.Conv2d: ConvolutionTap(),
    nn.Embedding: EmbeddingTap(),
    nn.LayerNorm: LayerNormTap(),
    nn.GroupNorm: GroupNormTap(),
    nn.RMSNorm: RMSNormTap(),
}


def kind_of(layer: nn.Module) -> Kind | None:
    """The kind of a layer, by the forward of its class: a subclass that computes something else is none of ours."""
    return next((kind for known, kind in KINDS.items() if type(layer).forward is known.forward), None)


def _kind_of_tapped(layer: nn.Module) -> Kind:
    kind = kind_of(layer)
    if kind is None:
        raise TypeError(f"{type(layer).__name__} was tapped without being known.")
    return kind


def refusal(layer: nn.Module) -> str | None:
    """Why the example gradients of this layer's parameters cannot be taken, with the remedy; None if they can."""
    if type(layer).__name__.startswith("Dora"):
        return "belongs to DoRA, whose magnitudes scale a whole weight: set use_dora=False, which is plain LoRA"
    if kind_of(layer) is None:
        kinds = ", ".join(known.__name__ for known in KINDS)
        return f"belongs to a {type(layer).__name__}: freeze it, or use {kinds}"
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return "belongs to a convolution with padding other than a number of zeros: freeze it, or pad with zeros"
    if isinstance(layer, nn.Embedding) and layer.scale_grad_by_freq:
        return "belongs to an Embedding with scale_grad_by_freq, which mixes examples: switch it off"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "belongs to an Embedding with max_norm, which changes weights by data: switch it off"
    return None
