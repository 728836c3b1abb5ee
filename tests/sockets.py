"""Notices, and prevents, that this process makes a socket or asks for the address of a name."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_WATCHED = {"socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"}
_noticed: list[list[str]] = []  # of each watch that is on; an audit hook cannot be removed, so it looks here


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _noticed and event in _WATCHED:
        _noticed[-1].append(event)
        raise RuntimeError(f"{event} is forbidden here")


sys.addaudithook(_hook)


@contextmanager
def no_socket() -> Iterator[list[str]]:
    """Forbids sockets; yields what was tried all the same, so that an error that was swallowed is noticed too."""
    _noticed.append([])
    try:
        yield _noticed[-1]
    finally:
        _noticed.pop()
