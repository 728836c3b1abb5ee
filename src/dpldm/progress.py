"""How work that takes long tells how far it is, and how long it takes."""

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""(stage, done, total), functions of the settings alone."""


def unseen(stage: str, done: int, total: int) -> None:
    """Nobody follows."""


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
