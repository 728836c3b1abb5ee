"""How work that takes long tells how far it is."""

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""(stage, done, total), functions of the settings alone."""


def unseen(stage: str, done: int, total: int) -> None:
    """Nobody follows."""
