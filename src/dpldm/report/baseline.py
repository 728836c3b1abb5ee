"""What a baseline found, for a terminal."""

from rich.console import RenderableType
from rich.table import Table

from dpldm.baselines.result import Baseline
from dpldm.report.wording import upper


def baseline_table(result: Baseline) -> RenderableType:
    """Accuracies, headed by whether they may be shown, and what they rest on."""
    table = Table(title=f"baseline {result.kind} ({result.status})", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("what it is", result.what)
    for kind, score in result.scores.items():
        low, high = score.interval
        of = f"on {result.test:,} real test images"
        table.add_row(f"{kind} accuracy", f"{100 * score.mean:.1f} %  ({100 * low:.1f} to {100 * high:.1f}) {of}")
    for name, value in result.facts.items():
        shown = upper(float(value)) if name == "epsilon" else f"{value:,}" if type(value) is int else f"{value}"
        table.add_row(name.replace("_", " "), shown)
    return table
