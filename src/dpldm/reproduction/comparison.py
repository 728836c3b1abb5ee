"""A row's manifest beside what others have published, for a reader at a terminal."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from dpldm.reproduction.figures import SOURCES, published_figures

STAGES = {"finetune": "fine-tuning", "pretrain": "pre-training", "sample": "sampling", "evaluate": "evaluation"}


def comparison(manifest: Mapping[str, Any]) -> RenderableType:
    """Published figures and ours, then published costs and ours.

    Only a run at paper scale has numbers of its own in the table of figures: what is smaller is another experiment.
    """
    return Group(_figures(manifest), _costs(manifest))


def ours(manifest: Mapping[str, Any], protocol: str) -> str:
    """Our number by a protocol, as text; a dash where there is none, or where it may not stand beside others."""
    if manifest.get("scale", "paper") != "paper":
        return "-"
    found = published_figures().protocols[protocol].number_in(manifest["evaluation"])
    return "-" if found is None else f"{found:.1f}"


def costs_of(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Hours of every stage, over all sessions, and the peak of memory in GB under `peak_gb` where it was noted."""
    lines: list[Mapping[str, Any]] = [*manifest.get("pretraining", []), *manifest["seconds"]]
    found = {
        title: sum(line["seconds"] for line in lines if line["stage"].startswith(stage)) / 3600
        for stage, title in STAGES.items()
    }
    peaks = [line["peak_bytes"] for line in lines if line.get("peak_bytes")]
    return found | ({"peak_gb": max(peaks) / 1e9} if peaks else {})


def _figures(manifest: Mapping[str, Any]) -> Table:
    known, epsilon, scale = published_figures(), int(manifest["plan"]["epsilon"]), manifest["scale"]
    note = "" if scale == "paper" else f"; this run was at scale {scale}, so it has no number here"
    table = _table(f"{manifest['row']}: published figures{note}", ("measure", "method", "published", "ours", "source"))
    for figure in known.of(manifest["row"].partition("/")[0]):
        if epsilon in figure.values:
            protocol, source = known.protocols[figure.protocol], f"{figure.reference} ({SOURCES[figure.source]})"
            mine = ours(manifest, figure.protocol)
            table.add_row(protocol.title, figure.method, figure.text(epsilon), mine, source)
    return table


def _costs(manifest: Mapping[str, Any]) -> Table:
    table = _table("costs", ("what", "hours", "of"))
    costs, machine = costs_of(manifest), manifest["hardware"]
    where = f"this run, scale {manifest['scale']}: {machine['cores']} cores of {machine['cpu']}"
    for name, hours in costs.items():
        if name == "peak_gb":
            table.add_row("peak of memory", f"{hours:.1f} GB", where)
        elif hours or name != "pre-training":
            table.add_row(name, f"{hours:.3g}", where)
    for cost in published_figures().costs:
        source = f"published, CIFAR-10: {cost.reference} ({SOURCES[cost.source]})"
        table.add_row(cost.method, cost.hours, source)
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name)
    return table
