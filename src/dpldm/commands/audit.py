"""`dpldm audit --config FILE` and `dpldm audit --release DIR`."""

import argparse
import json
from pathlib import Path

from dpldm.commands.run import overrides, use_threads
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.loading import load_config

EPILOG = """Opens no private image and spends no budget: gradients and latents are made up.
With --config, the run's own trainer is replayed too (settings may follow as --section.key value).
Exit code 0: nothing found, which proves nothing; 1: the code does not do what the plan says; 2: bad input."""


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Print what every part shows and could have shown; 0 if no part found a violation, 1 if one did."""
    parser.add_argument(
        "--release", type=Path, metavar="DIR", help="directory made by `dpldm release`: its plan is audited"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a run's config: its plan and trainer are audited")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to this file")
    parser.epilog = EPILOG
    given, rest = parser.parse_known_args(words)
    settings = overrides(rest)
    from dpldm.auditing import as_json, audit, planned

    config = None if given.config is None else load_config(RunConfig, given.config, settings)
    if config is None and settings:
        raise UserError("A release has its plan already: leave the settings out, or give --config.")
    plan = planned(given.release, config)
    if given.json is not None and not given.json.absolute().parent.is_dir():
        raise UserError(f"The folder of {given.json} does not exist: make it, or give another --json.")
    if config is not None:
        use_threads(config)
    parts = []
    for part in audit(plan, config):
        parts.append(part)
        print(f"{'FAILED' if part.violated else 'ok    '}  {part.name}")
        for line in (*part.shown, f"could have shown: {part.ceiling}"):
            print(f"        {line}", flush=True)
    found = any(part.violated for part in parts)
    if given.json is not None:
        given.json.write_text(json.dumps(as_json(plan, parts), indent=2) + "\n", encoding="utf-8")
    print("VIOLATION FOUND: do not rely on this guarantee." if found else "No violation found, which proves nothing.")
    return 1 if found else 0
