"""`dpldm memorisation RUN`."""

import argparse
from pathlib import Path

from dpldm.console import add_manners, conclude, manners, out

EPILOG = """INTERNAL: reads the private images that were trained on and those of data.test_path, and writes
private/memorisation.json and private/memorisation.png (the closest pairs, synthetic above, real below). `dpldm report`
shows it in the internal edition. Nothing of it belongs in a release: it is no part of the guarantee, and publishing it
breaks that. Exit code 0 whatever is found."""


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Print what was found; 0 also for an alarm, since this is no gate."""
    parser.add_argument("run", type=Path, help="folder of a run that was sampled: runs/NAME")
    add_manners(parser)
    parser.epilog = EPILOG
    given = parser.parse_args(words)
    from dpldm.commands.run import crashes_kept_inside
    from dpldm.evaluation.memorisation import memorisation
    from dpldm.report.memorisation import memorisation_table
    from dpldm.reporting import run_at

    run = run_at(given.run)
    with manners(given):
        with crashes_kept_inside(run.config), out.status("memorisation: comparing images"):
            found = memorisation(run.config)
        out.print(memorisation_table(found))
        conclude(given, found.to_json(), {"INTERNAL pairs": run.pairs}, ())
    return 0
