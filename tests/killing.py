"""Death at a chosen moment, for tests of what a kill leaves behind."""

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

WRITING = ("open", "write", "fsync", "replace")


def die_in_call(fatal: int | None, names: Sequence[str] = WRITING) -> None:
    """SIGKILL in the `fatal`-th of these system calls: after opening, half-way a write, before any other.

    For a child process: it changes `os`.
    """
    calls = itertools.count(1)

    def dangerous(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) != fatal:
                return real(*args, **kwargs)
            if name == "open":
                with suppress(FileExistsError):
                    real(*args, **kwargs)
            elif name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        return call

    for name in names:
        setattr(os, name, dangerous(name))
