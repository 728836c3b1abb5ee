"""The queue of ablations: every arm of results/screen/arms.yaml that has no manifest yet, one after another.

    python tools/screen.py [--lever NAME] [--limit N]     # run; the same call goes on where it stopped
    python tools/screen.py --page                         # results/utility.md from the manifests

`answer` of a lever and `lesson` of all, in arms.yaml, are what we make of the tables; the figures are the manifests'.
An arm is `dpldm rehearse` with settings of its own, on a public stand-in; a manifest keeps what came out, a picture
what it looks like. Arms that differ in sampling alone share the tuned model. No arm looks at a benchmark.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from record import collect

FOLDER = Path("results/screen")
LATER_STAGES = ("sampling.", "evaluation.", "runtime.")


@dataclass(frozen=True)
class Arm:
    """One setting of one lever, one of its runs."""

    lever: str
    name: str
    settings: dict[str, Any]  # all that differ from the config's
    number: int

    @property
    def key(self) -> str:
        """Alike for equal settings, whatever lever they stand under."""
        return f"{_digest(self.settings)}-{self.number}"

    @property
    def run(self) -> str:
        """Name of the rehearsal: alike for arms that tune the same model."""
        tuning = {key: value for key, value in self.settings.items() if not key.startswith(LATER_STAGES)}
        return f"screen-{_digest(tuning)}-{self.number}"

    @property
    def manifest(self) -> Path:
        """What came out."""
        return FOLDER / f"{self.key}.json"


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def arms(queue: dict[str, Any], lever: str | None) -> Iterator[Arm]:
    """All first runs, then all second ones."""
    for number in range(1, queue["runs"] + 1):
        for part in queue["levers"]:
            if lever in (None, part["name"]):
                for name, settings in part["arms"].items():
                    yield Arm(part["name"], name, queue["settings"] | settings, number)


def run(queue: dict[str, Any], arm: Arm) -> None:
    """Rehearse one arm and write its manifest."""
    words = [word for key, value in arm.settings.items() for word in (f"--{key}", str(value))]
    command = ["rehearse", "--config", queue["config"], "--stand-in", queue["stand_in"], "--name", arm.run, *words]
    subprocess.run([Path(sys.executable).with_name("dpldm"), *command], check=True, stdout=subprocess.DEVNULL)
    directory = Path("runs") / f"{arm.run}-rehearsal"
    manifest = collect(directory, "dpldm " + " ".join(command)) | {"settings": arm.settings}
    sheet = Image.open(directory / "contact-sheet.png").convert("L")
    sheet.crop((0, 0, sheet.width, min(sheet.height, 400))).save(arm.manifest.with_suffix(".png"), optimize=True)
    arm.manifest.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def page(queue: dict[str, Any]) -> str:
    """A table a lever; arms without a manifest are missing."""
    plan = queue["settings"]
    lines = [
        "# What helps: one lever at a time",
        "",
        "Made by `python tools/screen.py --page` from the manifests in `screen/`, which name their commands. Accuracy "
        "on real images of a CNN trained on 10,000 synthetic ones for 10 epochs, after tuning with "
        f"{plan['privacy.steps']} x {plan['privacy.expected_batch_size']:,} examples at epsilon 10 unless an arm says "
        f"otherwise; private stand-in: `{queue['stand_in']}`, which no backbone has seen. Runs of each arm: "
        f"at most {queue['runs']}. The test images alone (1,943 of animals28) leave about 2 points either way: smaller "
        "differences mean nothing.",
    ]
    for part in queue["levers"]:
        rows = []
        for name, settings in part["arms"].items():
            found = [Arm(part["name"], name, queue["settings"] | settings, n) for n in range(1, queue["runs"] + 1)]
            found = [arm for arm in found if arm.manifest.exists()]
            if found:
                rows.append(_row(name, found))
        if rows:
            lines += ["", f"## {part['name']}", "", part["question"], ""]
            lines += ["| arm | accuracy, % | each run | KID | picture |", "|---|---|---|---|---|", *rows]
            lines += ["", part["answer"]] if "answer" in part else []
    if "lesson" in queue:
        lines += ["", "## What DP-LDM should have done", "", queue["lesson"]]
    return "\n".join(lines) + "\n"


def _row(name: str, found: list[Arm]) -> str:
    manifests = [json.loads(arm.manifest.read_text(encoding="utf-8")) for arm in found]
    scores = [100 * each["evaluation"]["utility"]["scores"]["cnn"]["mean"] for each in manifests]
    distances = [each["evaluation"]["distances"][0]["value"] for each in manifests]
    each = ", ".join(f"{score:.1f}" for score in scores)
    picture = f"[look](screen/{found[0].key}.png)"
    return f"| {name} | {statistics.mean(scores):.1f} | {each} | {statistics.mean(distances):.2f} | {picture} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write results/utility.md and run nothing")
    parser.add_argument("--lever", help="only this lever")
    parser.add_argument("--limit", type=int, help="stop after so many arms")
    given = parser.parse_args()
    queue = yaml.safe_load((FOLDER / "arms.yaml").read_text(encoding="utf-8"))
    if given.page:
        Path("results/utility.md").write_text(page(queue), encoding="utf-8")
        return
    waiting = [arm for arm in arms(queue, given.lever) if not arm.manifest.exists()]
    for arm in waiting[: given.limit]:
        if not arm.manifest.exists():  # a lever before it may have the same arm
            print(f"{arm.lever}: {arm.name}, run {arm.number}", flush=True)
            run(queue, arm)


if __name__ == "__main__":
    main()
