"""Times by turns, memory by children, and a whole logical step with everything that belongs to it."""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from arms import STAGES, Arm, arms_of, clip_norm_of, errors, trained
from cases import CASES, QUICK_CASES, Case
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.entropy import SystemEntropy
from dpldm.privacy.ledger import open_ledger
from dpldm.privacy.mechanism import PrivateGradient
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.plan import PrivacyPlan

TOLERANCE = 1e-3
"""Relative error of a clipped sum above which an arm is not compared."""
REFERENCE = "non-private"


def measured(case: Case, most_rounds: int, *, quick: bool) -> dict[str, Any]:
    """Everything about one case: errors first, then times by turns, then peak memory."""
    clip_norm = clip_norm_of(case)
    wrong_by = errors(case, clip_norm)
    kinds = {name: arm for name, arm in arms_of(case).items() if wrong_by.get(name, 0.0) <= TOLERANCE}
    arms = {name: arm(case, clip_norm) for name, arm in kinds.items()}
    times = by_turns({name: arm.step for name, arm in arms.items()}, case.seconds, most_rounds, limits(arms))
    # Every child imports everything anew, which takes seconds: all arms where that says most, else the two that matter.
    weighed = set(arms) if case.draws == 1 and not quick else {REFERENCE, "dpldm"}
    if quick and case.whole_step is None:
        weighed = set()
    network = case.network()
    return {
        "case": case.name,
        "weights": sum(p.numel() for p in network.parameters()),
        "trained": sum(p.numel() for p in trained(network).values()),
        "rows": case.rows,
        "draws": case.draws,
        "arms": {
            name: {
                "error": wrong_by.get(name),
                "seconds": times.get(name, []),
                "memory": memory_in_a_child(case, name, quick=quick) if name in weighed else None,
            }
            for name in arms_of(case)
        },
    }


def limits(arms: Mapping[str, Arm]) -> dict[str, int]:
    return {name: arm.most_rounds for name, arm in arms.items() if arm.most_rounds is not None}


def by_turns(
    steps: Mapping[str, Callable[[], object]], seconds: float, most_rounds: int, limits: Mapping[str, int]
) -> dict[str, list[float]]:
    """Seconds of each step in each round. A round runs every step once, in an order of its own, so that whatever
    slows the machine for a while slows all; the first round warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, random_order = list(steps), random.Random(0)
    started = time.perf_counter()
    for number in range(most_rounds + 1):
        if number > 2 and time.perf_counter() - started > seconds:
            break
        random_order.shuffle(order)
        for name in order:
            if number > limits.get(name, most_rounds):
                continue
            start = time.perf_counter()
            steps[name]()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def ratios(times: Mapping[str, list[float]], name: str, reference: str = REFERENCE) -> list[float]:
    """Of an arm to the reference, round by round."""
    return [a / b for a, b in zip(times[name], times[reference], strict=False)]


def spread(values: list[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile)."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def profiled(case: Case, most_rounds: int) -> dict[str, Any]:
    """Times of a pass that ends early, which show what each part of it takes."""
    steps = {name: arm(case, 1.0).step for name, arm in STAGES.items()}
    return {"case": case.name, "seconds": by_turns(steps, case.seconds / 2, most_rounds, {})}


# --- memory -------------------------------------------------------------------------------------------------------


def memory_in_a_child(case: Case, arm: str, *, quick: bool) -> int | None:
    """Bytes that an arm takes at most, above what a process has after its imports; None where /proc is not."""
    script = Path(__file__).with_name("run.py")
    command = [sys.executable, str(script), "--memory", case.name, arm, *(["--quick"] if quick else [])]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found: int | None = json.loads(lines[-1])
    return found


def memory_here(case_name: str, arm: str) -> int | None:
    """In the child: two passes, as the second one adds to a sum."""
    case = next(case for case in (*CASES, *QUICK_CASES) if case.name == case_name)
    before = kilobytes("VmRSS")
    made = arms_of(case)[arm](case, 1.0)
    made.step()
    made.step()
    peak = kilobytes("VmHWM")
    return None if before is None or peak is None else 1024 * (peak - before)


def kilobytes(field: str) -> int | None:
    """A figure of this process' memory as the kernel keeps it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


# --- a whole logical step -------------------------------------------------------------------------------------------


def whole_step(case: Case, most_rounds: int) -> dict[str, Any]:
    """An update at L examples: all passes and Adam; for ours also the draw, noise, average and the ledger's line."""
    assert case.whole_step is not None
    passes = case.whole_step // case.rows
    rows = case.rows_of_a_pass()
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = case.network(), case.network()
        plan = plan_of(case.whole_step, clip_norm_of(case), most_rounds + 1)
        with (
            open_ledger(Path(folder) / "ledger.jsonl", plan.dataset_id, None) as ledger,
            ClippedSum(ours, trained(ours), plan.max_grad_norm) as clipped,
        ):
            ledger.register(plan)
            mechanism = PrivateGradient(plan, ledger, clipped, plan.records, SystemEntropy())
            adam = {id(n): torch.optim.Adam(trained(n).values(), lr=1e-3) for n in (ours, plain)}
            average = EMAModel(trained(ours).values(), decay=0.95)
            everyone = torch.ones(case.rows, dtype=torch.bool)

            def private() -> None:
                mechanism.draw()
                for _ in range(passes):
                    mechanism.accumulate(rows.losses(ours), everyone)
                gradient = mechanism.release()
                for name, p in trained(ours).items():
                    p.grad = gradient[name]
                adam[id(ours)].step()
                adam[id(ours)].zero_grad()
                average.step(trained(ours).values())

            def ordinary() -> None:
                for _ in range(passes):
                    rows.losses(plain).sum().backward()
                adam[id(plain)].step()
                adam[id(plain)].zero_grad()

            def noise() -> None:
                for p in trained(ours).values():
                    add_gaussian(p.detach(), 1.0, SystemEntropy())

            steps = {REFERENCE: ordinary, "dpldm": private, "of which noise": noise}
            times = by_turns(steps, case.seconds / 2, most_rounds, {})
    return {"case": case.name, "examples": passes * case.rows, "passes": passes, "seconds": times}


def plan_of(examples: int, clip_norm: float, steps: int) -> PrivacyPlan:
    """Everyone is in every batch, so that both sides always do the same work."""
    return PrivacyPlan(
        dataset_id="benchmark",
        run="benchmark",
        epsilon=100,
        delta=1e-9,
        records=examples,
        expected_batch_size=examples,
        steps=steps,
        reserve_steps=0,
        max_grad_norm=clip_norm,
        draws_per_example=1,
        noise_multiplier=1.0,
        public_benchmark=True,
    )
