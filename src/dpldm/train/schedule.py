"""Learning-rate schedules: fixed in advance, functions of the step number alone."""

import math
from collections.abc import Callable

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def rate(decay: str, step: int, steps: int, warmup_steps: int) -> float:
    """Factor in [0, 1] for step 0, 1, ...: a linear rise over `warmup_steps`, then the decay until `steps`."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return DECAYS[decay](min(1.0, progress))
