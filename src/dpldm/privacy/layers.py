"""One tap per kind of layer: the ordinary forward with frozen parameters, and a hook where its gradient comes back.

Autograd would also compute the weight gradient summed over the batch, which DP-SGD cannot use. A tapped layer runs with
its parameters detached, so that autograd leaves it out, and a hook on the output hands (inputs, output gradients) to a
recorder instead, which is all that per-example gradients need. A layer is tapped while `tapped(...)` is open, and
restored afterwards.

A tap works wherever autograd does: layers in evaluation mode, below frozen ones, called by keyword, used several times,
recomputed by gradient checkpointing, or under bfloat16 autocast.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpldm.privacy.convolved import Convolved, Window
from dpldm.privacy.per_example import Dense, Outer, PerExample, Rows


class UnsupportedModel(ValueError):
    """A trainable parameter whose per-example gradient this engine cannot take."""


Record = Callable[[nn.Module, Tensor, Tensor], None]


class Kind(Protocol):
    """What an engine must know about one kind of layer. B examples, R = B K rows."""

    def forward(self, layer: Any, x: Tensor) -> Tensor:
        """The layer's own output, as a function of x alone: no gradient reaches its parameters."""
        ...

    def gradients(self, layer: Any, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        """The example gradients of every parameter of the layer, by its name in the layer."""
        ...


class _Reached(torch.autograd.Function):
    """y itself, as a tensor that backward reaches though nothing before it has a gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


@contextmanager
def tapped(layers: list[nn.Module], record: Record) -> Iterator[None]:
    """While open, every layer of the list reports its calls to `record(layer, input, output gradient)`."""

    def tap(layer: nn.Module) -> Callable[[Tensor], Tensor]:
        kind = known_kind(layer)
        anchor = torch.zeros((), requires_grad=True, device=next(layer.parameters(recurse=False)).device)

        def forward(input: Tensor) -> Tensor:  # called by keyword or by position, as the stock modules do
            output = kind.forward(layer, input)
            if not torch.is_grad_enabled():
                return output
            if output._is_view():  # a hook on a view is lost when somebody changes the view in place
                output = torch.ops.aten._unsafe_view(output, output.shape)
            if not output.requires_grad:
                output = _Reached.apply(output, anchor)  # type: ignore[no-untyped-call]
            seen, version = [input.detach()], input._version

            def report(gradient: Tensor) -> None:
                x = seen.pop()  # the graph may outlive the pass, the input should not
                if x._version != version:
                    raise UnsupportedModel(f"The input of a {type(layer).__name__} was changed in place after its use.")
                record(layer, x, gradient)

            output.register_hook(report)  # type: ignore[no-untyped-call]
            return output

        return forward

    for layer in layers:
        layer.forward = tap(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # uncovers the method of the class


def _frozen(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias as constants."""
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


class LinearTap:
    """y = x W^T + b over tokens: example gradient of W is sum_t g_t x_t^T, of b is sum_t g_t."""

    def forward(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x, *_frozen(layer))

    def gradients(self, layer: nn.Linear, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        inputs = x.reshape(examples, -1, layer.in_features)
        outputs = grad.reshape(examples, -1, layer.out_features)
        return _with_bias(layer, Outer(inputs, outputs), outputs)


class ConvolutionTap:
    """A convolution is a linear layer over patches: tokens are places of the output, inputs what the kernel sees."""

    def forward(self, layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
        operation: Any = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
        result: Tensor = operation(x, *_frozen(layer), *settings)
        return result

    def gradients(self, layer: nn.Conv1d | nn.Conv2d, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        if layer.groups > 1:
            return _with_bias(layer, self._grouped(layer, x, grad, examples), _by_example(grad.flatten(2), examples))
        inputs, outputs = (torch.unflatten(_images(each), 0, (examples, -1)) for each in (x, grad))
        sums = grad.flatten(2).sum(2).view(examples, -1, layer.out_channels)
        return _with_bias(layer, Convolved(inputs, outputs, _window(layer)), sums)

    def _grouped(self, layer: nn.Conv1d | nn.Conv2d, x: Tensor, grad: Tensor, examples: int) -> Dense:
        """Materialised at once: a group has few channels, so its gradient is small."""
        window = _window(layer)
        patches = F.unfold(_images(x), window.kernel, window.dilation, window.padding, window.stride)
        tokens, outputs = _by_example(patches, examples), _by_example(grad.flatten(2), examples)
        grouped = [part.reshape(*part.shape[:2], layer.groups, -1) for part in (outputs, tokens)]
        return Dense(torch.einsum("btgp,btgd->bgpd", *grouped).reshape(examples, *layer.weight.shape))


def _images(x: Tensor) -> Tensor:
    """A line is an image of one row."""
    return x if x.dim() == 4 else x[:, :, None]


def _window(layer: nn.Conv1d | nn.Conv2d) -> Window:
    def over(each: Any, along_a_line: int) -> tuple[int, int]:
        return (along_a_line, int(each[0])) if isinstance(layer, nn.Conv1d) else (int(each[0]), int(each[1]))

    return Window(over(layer.kernel_size, 1), over(layer.stride, 1), over(layer.padding, 0), over(layer.dilation, 1))


def _by_example(rows: Tensor, examples: int) -> Tensor:
    """(R, channels, T) -> (B, R/B * T, channels)."""
    return rows.transpose(1, 2).reshape(examples, -1, rows.shape[1])


def _with_bias(layer: Any, weight: PerExample, outputs: Tensor) -> dict[str, PerExample]:
    """Weight and, if there is one, bias: the sum of the output gradients (B, T, p) over tokens."""
    return {"weight": weight} if layer.bias is None else {"weight": weight, "bias": Dense(outputs.sum(1))}


class EmbeddingTap:
    """y_t = W[x_t]: the example gradient of row v is the sum of g_t over the tokens t with x_t = v."""

    def forward(self, layer: nn.Embedding, x: Tensor) -> Tensor:
        return F.embedding(x, layer.weight.detach())

    def gradients(self, layer: nn.Embedding, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        ids = x.reshape(examples, -1)
        outputs = grad.reshape(examples, -1, layer.embedding_dim)
        if layer.padding_idx is not None:  # that row is never trained
            outputs = outputs.masked_fill((ids == layer.padding_idx)[..., None], 0.0)
        return {"weight": Rows(ids, outputs, layer.num_embeddings)}


class LayerNormTap:
    """y = x_hat * w + b: example gradients are sums of g * x_hat and of g."""

    def forward(self, layer: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, layer.normalized_shape, *_frozen(layer), layer.eps)

    def gradients(self, layer: nn.LayerNorm, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        shape = (examples, -1, *layer.normalized_shape)
        weighed = F.layer_norm(x, layer.normalized_shape, eps=layer.eps).mul_(grad)
        return _with_bias(layer, Dense(weighed.view(shape).sum(1)), grad.reshape(shape))


class RMSNormTap:
    """y = x / rms(x) * w (Zhang and Sennrich 2019, eq. 4), the mean square taken over the normalised axes."""

    def forward(self, layer: nn.RMSNorm, x: Tensor) -> Tensor:
        return F.rms_norm(x, layer.normalized_shape, layer.weight.detach(), layer.eps)

    def gradients(self, layer: nn.RMSNorm, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        weighed = F.rms_norm(x, layer.normalized_shape, eps=layer.eps).mul_(grad)
        return {"weight": Dense(weighed.view(examples, -1, *layer.normalized_shape).sum(1))}


class GroupNormTap:
    """As LayerNormTap, with statistics over groups of channels of one image."""

    def forward(self, layer: nn.GroupNorm, x: Tensor) -> Tensor:
        return F.group_norm(x, layer.num_groups, *_frozen(layer), layer.eps)

    def gradients(self, layer: nn.GroupNorm, x: Tensor, grad: Tensor, examples: int) -> dict[str, PerExample]:
        rows = (examples, -1, layer.num_channels)
        weighed, each = F.group_norm(x, layer.num_groups, eps=layer.eps).mul_(grad), (*grad.shape[:2], -1)
        weights, biases = (tensor.reshape(each).sum(2).view(rows) for tensor in (weighed, grad))  # sums over an image
        return _with_bias(layer, Dense(weights.sum(1)), biases)


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


def known_kind(layer: nn.Module) -> Kind:
    """The kind of a layer that `refusal` has nothing against."""
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
