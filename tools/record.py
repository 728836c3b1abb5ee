"""Turn a finished run on a public benchmark into a manifest in results/, and log the look at the benchmark.

    python tools/record.py runs/NAME --command "dpldm run --config ..." [--why "..."] [--baseline pe|portraits]
    python tools/record.py reproductions/SCALE/runs/ROW [--why "..."]

A rehearsal is a run on a proxy: its manifest goes to results/proxies/ and is no look at a benchmark. A reproduced row
has its manifest already. Everything in results/ comes from here: config, plan, evaluation, wall time per stage,
versions, hardware, commit; the page is made anew.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from dpldm.config import RunConfig
from dpldm.reproduction.manifest import PAID_FOR, collect, data_fingerprint
from dpldm.reproduction.page import results_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", default="", help="the command that made the run")
    parser.add_argument("--why", default="", help="what the look was for")
    parser.add_argument("--baseline", choices=sorted(PAID_FOR), help="what that found beside the run")
    given = parser.parse_args()
    made = given.run / "manifest.json"
    if not made.is_file() and not given.command:
        parser.error("say with --command what made the run")
    manifest = (
        json.loads(made.read_text()) if made.is_file() else collect(given.run, given.command, baseline=given.baseline)
    )
    if manifest["config"]["privacy"]["public_benchmark"] and "data_sha256" not in manifest:
        resolved = yaml.safe_load((given.run / "config.resolved.yaml").read_text())
        manifest["data_sha256"] = data_fingerprint(RunConfig.model_validate(resolved))
    proxy, scale = manifest["plan"]["dataset_id"].startswith("rehearsal-"), manifest.get("scale", "paper")
    name = given.run.name if scale == "paper" else f"{given.run.name}-{scale}"
    target = Path("results/proxies" if proxy else "results") / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if manifest["config"]["privacy"]["public_benchmark"] and not proxy:
        log_look(name, manifest, given.why)
    (Path("results") / "README.md").write_text(results_page(Path("results")), encoding="utf-8")
    print(f"wrote {target}")


def log_look(name: str, manifest: dict[str, Any], why: str) -> None:
    """One line per look at a benchmark, so that they can be counted."""
    utility = manifest["evaluation"].get("utility") or manifest["evaluation"]
    line = {
        "date": manifest["date"],
        "commit": manifest["commit"],
        "run": name,
        "data": manifest["config"]["privacy"]["dataset_id"],
        "why": why,
        "accuracy": {kind: score["mean"] for kind, score in utility.get("scores", {}).items()},
    }
    with Path("results/benchmark-looks.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
