"""`dpldm app RELEASE`."""

import argparse
import sys
from pathlib import Path

EPILOG = """A page in your browser: the released images of each class, or new ones if the release holds its model, to
look at and to download, with the guarantee beside them. The release is verified first. Nothing is loaded from
elsewhere, and nobody but this machine can reach the page, unless --host names another address. Ctrl+C ends it."""


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Serve the page until it is interrupted."""
    parser.add_argument("release", type=Path, help="directory made by `dpldm release`")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8765, help="port to serve at, 0 for any free one (8765)")
    parser.epilog = EPILOG
    given = parser.parse_args(words)
    from dpldm.app.server import is_open, serve

    if is_open(given.host):
        print(
            f"dpldm: at {given.host} whoever reaches this machine sees the page, unencrypted and without a password, "
            "and can keep it drawing.",
            file=sys.stderr,
        )
    try:
        serve(given.release, given.host, given.port, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print()
    return 0
