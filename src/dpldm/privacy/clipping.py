"""The clipped sum of per-example gradients, in one forward and one backward pass.

    S = sum_{i in batch} g_i * min(1, C / ||g_i||)            g_i over ALL trainable parameters together

Adding or removing one example changes S by at most C in Euclidean norm: the sensitivity that the Gaussian noise
of privacy/noise.py is scaled to. The sum does not depend on how the batch is cut into physical passes.
"""

from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

from dpldm.privacy.layers import KINDS, tapped
from dpldm.privacy.per_example import PerExample, compact, merge


class UnsupportedModel(ValueError):
    """A trainable parameter whose per-example gradient this engine cannot take."""


class ClippedSum:
    """Accumulates clipped gradients of the parameters named in `trainable`.

    Use as a context manager: while it is open, the layers that own these parameters are tapped, and no ordinary
    gradient of them exists anywhere.

        with ClippedSum(model, trainable, clip_norm=1.0) as clipped:
            for part in parts_of_the_batch:
                clipped.accumulate(losses(part))   # one value per example
            total = clipped.take()

    Args:
        model: the network; parameters outside `trainable` must be frozen.
        trainable: name -> parameter, as in `model.named_parameters()`.
        clip_norm: C > 0.
        draws_per_example: K rows of every activation belong to one example (example-major order); their mean
            loss is one example's loss, so they share one clip.

    Raises:
        UnsupportedModel: a parameter does not belong to a Linear, Conv2d (one group), LayerNorm or GroupNorm, is
            shared by two layers, or is not marked `requires_grad`; or one outside `trainable` is.
    """

    def __init__(
        self,
        model: nn.Module,
        trainable: Mapping[str, nn.Parameter],
        clip_norm: float,
        draws_per_example: int = 1,
    ) -> None:
        self._owners = _owners(model, trainable)
        self._parameters = dict(trainable)
        self.clip_norm = clip_norm
        self.draws = draws_per_example
        self._examples = 0
        self._pending: dict[str, PerExample] = {}
        self._sums = {name: torch.zeros_like(p) for name, p in trainable.items()}
        self._taps = tapped(list(self._owners), self._record)

    def __enter__(self) -> "ClippedSum":
        self._taps.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taps.__exit__(kind, error, trace)

    def accumulate(self, losses: Tensor, keep: Tensor | None = None) -> None:
        """Add the clipped gradients of one physical pass.

        Args:
            losses: (B,), loss i depending on example i alone. With K draws, the mean over its K rows.
            keep: (B,) bool; a False example (a null record) contributes exactly zero.

        An example whose gradient is not finite contributes exactly zero too, and nothing reports that it happened.
        """
        self._examples = len(losses)
        self._pending.clear()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        stray = [name for name, p in self._parameters.items() if p.grad is not None]
        if stray:
            raise UnsupportedModel(f"{stray[0]} is used outside its own layer: its gradient cannot be clipped.")
        with torch.no_grad():
            factors = self._clip_factors(losses, keep)
            for name, gradient in self._pending.items():
                self._sums[name] += gradient.weighted_sum(factors)
        self._pending.clear()

    def take(self) -> dict[str, Tensor]:
        """The clipped sum S of everything accumulated since the last call (PRIVATE: not yet noised); clears it."""
        taken = self._sums
        self._sums = {name: torch.zeros_like(t) for name, t in taken.items()}
        return taken

    def _clip_factors(self, losses: Tensor, keep: Tensor | None) -> Tensor:
        """min(1, C / ||g_i||), and 0 where the example must not count, (B,)."""
        squared = torch.zeros(len(losses), dtype=losses.dtype)
        for gradient in self._pending.values():
            squared += gradient.squared_norms()
        norms = squared.sqrt()
        factors = (self.clip_norm / norms).clamp(max=1.0)  # a zero gradient gives inf, hence 1
        usable = torch.isfinite(squared) & torch.isfinite(losses)
        if keep is not None:
            usable &= keep
        return torch.where(usable, factors, 0.0)

    def _record(self, layer: nn.Module, x: Tensor, grad_output: Tensor) -> None:
        """Called in the backward pass of each tapped layer."""
        if x.shape[0] != self._examples * self.draws:
            name, expected = self._owners[layer] or type(layer).__name__, self._examples * self.draws
            raise UnsupportedModel(
                f"{name} saw {x.shape[0]} rows where {expected} were expected: its input is shared between examples."
            )
        with torch.no_grad():
            gradients = KINDS[type(layer)].gradients(layer, x.detach(), grad_output, self._examples)
            for leaf, gradient in gradients.items():
                name = _join(self._owners[layer], leaf)
                if name in self._parameters:
                    known = self._pending.get(name)
                    self._pending[name] = merge(known, gradient) if known is not None else compact(gradient)


def _owners(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> dict[nn.Module, str]:
    """The leaf layers that own the trainable parameters, layer -> name, after refusing what cannot be clipped."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (name in trainable):
            raise UnsupportedModel(f"{name} must {'' if name in trainable else 'not '}require a gradient.")
    owners: dict[nn.Module, str] = {}
    found: dict[int, str] = {}
    for path, layer in model.named_modules():
        leaves = dict(layer.named_parameters(recurse=False))
        wanted = [_join(path, leaf) for leaf, p in leaves.items() if p.requires_grad]
        if not wanted:
            continue
        if type(layer) not in KINDS or (isinstance(layer, nn.Conv2d) and _is_exotic(layer)):
            kinds = ", ".join(kind.__name__ for kind in KINDS)
            raise UnsupportedModel(f"{wanted[0]} belongs to a {type(layer).__name__}: freeze it, or use {kinds}.")
        for leaf, parameter in leaves.items():
            if id(parameter) in found:
                raise UnsupportedModel(f"{_join(path, leaf)} is tied to {found[id(parameter)]}: untie or freeze them.")
            found[id(parameter)] = _join(path, leaf)
        owners[layer] = path
    missing = {name for name, p in trainable.items() if id(p) not in found}
    if missing:
        raise UnsupportedModel(f"{min(missing)} is not a parameter of the model.")
    return owners


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def _is_exotic(layer: nn.Conv2d) -> bool:
    """Convolutions whose patches `unfold` does not give."""
    return layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
