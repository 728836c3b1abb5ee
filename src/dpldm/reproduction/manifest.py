"""A manifest: what a run on a published set was, what came out, and what it cost. No number is shown without one."""

import datetime
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import dpldm
from dpldm.baselines.pe import pe_run
from dpldm.baselines.portraits import portraits_run
from dpldm.config import RunConfig
from dpldm.data.ingest import keyed_fingerprint
from dpldm.data.readers import open_source
from dpldm.run import paid_plan

PAID_FOR = {"pe": pe_run, "portraits": portraits_run}
"""Baselines that have a plan of their own and draw images."""


def collect(run: Path, command: str, *, baseline: str | None = None) -> dict[str, Any]:
    """Everything worth keeping about a run that was evaluated, without paths of the machine.

    Args:
        run: its directory.
        command: the command that made it.
        baseline: of `PAID_FOR`, if it is about what that found beside the run.
    """
    config = RunConfig.model_validate(yaml.safe_load((run / "config.resolved.yaml").read_text()))
    plan = PAID_FOR[baseline](config)[1] if baseline else paid_plan(config)
    found = f"baselines/{baseline}.json" if baseline else "evaluation.json"
    timings = [json.loads(line) for line in (run / "private" / "timings.jsonl").read_text().splitlines()]
    return {
        "command": command,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "config": shown(config),
        "plan": plan.constants() | {"epsilon_stated": plan.stated_epsilon()},
        "evaluation": json.loads((run / "private" / found).read_text()),
        "seconds": timings,
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("dpldm", "torch", "diffusers", "dp-accounting")},
    }


def shown(config: RunConfig) -> dict[str, Any]:
    """The config without places of this machine."""
    values = config.model_dump(mode="json")
    for section, key in (("data", "path"), ("data", "test_path"), ("evaluation", "inception_weights")):
        place = values[section][key]
        values[section][key] = Path(place).name if place else None
    prompts = config.sampling.prompts
    values["sampling"]["prompts"] = prompts.name if prompts else None
    values["backbone"] = Path(config.backbone).name
    values["runtime"].pop("output")
    values["privacy"].pop("ledger")
    return values


def config_hash(manifest: Mapping[str, Any]) -> str:
    """Ten digits that change with any setting."""
    return hashlib.sha256(json.dumps(manifest["config"], sort_keys=True).encode()).hexdigest()[:10]


def data_fingerprint(config: RunConfig) -> dict[str, str]:
    """sha256 over all records of a published set, part by part: which edition of it was used.

    Raises:
        ValueError: the set is not declared to be published; a plain hash of a private one must not be made.
    """
    if not config.privacy.public_benchmark:
        raise ValueError("only published sets have fingerprints that are shown")
    data, found = config.data, {}
    for split, path in (("train", data.path), ("test", data.test_path or data.path)):
        source = open_source(path, label_column=data.label_column, caption_column=data.caption_column, split=split)
        found[split] = keyed_fingerprint(source, b"published")
    return found


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with `+changes` if it was changed; None if it is none."""
    root = Path(dpldm.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.check_output(["git", "-C", root, "rev-parse", "HEAD"], text=True).strip()
        changed = subprocess.check_output(["git", "-C", root, "status", "--porcelain", "--", "src"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def cpu_name() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
