"""Turn a finished run on a public benchmark into a manifest in results/, and log the look at the benchmark.

    python tools/record.py runs/NAME --command "dpldm run --config ..." [--why "..."] [--pe]

A rehearsal is a run on a proxy: its manifest goes to results/proxies/ and is no look at a benchmark. Everything in
results/ comes from here: config, plan, evaluation, wall time per stage, versions, hardware, commit.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from dpldm.baselines.pe import pe_run
from dpldm.config import RunConfig
from dpldm.run import paid_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True, help="the command that made the run")
    parser.add_argument("--why", default="", help="what the look was for")
    parser.add_argument("--pe", action="store_true", help="what `dpldm baseline pe` found beside the run")
    given = parser.parse_args()
    manifest = collect(given.run, given.command, given.pe)
    proxy = manifest["plan"]["dataset_id"].startswith("rehearsal-")
    target = Path("results/proxies" if proxy else "results") / f"{given.run.name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if manifest["config"]["privacy"]["public_benchmark"] and not proxy:
        log_look(given.run.name, manifest, given.why)
    print(f"wrote {target}")


def collect(run: Path, command: str, evolved: bool) -> dict[str, Any]:
    """Everything worth keeping about a run, or about the evolution beside it, without paths of the machine."""
    config = RunConfig.model_validate(yaml.safe_load((run / "config.resolved.yaml").read_text()))
    plan = pe_run(config)[1] if evolved else paid_plan(config)
    evaluation = run / "private" / ("baselines/pe.json" if evolved else "evaluation.json")
    shown = config.model_dump(mode="json")
    for key in ("path", "test_path"):
        shown["data"][key] = Path(shown["data"][key]).name if shown["data"][key] else None
    shown["backbone"] = Path(config.backbone).name
    shown["runtime"].pop("output")
    shown["privacy"].pop("ledger")
    timings = [json.loads(line) for line in (run / "private" / "timings.jsonl").read_text().splitlines()]
    return {
        "command": command,
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
        "date": datetime.date.today().isoformat(),
        "config": shown,
        "plan": plan.constants() | {"epsilon_stated": plan.stated_epsilon()},
        "evaluation": json.loads(evaluation.read_text()),
        "seconds": timings,
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("dpldm", "torch", "diffusers", "dp-accounting")},
    }


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


def cpu_name() -> str:
    """Model name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
