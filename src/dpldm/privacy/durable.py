"""Files that are replaced whole or not at all, whatever interrupts it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[Path]:
    """An empty file for the block to fill; afterwards it is flushed to the disk and takes the name `path`.

    A reader, or a kill at any moment, sees the old file or the new one.

    Args:
        mode: rights of the file from its first byte on. Default: the owner's alone.
    """
    temporary = path.with_name(path.name + ".partial")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode))
    yield temporary
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)  # the renaming, too, is on the disk
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def replace_file(path: Path, payload: bytes, mode: int = 0o600) -> None:
    """Replace the content of `path`, see `replacing`."""
    with replacing(path, mode) as temporary:
        temporary.write_bytes(payload)
