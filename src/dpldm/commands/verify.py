"""`dpldm verify RELEASE`."""

import argparse
from pathlib import Path

from dpldm.verifying import verify


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Print every check; 0 if all passed, 1 if not."""
    parser.add_argument("release", type=Path, help="directory made by `dpldm release`")
    checks = verify(parser.parse_args(words).release)
    for check in checks:
        print(f"{'ok    ' if check.passed else 'FAILED'}  {check.name}: {check.detail}")
    passed = all(check.passed for check in checks)
    print("The release is what it says." if passed else "NOT VERIFIED: do not rely on this release's guarantee.")
    return 0 if passed else 1
