"""Learning-rate schedules: fixed in advance, functions of the step number alone."""

import math


def warmup_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Factor in [0, 1]: linear from 0 over `warmup_steps`, then half a cosine down to 0 at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
