"""What a run says: progress with time left on a terminal, a line now and then elsewhere. Public facts only.

With --quiet nothing but the end of a mistake is said, with --json one object at the end (see `conclude`).
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dpldm.data.names import printable
from dpldm.progress import OnProgress, duration

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)
LINE_EVERY_SECONDS = 20.0
LINES = 20

Item = TypeVar("Item")
Describe = Callable[[Item], tuple[int, int, str]]
Show = Callable[[int, int, str], None]
"""(done, total, note)."""


# --- how much is said -------------------------------------------------------------------------------------------------


def add_manners(parser: argparse.ArgumentParser) -> None:
    """The options of every long command."""
    manners = parser.add_mutually_exclusive_group()
    manners.add_argument("--quiet", action="store_true", help="say nothing unless something is wrong")
    manners.add_argument("--json", action="store_true", help="say one JSON object at the end, and nothing else")


@contextmanager
def manners(given: argparse.Namespace) -> Iterator[None]:
    """Say no more than the options allow while the block runs."""
    before, out.quiet = out.quiet, given.quiet or given.json
    try:
        yield
    finally:
        out.quiet = before


def conclude(
    given: argparse.Namespace, facts: Mapping[str, Any], places: Mapping[str, Any], then: Iterable[str]
) -> None:
    """The end of a long command: where things are, and what to do next.

    Args:
        facts: what else a program may want to know, for --json.
        places: files and folders, by what they are.
        then: commands.
    """
    if given.json:
        where = {name.lower().replace(" ", "_"): str(place) for name, place in places.items()}
        print(json.dumps({**facts, "places": where, "next": list(then)}))
        return
    rows = [*places.items(), *(("" if number else "next", command) for number, command in enumerate(then))]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        out.print(Text(f"{name:<{width}}  {printable(str(value))}"))


# --- how far something is ---------------------------------------------------------------------------------------------


def follow(items: Iterable[Item], title: str, describe: Describe[Item], *, timed: bool = True) -> Item | None:
    """Consume a generator of steps, showing `describe(step) -> (done, total, note)`; returns the last step.

    Args:
        timed: see `following`.
    """
    last: Item | None = None
    with following(title, timed=timed) as show:
        for item in items:
            last = item
            show(*describe(item))
    return last


@contextmanager
def following(title: str, *, timed: bool = True) -> Iterator[Show]:
    """A function to call at every step. Counting may begin anew, with the next stage.

    Args:
        timed: show measured time. Not for steps on private images: how long a step takes follows the size of its
            batch, so neither a duration nor the choice of the steps that are shown may depend on it.
    """
    if not out.is_terminal:
        yield _by_clock(title) if timed else _by_number(title)
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")]
    clock = [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, *(clock if timed else []), console=out) as progress:
        task, before = progress.add_task(title, total=None, note=""), math.inf

        def show(done: int, total: int, note: str) -> None:
            nonlocal before
            if done < before < math.inf:
                progress.reset(task)
            before = done
            progress.update(task, completed=done, total=total, note=note)

        yield show


@contextmanager
def following_stages(title: str, *, timed: bool = True) -> Iterator[OnProgress]:
    """`following`, for work that names its stages."""
    with following(title, timed=timed) as show:
        yield lambda stage, done, total: show(done, total, stage)


def _by_clock(title: str) -> Show:
    """One line at the start, every 20 seconds, and at the end: sensible in a log file."""
    start, shown = time.monotonic(), -math.inf
    first_done, before = 0, math.inf

    def show(done: int, total: int, note: str) -> None:
        nonlocal start, shown, first_done, before
        now = time.monotonic()
        if done < before:  # the first step of all, or of the next stage
            first_done, start = done, now
        before = done
        if now - shown >= LINE_EVERY_SECONDS or done == total:
            shown = now
            rate = (done - first_done) / (now - start) if now > start else 0.0
            left = f", {duration((total - done) / rate)} left" if rate and done < total else ""
            out.print(f"{title} {done}/{total}  {note}{left}")

    return show


def _by_number(title: str) -> Show:
    """One line at the first step, at every twentieth part, and at the last: numbers alone decide."""
    shown, before = -1, math.inf

    def show(done: int, total: int, note: str) -> None:
        nonlocal shown, before
        part = done * LINES // total
        if part != shown or done < before:
            out.print(f"{title} {done}/{total}  {note}")
        shown, before = part, done

    return show
