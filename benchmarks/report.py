"""results.json as tables (README.md) and a picture (ratios.svg)."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from measure import REFERENCE, ratios, spread

OURS = "dpldm"
FULL = "all of the"
Pass = dict[str, Any]


def write_report(directory: Path) -> None:
    """README.md and ratios.svg from the results.json of a directory."""
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    (directory / "README.md").write_text(as_markdown(results), encoding="utf-8")
    draw(results["passes"], directory / "ratios.svg")


def as_markdown(results: dict[str, Any]) -> str:
    facts, versions = results["machine"], results["machine"]["versions"]
    lines = [
        "# What a private gradient costs",
        "",
        f"Made by `python benchmarks/run.py --rounds {results['rounds_at_most']}`, not by hand; cases that it did not",
        "reach are missing. Forward, backward and clipping of one physical pass,",
        "against forward and backward of the same trained part without privacy (= 1). Arms take turns in one process;",
        "shown are the median of the ratios of each round and, in brackets, their quartiles. Sums were first compared",
        "with ours, and ours with one backward pass an example; arms that are off by more than 0.1 % are not timed.",
        "Memory is the most that a child process takes above its imports.",
        "",
        f"{facts['cores']} cores ({facts['architecture']}), {facts['threads']} threads, load",
        f"{facts['load_at_start']} at the start, {facts['date']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ".",
        "",
    ]
    if results["quick"]:
        lines += ["**Tiny networks, two rounds (`--quick`): these times say nothing.**", ""]
    lines += ["![ratios](ratios.svg)", "", "## Targets", "", "| | target | measured | |", "|---|---|---|---|"]
    for text, target, value, met in targets(results):
        lines.append(f"| {text} | {target} | {value:.2f} | {'met' if met else 'missed'} |")
    if "profile" in results:
        lines += ["", *profile_table(results["profile"])]
    for result in results["passes"]:
        lines += ["", *table(result)]
    for step in results["whole_steps"]:
        lines += ["", *whole_table(step)]
    return "\n".join(lines) + "\n"


def times_of(result: Pass) -> dict[str, list[float]]:
    return {name: arm["seconds"] for name, arm in result["arms"].items() if arm["seconds"]}


def table(result: Pass) -> list[str]:
    times, examples = times_of(result), result["rows"] // result["draws"]
    lines = [
        f"## {result['case']}",
        "",
        f"{result['trained'] / 1e6:.2f} of {result['weights'] / 1e6:.2f} million weights trained;",
        f"{examples} examples in a pass, K = {result['draws']}; {len(times[REFERENCE])} rounds.",
        "",
        "| arm | time | ms a pass | memory, MB | relative error |",
        "|---|---|---|---|---|",
    ]
    for name, arm in result["arms"].items():
        error = "" if arm["error"] is None else f"{arm['error']:.0e}"
        if name not in times:
            lines.append(f"| {name} | not compared: another sum | | | {error} |")
            continue
        low, middle, high = spread(ratios(times, name))
        memory = "" if arm["memory"] is None else f"{arm['memory'] / 1e6:.0f}"
        milliseconds = 1e3 * spread(times[name])[1]
        lines.append(f"| {name} | {middle:.2f} [{low:.2f}, {high:.2f}] | {milliseconds:.0f} | {memory} | {error} |")
    return lines


def whole_table(step: dict[str, Any]) -> list[str]:
    times = step["seconds"]
    lines = [
        f"## {step['case']}: a whole update",
        "",
        f"{step['examples']} examples in {step['passes']} passes, then Adam; for dpldm also the draw, clipping, noise,",
        f"the average and the ledger's line; {len(times[REFERENCE])} rounds.",
        "",
        "| | time | seconds |",
        "|---|---|---|",
    ]
    for name in times:
        low, middle, high = spread(ratios(times, name))
        lines.append(f"| {name} | {middle:.3f} [{low:.3f}, {high:.3f}] | {spread(times[name])[1]:.2f} |")
    return lines


def profile_table(profile: dict[str, Any]) -> list[str]:
    """Differences of medians, so that the parts of a row add up to its whole."""
    facts = profile["machine"]
    lines = [
        "## Where the time goes",
        "",
        f"Made by `python benchmarks/run.py --profile`, {facts['threads']} threads, load {facts['load_at_start']} at",
        f"the start, {facts['date']}. Our pass, ended early, against a non-private one (= 1): medians of the ratios of",
        "rounds, and their differences. A non-private pass spends on weight gradients what the frozen layers leave",
        "of 1; norms, and what sums take above that, are the price of clipping.",
        "",
        "| | frozen layers, forward and backward | norms | clipped sums | dpldm |",
        "|---|---|---|---|---|",
    ]
    for result in profile["passes"]:
        ends = [spread(ratios(result["seconds"], name))[1] for name in ("frozen", "to the clip factors", OURS)]
        frozen, factors, whole = ends
        lines.append(
            f"| {result['case']} | {frozen:.2f} | {factors - frozen:.2f} | {whole - factors:.2f} | {whole:.2f} |"
        )
    return lines


def targets(results: dict[str, Any]) -> list[tuple[str, str, float, bool]]:
    """(what, the bound in words, the measured value, whether it is kept), of every case that has one."""
    rows = []
    for result in results["passes"]:
        times, name = times_of(result), result["case"]
        if result["draws"] > 1 or OURS not in times:
            continue
        ratio, full = spread(ratios(times, OURS))[1], name.startswith(FULL)
        bound = 1.15 if full else 1.07
        words = "at most 1.15" if full else "at most 1.07, better 1.05"
        rows.append((f"{name}: time", words, ratio, ratio <= bound))
        memory = [result["arms"][arm]["memory"] for arm in (OURS, REFERENCE)]
        if all(memory):
            rows.append((f"{name}: memory", "at most 1.15", memory[0] / memory[1], memory[0] <= 1.15 * memory[1]))
        opacus = [times[arm] for arm in times if arm.startswith("Opacus")]
        if opacus and not full:
            fastest = {"fastest": [min(each) for each in zip(*opacus, strict=True)], OURS: times[OURS]}
            gain, wanted = spread(ratios(fastest, "fastest", OURS))[1], 1.3 if "15M" in name else 1.6
            rows.append((f"{name}: fastest Opacus to dpldm", f"at least {wanted}", gain, gain >= wanted))
    for step in results["whole_steps"]:
        ratio = spread(ratios(step["seconds"], OURS))[1]
        rows.append((f"{step['case']}: whole update", "at most 1.15", ratio, ratio <= 1.15))
    return rows


def draw(passes: list[Pass], path: Path) -> None:
    """Medians and quartiles of every case with one draw; vmap is far off and left to the tables."""
    shown = [result for result in passes if result["draws"] == 1]
    figure, axes = plt.subplots(len(shown), 1, figsize=(8, 2.2 * len(shown)), squeeze=False, layout="constrained")
    for axis, result in zip(axes[:, 0], shown, strict=True):
        times = times_of(result)
        names = [name for name in times if name not in (REFERENCE, "vmap")][::-1]
        points = [spread(ratios(times, name)) for name in names]
        middles = [middle for _, middle, _ in points]
        bars = [[m - low for low, m, _ in points], [high - m for _, m, high in points]]
        colours = ["#1b6ca8" if name.startswith(OURS) else "#b0b0b0" for name in names]
        axis.barh(names, middles, xerr=bars, color=colours, ecolor="#404040")
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_title(result["case"], loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
    axes[-1, 0].set_xlabel("time of a pass, non-private = 1", fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
