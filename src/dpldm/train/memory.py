"""How much memory fine-tuning takes, from two small passes on made-up examples, and how many examples fit into one.

    phase      beside what is always there               P bytes are tuned, in float32
    loading    a second copy of the largest part
    checks     five gradients, a pass of three: not all of them at once, which leaves some room
    encoding   pixels and latents of the declared records, a few images inside the autoencoder
    pass       two moments of Adam, the sum, what a pass holds (measured for one example and for two)
    update     two moments of Adam, the sum as it is and by rows, the noised gradient, noise of the largest parameter
    asking     covariances of the classes, their sums and the noise on them, where they are asked for

Always there are the program, the public weights, and the average (P). Everything follows from the config, the public
backbone and the machine: no private image is looked at.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import ClassSpreads, Question

ALLOCATOR = 1.1
"""What the allocator and the processor's library hold beyond living tensors: see results/memory.json."""
USABLE = 0.8
"""Share of the free memory that `auto` uses."""
MOST_ROWS = 256
"""More examples in a pass make nothing faster."""
NOISE = 6 * 8
"""Bytes per entry while noise is made, in float64 (privacy/noise.py)."""


SPREADS = {"float": 28, "grid": 180}
"""Bytes per number of the covariances that are asked for, until they are noised, kept and taken apart, by kind of
noise: by how much a process grew for 10 classes of latents of 512 numbers."""


@dataclass(frozen=True)
class PassCost:
    """Bytes that a pass holds at its peak, beside everything that was there before."""

    first: int  # for one example
    further: int  # for each further one

    def of(self, rows: int) -> int:
        """For so many examples."""
        return self.first + (rows - 1) * self.further


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of each phase, all of the process; on CUDA, of the device, where only the last two are."""

    loading: int
    checks: int
    encoding: int
    asking: int
    update: int
    before_a_pass: int
    a_pass: PassCost

    def peak(self, rows: int) -> int:
        """The largest of them, for passes of so many examples."""
        in_a_pass = self.before_a_pass + self.a_pass.of(rows)
        return max(self.loading, self.checks, self.encoding, self.asking, self.update, in_a_pass)


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, counts the bytes of tensors that were made since and live: now, and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.most = 0
        self._seen: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._seen.setdefault(storage, None)  # it was there before
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._seen:
                self._seen[storage] = _Counted(self, storage.nbytes())
        return result


class _Counted:
    """Bytes that count as long as the storage lives that this is kept beside."""

    def __init__(self, meter: Meter, size: int) -> None:
        self._meter, self._size = meter, size
        meter.live += size
        meter.most = max(meter.most, meter.live)

    def __del__(self) -> None:
        self._meter.live -= self._size


def _storages(values: Any) -> Iterable[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor))


def pass_cost(
    network: nn.Module, trainable: Mapping[str, nn.Parameter], plan: PrivacyPlan, losses_of: Callable[[int], Tensor]
) -> PassCost:
    """What passes hold, from one of a single example and one of two.

    Args:
        losses_of: number of examples to their losses, (B,).
    """
    constants = (plan.max_grad_norm, plan.draws_per_example, plan.clipping)
    device = next(network.parameters()).device

    def pass_of(rows: int) -> int:
        with ClippedSum(network, trainable, *constants) as clipped:
            clipped.accumulate(losses_of(rows))
        return rows

    one, two = (peak_of(lambda rows=rows: pass_of(rows), device) for rows in (1, 2))  # type: ignore[misc]
    return PassCost(one, max(0, two - one))


def peak_of(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that `work` holds at its peak on the device, beside what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    meter = Meter()
    with meter:
        work()
    return meter.most


def rows_that_fit(cost: PassCost, beside: int, free: int, most: int) -> int:
    """Examples in a pass, at least one, that fit into a share of the free memory.

    Args:
        beside: bytes that will be taken by other things while passes run.
        most: no more than these.
    """
    left = USABLE * free / ALLOCATOR - beside - cost.first
    fitting = most if cost.further == 0 else 1 + int(max(0.0, left) // cost.further)
    return max(1, min(most, MOST_ROWS, fitting))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken of the device, or of this machine; where that is unknown, as on a small one."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    known = free_of_machine()
    return 4 << 30 if known is None else known


def free_of_machine() -> int | None:
    """Bytes that can still be taken of this machine and of the group of processes we are in; None if it does not say.

    What the group holds of files that were read is given up when it is needed, so it counts as free.
    """
    found = _kilobytes("/proc/meminfo", "MemAvailable")
    if found is None:
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        rows = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        files = next(int(value) for name, value in rows if name == "inactive_file")
        return 1024 * found if limit == "max" else min(1024 * found, int(limit) - int(used) + files)
    except (OSError, ValueError, StopIteration):
        return 1024 * found


def resident() -> int:
    """Bytes that this process holds now; 0 where the system does not say."""
    return 1024 * (_kilobytes("/proc/self/status", "VmRSS") or 0)


def peak_so_far() -> int:
    """Most bytes that this process ever held; 0 where the system does not say."""
    return 1024 * (_kilobytes("/proc/self/status", "VmHWM") or 0)


def memory_of_spreads(queries: Iterable[Question], noise: str, classes: int, entries: int) -> int:
    """Bytes that the covariances of the classes, of latents of so many entries, take while they are asked for; 0 if
    they are not among the queries."""
    return SPREADS[noise] * classes * entries**2 if any(isinstance(q, ClassSpreads) for q in queries) else 0


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Their size."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _kilobytes(file: str, field: str) -> int | None:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)
