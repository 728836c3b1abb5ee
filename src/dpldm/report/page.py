"""A report as one HTML file: templates filled with escaped text, charts and images inside, nothing loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from dpldm.report import charts
from dpldm.report.filling import environment, template_text
from dpldm.report.head import head
from dpldm.report.samples import ClassSamples


def page(report: Mapping[str, Any], samples: Sequence[ClassSamples]) -> str:
    """The page of either edition.

    Args:
        report: what `report_of` returns.
        samples: images of each class; none leaves the section out.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    text = (
        environment()
        .get_template("report.html")
        .render(report=report, samples=samples, charts={name: Markup(svg) for name, svg in _charts(report).items()})
    )
    return head(template_text("report.css")) + text


def _charts(report: Mapping[str, Any]) -> dict[str, str]:
    guarantee, trade = report["guarantee"], dict(report["trade_off"])
    rates = trade.pop("false_alarms")
    drawn = {
        "guesses": charts.guesses_chart(report["odds"]["right_of_100"]),
        "delta": charts.delta_chart(dict(report["curves"]), guarantee["epsilon"], guarantee["delta"]),
        "attack": charts.attack_chart(rates, trade),
    }
    if report["spending"] is not None:
        drawn["spending"] = charts.spending_chart(report["spending"])
    inside = report.get("internal") or {}
    if utility := (inside.get("evaluation") or {}).get("utility"):
        beside = {row["name"]: row["score"] for row in inside["baselines"]}
        drawn["accuracy"] = charts.accuracy_chart(utility["scores"], beside)
    return drawn
