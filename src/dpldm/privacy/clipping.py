"""The clipped sum of per-example gradients, in one forward and one backward pass.

    S = sum_{i in batch} c_i g_i                              g_i over ALL trainable parameters together

    flat (default)       c_i = min(1, C / ||g_i||)            Abadi et al. 2016
    automatic            c_i = C / (||g_i|| + 0.01)           AUTO-S, Bu et al. 2023, arXiv 2206.07136

Either way ||c_i g_i|| <= C, so adding or removing one example changes S by at most C in Euclidean norm (replacing one,
by at most 2 C): the sensitivity that the Gaussian noise of privacy/noise.py is scaled to. The sum does not depend on
how the batch is cut into physical passes.

Precision: sums, norms and clip factors are float32 at least, also where the network computes in bfloat16. Norm and sum
are taken of the same recorded numbers, so what bfloat16 rounds changes the gradient but never the bound. float16 is
refused: it needs loss scaling, whose skipped steps would depend on the data.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

from dpldm.privacy.layers import UnsupportedModel, known_kind, refusal, tapped
from dpldm.privacy.per_example import PerExample, compact, merge

Rule = Callable[[Tensor, float], Tensor]
"""(norms (B,), C) -> factors c_i (B,) with c_i ||g_i|| <= C."""


def flat(norms: Tensor, clip_norm: float) -> Tensor:
    """min(1, C / ||g||); a zero gradient gives 1."""
    return (clip_norm / norms).clamp(max=1.0)


def automatic(norms: Tensor, clip_norm: float) -> Tensor:
    """C / (||g|| + 0.01): every gradient is scaled to almost C, none keeps its size."""
    return clip_norm / (norms + 0.01)


RULES: dict[str, Rule] = {"flat": flat, "automatic": automatic}


@dataclass(frozen=True)
class _Held:
    """Gradients of one parameter that wait for the clip factors."""

    gradient: PerExample
    squared_norms: Tensor  # (B,)
    versions: tuple[int, ...]

    @staticmethod
    def of(gradient: PerExample) -> "_Held":
        """The norm is taken at once, while inputs and output gradients are in the processor's cache."""
        return _Held(gradient, gradient.squared_norms(), _versions(gradient))

    def require_unchanged(self, name: str) -> None:
        """The sum must be of the numbers whose norm was taken; PyTorch counts changes in place."""
        if _versions(self.gradient) != self.versions:
            raise UnsupportedModel(f"What the gradient of {name} is made of was changed in place in the backward pass.")


def _versions(gradient: PerExample) -> tuple[int, ...]:
    return tuple(value._version for value in vars(gradient).values() if isinstance(value, Tensor))


class ClippedSum:
    """Accumulates clipped gradients of the parameters named in `trainable`.

    Use as a context manager: while it is open, the layers that own these parameters are tapped, and no ordinary
    gradient of them exists anywhere::

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
        rule: "flat" or "automatic".

    Raises:
        UnsupportedModel: a parameter belongs to no kind of layer in privacy/layers.py, is float16, or is not marked
            `requires_grad`; one outside `trainable` is; or the model has a layer that mixes examples.
    """

    def __init__(
        self,
        model: nn.Module,
        trainable: Mapping[str, nn.Parameter],
        clip_norm: float,
        draws_per_example: int = 1,
        rule: str = "flat",
    ) -> None:
        _refuse_mixing(model)
        self._owners = _owners(model, trainable)
        self._kinds = {layer: known_kind(layer) for layer in self._owners}
        self._parameters = dict(trainable)
        self.clip_norm = clip_norm
        self.draws = draws_per_example
        self.rule = rule
        self._examples, self._rows = 0, 0
        self._pending: dict[str, _Held] = {}
        self._sums = {name: _empty_sum(p) for name, p in trainable.items()}
        self._taps = tapped(list(self._owners), self._record)

    def __enter__(self) -> "ClippedSum":
        self._taps.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taps.__exit__(kind, error, trace)

    def accumulate(self, losses: Tensor, keep: Tensor | None = None, images: int = 1) -> None:
        """Add the clipped gradients of one physical pass.

        Args:
            losses: (B,), loss i depending on example i alone. With K draws, the mean over its K rows.
            keep: (B,) bool; a False example (a null record) contributes exactly zero.
            images: K draws of so many images make up one example (a group) in this pass: `images` * K rows.

        An example whose gradient is not finite contributes exactly zero too, and nothing reports that it happened.
        """
        self._examples, self._rows = len(losses), len(losses) * images * self.draws
        self._pending.clear()
        with _full_precision(losses.device.type):
            losses.sum().backward()  # type: ignore[no-untyped-call]
            stray = [name for name, p in self._parameters.items() if p.grad is not None]
            if stray:
                raise UnsupportedModel(f"{stray[0]} is used outside its own layer: its gradient cannot be clipped.")
            with torch.no_grad():
                self._add(self._clip_factors(losses, keep))
        self._pending.clear()

    def take(self) -> dict[str, Tensor]:
        """The clipped sum S of everything accumulated since the last call (PRIVATE: not yet noised); clears it.

        It is on the CPU, where the noise is drawn from the operating system's entropy and added in float64.
        """
        taken = self._sums
        self._sums = {name: _empty_sum(t) for name, t in taken.items()}
        return {name: t.cpu().contiguous() for name, t in taken.items()}

    def _clip_factors(self, losses: Tensor, keep: Tensor | None) -> Tensor:
        """c_i, and 0 where the example must not count, (B,)."""
        none = torch.zeros(len(losses), dtype=_at_least_single(losses.dtype), device=losses.device)
        squared = torch.stack([none, *(held.squared_norms for held in self._pending.values())]).sum(0)
        factors = RULES[self.rule](squared.sqrt(), self.clip_norm)
        usable = torch.isfinite(squared) & torch.isfinite(losses)
        if keep is not None:
            usable &= keep
        return torch.where(usable, factors, 0.0)

    def _add(self, factors: Tensor) -> None:
        """sum_i c_i g_i onto the sums. What was recorded last comes first: it may still be in the processor's cache."""
        ignored = factors == 0
        some_ignored = _some(ignored)  # asked once, as the answer is waited for where a device computes it
        for name, held in reversed(self._pending.items()):
            held.require_unchanged(name)
            usable = held.gradient.without(ignored) if some_ignored else held.gradient
            usable.add_weighted(self._sums[name], factors)

    def _record(self, layer: nn.Module, x: Tensor, grad_output: Tensor) -> None:
        """Called in the backward pass of each tapped layer."""
        names, kind = self._owners[layer], self._kinds[layer]
        if x.shape[0] != self._rows:
            raise UnsupportedModel(
                f"The layer of {next(iter(names.values()))} saw {x.shape[0]} rows where {self._rows} were expected: "
                "its input is shared between examples, so freeze it or expand its input to one row for each."
            )
        if grad_output.dtype == torch.float16:
            raise UnsupportedModel("float16 cannot be trained privately: use float32, or bfloat16 autocast.")
        with torch.no_grad():
            precision = self._sums[next(iter(names.values()))].dtype
            inputs = x.detach().to(precision) if x.is_floating_point() else x
            gradients = kind.gradients(layer, inputs, grad_output.to(precision), self._examples)
            for leaf, name in names.items():
                known, found = self._pending.get(name), gradients[leaf]
                self._pending[name] = _Held.of(merge(known.gradient, found) if known else compact(found))


def _owners(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> dict[nn.Module, dict[str, str]]:
    """The leaf layers that own the trainable parameters: layer -> {name in the layer: name in `trainable`}.

    A parameter that several layers share has one name, under which the gradients of all its uses are added.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (name in trainable):
            raise UnsupportedModel(f"{name} must {'' if name in trainable else 'not '}require a gradient.")
        if parameter.requires_grad and parameter.dtype == torch.float16:
            raise UnsupportedModel(f"{name} is float16: keep trained parameters in float32.")
    names = {id(parameter): name for name, parameter in trainable.items()}
    owners: dict[nn.Module, dict[str, str]] = {}
    for path, layer in model.named_modules():
        leaves = {leaf: p for leaf, p in layer.named_parameters(recurse=False) if p.requires_grad}
        if not leaves:
            continue
        problem = refusal(layer)
        if problem is not None:
            raise UnsupportedModel(f"{_join(path, next(iter(leaves)))} {problem}.")
        owners[layer] = {leaf: names[id(parameter)] for leaf, parameter in leaves.items() if id(parameter) in names}
    reached = {name for owned in owners.values() for name in owned.values()}
    missing = trainable.keys() - reached
    if missing:
        raise UnsupportedModel(f"{min(missing)} is not a parameter of the model.")
    return owners


def _refuse_mixing(model: nn.Module) -> None:
    """A batch norm couples the examples of a pass, also where it is frozen, unless it uses stored statistics."""
    for path, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
            raise UnsupportedModel(
                f"{path} is a {type(layer).__name__}, which mixes the examples of a batch: replace it by a GroupNorm, "
                "or freeze it and call eval()."
            )


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """No autocast and no TF32, in products and convolutions, around norms and sums: their rounding must be that of
    float32, which is what `Outer._rounding_bound` allows for."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _empty_sum(like: Tensor) -> Tensor:
    """Zeros of a parameter's shape, at least float32. Matrix products are written into it, and are faster along rows
    that are long: a matrix of more rows than columns is stored by columns."""
    tall = like.dim() == 2 and like.shape[0] > like.shape[1]
    shape = like.shape[::-1] if tall else like.shape
    zeros = torch.zeros(shape, dtype=_at_least_single(like.dtype), device=like.device)
    return zeros.mT if tall else zeros


def _some(flags: Tensor) -> bool:
    return bool(flags.any())


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf
