"""The engines that are compared. An arm does one physical pass at a time: forward, backward, clip, add to its sum."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from cases import Case, Rows
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.per_example import Outer

Sums = dict[str, Tensor]
VMAP_CHUNK = 16


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


class Arm:
    """`step` adds a pass to the sum, `take` hands the sum out and clears it; both for one case."""

    draws = True  # knows examples of several rows
    most_rounds: int | None = None

    def __init__(self, case: Case, clip_norm: float) -> None:
        self.rows, self.clip_norm = case.rows_of_a_pass(), clip_norm
        self.network = self.build(case)
        self.trainable = trained(self.network)

    def build(self, case: Case) -> nn.Module:
        return case.network()

    def step(self) -> None:
        raise NotImplementedError

    def take(self) -> Sums:
        raise NotImplementedError


class NonPrivate(Arm):
    """Ordinary gradients of the same trained part: what everything is measured against."""

    def step(self) -> None:
        self.rows.losses(self.network).sum().backward()

    def take(self) -> Sums:
        total = {name: p.grad.clone() for name, p in self.trainable.items()}
        self.network.zero_grad()
        return total


class NonPrivateFull(NonPrivate):
    """Ordinary gradients of all weights."""

    def build(self, case: Case) -> nn.Module:
        return case.network(everything=True)


class Ours(Arm):
    """One backward pass; the form of each gradient chosen by T (d + p) <= d p."""

    form: bool | None = None
    engine = ClippedSum

    def __init__(self, case: Case, clip_norm: float) -> None:
        super().__init__(case, clip_norm)
        self.clipped = self.engine(self.network, self.trainable, clip_norm, case.draws)
        self.clipped.__enter__()  # taps this arm's own network, for as long as it lives

    def step(self) -> None:
        with forced(self.form):
            self.clipped.accumulate(self.rows.losses(self.network))

    def take(self) -> Sums:
        return self.clipped.take()


class OursGhost(Ours):
    """Norms from Gram matrices for every linear layer and convolution."""

    form = True


class OursInstantiated(Ours):
    """Materialised gradients for every linear layer and convolution."""

    form = False


class WithoutRecords(ClippedSum):
    """Forward and backward through the frozen layers alone."""

    def _record(self, layer: nn.Module, x: Tensor, grad_output: Tensor) -> None:
        pass


class WithoutSums(ClippedSum):
    """Everything up to the clip factors."""

    def _add(self, factors: Tensor) -> None:
        pass


class OursFrozen(Ours):
    engine = WithoutRecords


class OursToFactors(Ours):
    engine = WithoutSums


@contextmanager
def forced(form: bool | None) -> Iterator[None]:
    """The form of linear gradients: ghost (True), materialised (False), or the cheaper one."""
    ordinary = Outer.ghost_is_cheaper
    if form is not None:
        Outer.ghost_is_cheaper = lambda self: form  # type: ignore[method-assign]
    try:
        yield
    finally:
        Outer.ghost_is_cheaper = ordinary  # type: ignore[method-assign]


class Opacus(Arm):
    """In training mode, because Opacus records nothing in evaluation mode; these networks have no dropout."""

    draws = False

    def build(self, case: Case) -> nn.Module:
        return case.network().train()

    def take(self) -> Sums:
        total = {name: p.summed_grad.clone() for name, p in self.trainable.items()}
        for p in self.trainable.values():
            p.summed_grad = None
        return total


class OpacusHooks(Opacus):
    """Opacus' ordinary engine: all gradients materialised, then clipped."""

    def __init__(self, case: Case, clip_norm: float) -> None:
        super().__init__(case, clip_norm)
        self.module = GradSampleModule(self.network, loss_reduction="sum")
        self.optimizer = DPOptimizer(sgd(self.trainable), **opacus_settings(clip_norm, case))

    def step(self) -> None:
        self.rows.losses(self.module).sum().backward()
        self.optimizer.clip_and_accumulate()
        for p in self.trainable.values():
            p.grad_sample, p.grad = None, None


class OpacusFastGradientClipping(Opacus):
    """Two backward passes, the gradients of one layer at a time materialised for its norm."""

    ghost = False

    def __init__(self, case: Case, clip_norm: float) -> None:
        super().__init__(case, clip_norm)
        self.module = GradSampleModuleFastGradientClipping(
            self.network, max_grad_norm=clip_norm, use_ghost_clipping=self.ghost, loss_reduction="sum"
        )
        settings = opacus_settings(clip_norm, case)
        self.optimizer = DPOptimizerFastGradientClipping(sgd(self.trainable), **settings)

    def step(self) -> None:
        kept = {p: p.summed_grad for p in self.trainable.values()}
        losses = self.rows.losses(self.module)
        DPTensorFastGradientClipping(self.module, self.optimizer, losses, "sum").backward()
        for p, total in kept.items():  # its backward forgets the sum of earlier passes
            p.summed_grad = total
        self.optimizer.accumulate()
        for p in self.trainable.values():
            p.grad = None


class OpacusGhost(OpacusFastGradientClipping):
    """Two backward passes, norms of linear layers from Gram matrices."""

    ghost = True


def sgd(trainable: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(trainable.values(), lr=1.0)


def opacus_settings(clip_norm: float, case: Case) -> dict[str, object]:
    return {
        "noise_multiplier": 0.0,
        "max_grad_norm": clip_norm,
        "expected_batch_size": case.rows,
        "loss_reduction": "sum",
    }


class Vmap(Arm):
    """torch.func: the gradient of one example, vectorised over the examples."""

    draws, most_rounds = False, 3

    def __init__(self, case: Case, clip_norm: float) -> None:
        super().__init__(case, clip_norm)
        self.values = {name: p.detach() for name, p in self.trainable.items()}
        self.sums = {name: torch.zeros_like(t) for name, t in self.values.items()}

    def step(self) -> None:
        def loss(values: Sums, *row: Tensor) -> Tensor:
            alone = Rows(*(tensor[None] for tensor in row), draws=1)
            return alone.losses(lambda *a, **k: functional_call(self.network, values, a, k))[0]

        rows = (self.rows.latents, self.rows.context, self.rows.timesteps, self.rows.noise)
        in_dims = (None, *(0 for _ in rows))
        gradients = vmap(grad(loss), in_dims=in_dims, chunk_size=VMAP_CHUNK)(self.values, *rows)
        norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
        factors = (self.clip_norm / norms).clamp(max=1)
        for name, g in gradients.items():
            self.sums[name] += torch.einsum("b,b...->...", factors, g)

    def take(self) -> Sums:
        total, self.sums = self.sums, {name: torch.zeros_like(t) for name, t in self.sums.items()}
        return total


ARMS: dict[str, type[Arm]] = {
    "non-private": NonPrivate,
    "non-private, all weights": NonPrivateFull,
    "dpldm": Ours,
    "dpldm, ghost forced": OursGhost,
    "dpldm, instantiation forced": OursInstantiated,
    "Opacus hooks": OpacusHooks,
    "Opacus ghost": OpacusGhost,
    "Opacus fast gradient clipping": OpacusFastGradientClipping,
    "vmap": Vmap,
}


STAGES: dict[str, type[Arm]] = {
    "non-private": NonPrivate,
    "frozen": OursFrozen,
    "to the clip factors": OursToFactors,
    "dpldm": Ours,
}
"""How far a private pass goes, for `run.py --profile`."""


def arms_of(case: Case) -> dict[str, type[Arm]]:
    """The arms that can do a case."""
    chosen = {name: arm for name, arm in ARMS.items() if case.draws == 1 or arm.draws}
    if case.trained == "all":
        del chosen["non-private, all weights"]
    return chosen


def clip_norm_of(case: Case, sample: int = 6) -> float:
    """The median norm of some examples' gradients, by one backward pass each: about half of them are clipped."""
    network, rows = case.network(), case.rows_of_a_pass()
    count = min(sample, case.rows // case.draws)
    norms = sorted(norm_of(gradient_alone(network, rows.example(i))) for i in range(count))
    return norms[(count - 1) // 2] * (1.01 if count > 1 else 0.5)


def gradient_alone(network: nn.Module, example: Rows) -> Sums:
    trainable = trained(network)
    found = torch.autograd.grad(example.losses(network)[0], list(trainable.values()), materialize_grads=True)
    return dict(zip(trainable, found, strict=True))


def norm_of(sums: Sums) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in sums.values()))


def difference(ours: Sums, theirs: Sums) -> float:
    """Relative to ours; infinite where the parameters are not the same."""
    if ours.keys() != theirs.keys():
        return math.inf
    return norm_of({name: ours[name] - theirs[name] for name in ours}) / norm_of(ours)


def errors(case: Case, clip_norm: float) -> dict[str, float]:
    """How far each arm's sum is from ours, relatively; for ours, how far it is from one backward pass an example."""
    ours = sum_of(Ours, case, clip_norm)
    found = {"dpldm": difference(loop(case, clip_norm), ours)}
    for name, arm in arms_of(case).items():
        if name == "non-private":  # a sum without clipping
            found[name] = difference(sum_of(Ours, case, math.inf), sum_of(arm, case, math.inf))
        elif name not in ("dpldm", "non-private, all weights"):
            found[name] = difference(ours, sum_of(arm, case, clip_norm))
    return found


def sum_of(arm: type[Arm], case: Case, clip_norm: float) -> Sums:
    made = arm(case, clip_norm)
    made.step()
    return made.take()


def loop(case: Case, clip_norm: float) -> Sums:
    network, rows = case.network(), case.rows_of_a_pass()
    total = {name: torch.zeros_like(p) for name, p in trained(network).items()}
    for i in range(case.rows // case.draws):
        alone = gradient_alone(network, rows.example(i))
        factor = min(1.0, clip_norm / norm_of(alone))
        for name, g in alone.items():
            total[name] += factor * g
    return total
