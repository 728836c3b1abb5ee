"""`results/README.md`: every number of ours with its manifest, and what others have published in columns of their own.

The page is a function of the files beside it and of `figures.yaml`; nothing on it is written by hand.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpldm.reproduction.comparison import costs_of, ours
from dpldm.reproduction.figures import SOURCES, Figure, Source, published_figures
from dpldm.reproduction.manifest import config_hash
from dpldm.reproduction.rows import PAIRS

Manifest = Mapping[str, Any]
Named = Mapping[str, Manifest]
"""Manifests by the file they are in."""

HEAD = """# Results

Everything here is written by a script from a run, never by hand; this page too (`python tools/results.py`).

| file | what it is | made by |
|---|---|---|
| `NAME.json` | manifest of a run on a public benchmark: resolved config, plan, evaluation, seconds per stage, \
versions, hardware, commit | `tools/record.py`, or `dpldm reproduce` |
| `proxies/NAME.json` | the same for a rehearsal on public proxies, where hyperparameters are chosen | \
`tools/record.py` |
| `fashion-noiseless.json` | gate 2 of `grey32`: the recipe of `fashion-eps10-100-updates.json` without noise, screen \
protocol | the file that `dpldm baseline noiseless` keeps; command, commit and date were added to it |
| `NAME-real.json` | what the papers' CNN learns from real images by the protocol of the run | the file that \
`dpldm baseline real` keeps, likewise |
| `gates-NAME.json` | the two gates of a backbone on Fashion-MNIST (reconstruction, noiseless fine-tuning) | \
`tools/gates.py` |
| `NAME-untuned.json` | distances of what the backbone of a run draws before it is tuned | `tools/untuned.py` |
| `ceiling-NAME.json` | what the papers' CNN learns from real images, from their reconstructions, and from portraits \
of the classes with and without noise | `tools/ceiling.py` |
| `memory.json` | peak memory of a DP step of a network as large as Stable Diffusion 1.5's, beside what `plan` \
predicts | \
`tools/memory.py` |
| `benchmark-looks.jsonl` | one line for every look at a benchmark, so that looks can be counted | both |

Hyperparameters are chosen on proxies only (held-out letters, `animal-mnist`), then committed, then the benchmark is
looked at. Candidates of a backbone that never shipped are named as such.
"""
MARKS: dict[Source, str] = {"paper": "p", "repository": "r", "third": "t", "unverified": "u"}


def results_page(folder: Path) -> str:
    """The page of a folder of manifests."""
    runs, proxies = _manifests(folder), _manifests(folder / "proxies")
    parts = [
        HEAD,
        "## Ours, on published sets\n\nAccuracy on real test images of classifiers that saw synthetic ones alone "
        "([protocols](../docs/evaluation.md#protocols)).\n\n" + _table_of_figures(runs),
        "How each was made:\n\n" + _table_of_making(runs),
        "Before any tuning, drawn from the same backbone as the run and measured alike:\n\n" + _untuned(folder),
        "Gates of backbones on Fashion-MNIST, accuracy of the papers' CNN:\n\n" + _gates(folder),
        _looks(folder / "benchmark-looks.jsonl"),
        "## Beside others\n\n" + _legend(),
        *(_beside_others(pair, runs) for pair in PAIRS if published_figures().of(pair) and "pixels" not in pair),
        "## What others say it costs\n\n" + _published_costs(),
        "## On proxies\n\nWhere hyperparameters were chosen: held-out letters, `animal-mnist` and the like.\n\n"
        + _table_of_figures(proxies),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _manifests(folder: Path) -> Named:
    """The manifests of runs in a folder; other files have no plan."""
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    place = "" if folder.name == "results" else f"{folder.name}/"
    return {
        f"{place}{path.name}": content | {"evaluation": _as_evaluated(content["evaluation"])}
        for path, content in found.items()
        if "plan" in content
    }


def _as_evaluated(found: dict[str, Any]) -> dict[str, Any]:
    """What a baseline found beside a run, in the shape of a run's evaluation: its facts hold distances as text."""
    if "facts" not in found:
        return found
    facts = {key: text for key, text in found["facts"].items() if "@" in key}
    distances = [
        {"name": name, "extractor": extractor, "value": float(text.partition(" = ")[2].split()[0]), "text": text}
        for (name, _, extractor), text in ((key.partition("-"), text) for key, text in facts.items())
    ]
    return {"utility": {"protocol": found["facts"]["protocol"], "scores": found["scores"]}, "distances": distances}


def _table_of_figures(runs: Named) -> str:
    rows = []
    for file, run in runs.items():
        utility, plan = run["evaluation"]["utility"], run["plan"]
        scores = {} if utility is None else utility["scores"]
        rows.append(
            (
                f"[{_stem(file)}]({file})",
                run["config"]["privacy"]["dataset_id"],
                f"{plan['epsilon']:g}",
                run.get("scale", ""),
                "" if utility is None else utility["protocol"],
                ", ".join(f"{kind} {100 * score['mean']:.1f}" for kind, score in scores.items()) + _one_answer(utility),
                _distances(run["evaluation"]["distances"]),
                _once(each["extractor"] for each in run["evaluation"]["distances"]),
            )
        )
    return _markdown(("run", "set", "epsilon", "scale", "protocol", "accuracy, %", "distances", "seen through"), rows)


def _one_answer(utility: Mapping[str, Any] | None) -> str:
    """What always naming the most frequent class gives, where that is more than luck with equal classes."""
    if utility is None or "guessing" not in utility:
        return ""
    classes = len(next(iter(utility["scores"].values()))["per_class"])
    return f" (one answer: {100 * utility['guessing']:.1f})" if utility["guessing"] > 1.5 / classes else ""


def _distances(found: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{each['name']} {each['value']:.4g}" for each in found)


def _untuned(folder: Path) -> str:
    rows = []
    for file in sorted(folder.glob("*-untuned.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        found = content["distances"]
        seen = _once(each["extractor"] for each in found)
        rows.append((f"[{file.stem}]({file.name})", content["backbone"], _distances(found), seen))
    return _markdown(("manifest", "backbone", "distances", "seen through"), rows)


def _table_of_making(runs: Named) -> str:
    rows = []
    for file, run in runs.items():
        costs, machine = costs_of(run), run["hardware"]
        fingerprint = run.get("data_sha256", {}).get("train", "")[:10]
        peak = f"{costs['peak_gb']:.1f} GB" if "peak_gb" in costs else ""
        rows.append(
            (
                f"[{_stem(file)}]({file})",
                f"`{run['command']}`",
                f"`{(run['commit'] or '')[:7]}`",
                f"`{config_hash(run)}`",
                f"`{fingerprint}`" if fingerprint else "not recorded",
                f"{machine['cores']} cores, {machine['cpu']}",
                f"{costs['fine-tuning']:.2f} + {costs['sampling']:.2f}",
                peak,
            )
        )
    columns = ("run", "command", "commit", "config", "training images", "hardware", "hours: tuning + sampling", "peak")
    return _markdown(columns, rows)


def _gates(folder: Path) -> str:
    rows = []
    for file in sorted(folder.glob("gates-*.json")):
        gate = json.loads(file.read_text(encoding="utf-8"))
        real, restored = (f"{100 * gate[f'{kind}_test_accuracy']:.1f} %" for kind in ("real", "reconstructed"))
        how = f"{gate['cnn_epochs']} epochs on real images; shown real ones, shown reconstructed ones"
        rows.append((f"[{file.stem}]({file.name})", gate["backbone"], f"{real}, {restored}", how, gate["commit"][:7]))
    for file in sorted(folder.glob("*-noiseless.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        how = f"{run['facts']['updates']} updates without noise, {run['facts']['protocol']} protocol: {run['settings']}"
        found = f"{100 * run['scores']['cnn']['mean']:.1f} %"
        rows.append((f"[{file.stem}]({file.name})", "grey32", found, how, run["commit"][:7]))
    for file in sorted(folder.glob("*-real.json")):
        real = json.loads(file.read_text(encoding="utf-8"))
        facts = real["facts"]
        how = f"{facts['epochs']} epochs on {facts['train']:,} real images, {facts['protocol']} protocol"
        accuracy = f"{100 * real['scores']['cnn']['mean']:.1f} %"
        rows.append((f"[{file.stem}]({file.name})", "none", accuracy, how, real["commit"][:7]))
    return _markdown(("manifest", "backbone", "accuracy", "how", "commit"), rows)


def _looks(file: Path) -> str:
    if not file.is_file():
        return ""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    counted = Counter(line["data"] for line in lines)
    text = ", ".join(f"{name} {count}" for name, count in sorted(counted.items()))
    return f"How often we looked at a benchmark ([all looks]({file.name})): {text}."


def _legend() -> str:
    known = published_figures()
    marks = ", ".join(f"({mark}) {SOURCES[source]}" for source, mark in MARKS.items())
    about = _markdown(("column", "how it is measured"), [(p.title, p.about) for p in known.protocols.values()])
    return (
        f"Columns are protocols; numbers of different columns must not be compared. Published: {marks}. Ours stand "
        f"only in columns whose protocol we followed at full size.\n\n{about}"
    )


def _beside_others(pair: str, runs: Named) -> str:
    figures = published_figures().of(pair)
    columns = [name for name in published_figures().protocols if any(f.protocol == name for f in figures)]
    rows = list[Sequence[str]]()
    for epsilon in sorted({e for figure in figures for e in figure.values}, reverse=True):
        for file, run in runs.items():
            cells = [_of_ours(run, name) for name in columns]
            if _pair_of(run) == pair and run["plan"]["epsilon"] == epsilon and any(cells):
                rows.append((f"**ours**, [{_stem(file)}]({file})", f"{epsilon}", *cells))
        for method in dict.fromkeys(figure.method for figure in figures if epsilon in figure.values):
            cells = [_cell(figures, method, name, epsilon) for name in columns]
            rows.append((method, f"{epsilon}", *cells))
    titles = [published_figures().protocols[name].title for name in columns]
    references = "; ".join(dict.fromkeys(figure.reference for figure in figures))
    return f"### {PAIRS[pair]}\n\n{_markdown(('method', 'epsilon', *titles), rows)}\nFrom: {references}."


def _of_ours(run: Manifest, protocol: str) -> str:
    found = ours(run, protocol)
    return "" if found == "-" else f"**{found}**"


def _pair_of(run: Manifest) -> str:
    return str(run.get("row", run["config"]["privacy"]["dataset_id"])).partition("/")[0].removesuffix("-pixels")


def _cell(figures: Iterable[Figure], method: str, protocol: str, epsilon: int) -> str:
    found = [f for f in figures if (f.method, f.protocol) == (method, protocol) and epsilon in f.values]
    return ", ".join(f"{figure.text(epsilon)} ({MARKS[figure.source]})" for figure in found)


def _published_costs() -> str:
    rows = [(cost.method, cost.hours, f"{cost.reference} ({MARKS[cost.source]})") for cost in published_figures().costs]
    return "CIFAR-10 at epsilon 10, hours of one GPU unless said otherwise.\n\n" + _markdown(
        ("method", "hours", "from"), rows
    )


def _stem(file: str) -> str:
    return Path(file).stem


def _once(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in escaped)]) + "\n"
