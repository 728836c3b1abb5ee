"""`dpldm clean RUN`."""

import argparse
from pathlib import Path

EPILOG = """Removes the encoded private images, and the tuned weights if the release holds them too. The ledger and the
release stay. Files are unlinked, not overwritten: what a disk keeps of deleted files is beyond this command."""


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Remove the caches and say what was removed and what was kept."""
    parser.add_argument("run", type=Path, help="folder of a run that was released: runs/NAME")
    parser.add_argument(
        "--force",
        action="store_true",
        help="give up an unreleased run, or weights that only lie here: they were paid for and cannot be made again",
    )
    parser.epilog = EPILOG
    given = parser.parse_args(words)
    from dpldm.cleaning import clean

    done = clean(given.run, force=given.force)
    for path in done.removed:  # no sizes: that of the latents tells how many records there are
        print(f"removed  {path}")
    if not done.removed:
        print("nothing to remove")
    for path, reason in done.kept:
        print(f"kept     {path}: {reason}")
    return 0
