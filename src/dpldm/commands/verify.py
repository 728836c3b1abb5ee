"""`dpldm verify RELEASE`."""

import argparse
from pathlib import Path

from dpldm.verdict import verdict
from dpldm.verifying import verify

EPILOG = """Needs neither the private data nor torch. Exit code 0: the release is what it says;
1: NOT VERIFIED, a claim or a file is not what it should be;
3: NOT DIFFERENTIALLY PRIVATE, it holds something that no guarantee covers; 2: bad input."""


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Print every check; 0 if all passed, 1 if not, 3 if the release holds what no guarantee covers."""
    parser.add_argument("release", type=Path, help="directory made by `dpldm release`")
    parser.add_argument(
        "--backbone",
        type=Path,
        metavar="DIR",
        help="the public backbone, to compare weights with (a bundled one is found)",
    )
    parser.epilog = EPILOG
    given = parser.parse_args(words)
    checks = verify(given.release, given.backbone)
    for check in checks:
        print(f"{check.sign}  {check.name}: {check.detail}")
    found = verdict(checks)
    print(found.sentence)
    return found.exit_code
