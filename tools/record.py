"""Turn a finished run on a public benchmark into a manifest in results/, and log the look at the benchmark.

    python tools/record.py runs/NAME --command "dpldm run --config ..." [--why "..."]

A rehearsal is a run on a proxy: its manifest goes to results/proxies/ and is no look at a benchmark. Everything in
results/ comes from here: config, plan, evaluation, wall time per stage, versions, hardware, commit.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from dpldm.reproduction.manifest import collect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True, help="the command that made the run")
    parser.add_argument("--why", default="", help="what the look was for")
    given = parser.parse_args()
    manifest = collect(given.run, given.command)
    proxy = manifest["plan"]["dataset_id"].startswith("rehearsal-")
    target = Path("results/proxies" if proxy else "results") / f"{given.run.name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if manifest["config"]["privacy"]["public_benchmark"] and not proxy:
        log_look(given.run.name, manifest, given.why)
    print(f"wrote {target}")


def log_look(name: str, manifest: dict[str, Any], why: str) -> None:
    """One line per look at a benchmark, so that they can be counted."""
    utility = manifest["evaluation"]["utility"] or {"scores": {}}
    line = {
        "date": manifest["date"],
        "commit": manifest["commit"],
        "run": name,
        "data": manifest["config"]["privacy"]["dataset_id"],
        "why": why,
        "accuracy": {kind: score["mean"] for kind, score in utility["scores"].items()},
    }
    with Path("results/benchmark-looks.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
