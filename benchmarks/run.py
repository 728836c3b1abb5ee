"""Time and memory of private gradients, ours and others': `make bench` (up to 45 minutes on two idle cores).

    python benchmarks/run.py [--quick] [--profile] [--rounds N] [--output DIR]

Writes results.json, and from it README.md and ratios.svg. --quick tries everything out on tiny networks in seconds.
--profile measures where the time of our own passes goes, and adds that to the results that are there.
"""

import argparse
import json
import os
import platform
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from cases import CASES, QUICK_CASES, Case
from measure import measured, memory_here, profiled, whole_step
from report import write_report

ROUNDS, QUICK_ROUNDS = 25, 2


def machine() -> dict[str, object]:
    """What the numbers depend on. No name of a host or a person."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("dpldm", "torch", "diffusers", "opacus", "peft")},
    }


def add_profile(directory: Path, cases: list[Case], rounds: int) -> None:
    """Into the results.json of an earlier run."""
    path = directory / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    results["profile"] = {"machine": machine(), "passes": [profiled(case, rounds) for case in cases]}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_report(directory)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny networks, two rounds: times say nothing")
    parser.add_argument("--profile", action="store_true", help="only where the time goes, beside earlier results")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at most; a case also ends when its time is up")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "ARM"), help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    warnings.filterwarnings("ignore", category=UserWarning)  # of Opacus and vmap, about their own workings
    if given.memory:
        print(json.dumps(memory_here(*given.memory)))
        return
    cases, rounds = (QUICK_CASES, QUICK_ROUNDS) if given.quick else (CASES, given.rounds)
    if given.profile:
        add_profile(given.output, [case for case in cases if case.draws == 1], rounds)
        return
    results: dict[str, object] = {"quick": given.quick, "rounds_at_most": rounds, "machine": machine()}
    results |= {"passes": [], "whole_steps": []}
    given.output.mkdir(parents=True, exist_ok=True)
    for case in cases:
        print(case.name, flush=True)
        results["passes"].append(measured(case, rounds, quick=given.quick))
        if case.whole_step:
            results["whole_steps"].append(whole_step(case, rounds))
        text = json.dumps(results, indent=1)  # after every case, so that an interrupted run leaves what it has
        (given.output / "results.json").write_text(text + "\n", encoding="utf-8")
    write_report(given.output)
    print(f"{given.output / 'README.md'}")


if __name__ == "__main__":
    main()
