"""`dpldm report RUN`."""

import argparse
from pathlib import Path

EPILOG = """Also shown, if they are there: RUN/audit.json (from `dpldm audit --config FILE --json RUN/audit.json`), and
in the internal edition RUN/private/evaluation.json and the durations of the run."""


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Write both editions and say where they are."""
    parser.add_argument("run", type=Path, help="folder of a run that was released: runs/NAME")
    parser.epilog = EPILOG
    given = parser.parse_args(words)
    from dpldm.reporting import report

    reports = report(given.run)
    print(f"may leave, part of the release:  {reports.release}")
    print(f"INTERNAL, do not publish:        {reports.internal}")
    print(f"draft for the OpenDP registry:   {reports.registry}  (fill it in first)")
    return 0
