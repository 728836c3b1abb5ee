"""What a run says: progress with time left on a terminal, a line now and then elsewhere. Public facts only."""

import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)
LINE_EVERY_SECONDS = 20.0
LINES = 20

Item = TypeVar("Item")
Describe = Callable[[Item], tuple[int, int, str]]


def follow(items: Iterable[Item], title: str, describe: Describe[Item], *, timed: bool = True) -> Item | None:
    """Consume a generator of steps, showing `describe(step) -> (done, total, note)`; returns the last step.

    Args:
        timed: show measured time. Not for steps on private images: how long a step takes follows the size of its
            batch, so neither a duration nor the choice of the steps that are shown may depend on it.
    """
    last: Item | None = None
    if not out.is_terminal:
        return _follow_in_lines(items, title, describe) if timed else _follow_by_number(items, title, describe)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
    clock = [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, *(clock if timed else []), console=out) as progress:
        task = progress.add_task(title, total=None, note="")
        for item in items:
            last = item
            done, total, note = describe(item)
            progress.update(task, completed=done, total=total, note=note)
    return last


def _follow_in_lines(items: Iterable[Item], title: str, describe: Describe[Item]) -> Item | None:
    """One line at the start, every 20 seconds, and at the end: sensible in a log file."""
    start, shown = time.monotonic(), -math.inf
    first_done, before = 0, math.inf
    last: Item | None = None
    for item in items:
        last = item
        done, total, note = describe(item)
        now = time.monotonic()
        if done < before:  # the first step of all, or of the next stage
            first_done, start = done, now
        before = done
        if now - shown >= LINE_EVERY_SECONDS or done == total:
            shown = now
            rate = (done - first_done) / (now - start) if now > start else 0.0
            left = f", {duration((total - done) / rate)} left" if rate and done < total else ""
            out.print(f"{title} {done}/{total}  {note}{left}")
    return last


def _follow_by_number(items: Iterable[Item], title: str, describe: Describe[Item]) -> Item | None:
    """One line at the first step, at every twentieth part, and at the last: numbers alone decide."""
    last: Item | None = None
    shown = -1
    for item in items:
        last = item
        done, total, note = describe(item)
        part = done * LINES // total
        if part != shown:
            out.print(f"{title} {done}/{total}  {note}")
        shown = part
    return last


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
