"""A report as one HTML file: templates filled with escaped text, charts and images inside, nothing loaded."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from dpldm.data.names import printable
from dpldm.report import charts
from dpldm.report.head import head
from dpldm.report.samples import ClassSamples
from dpldm.report.wording import percent, upper


def page(report: Mapping[str, Any], samples: Sequence[ClassSamples]) -> str:
    """The page of either edition.

    Args:
        report: what `report_of` returns.
        samples: images of each class; none leaves the section out.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    templates = resources.files("dpldm.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (templates / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {"percent": percent, "duration": spoken, "short": short, "bound": upper}
    style = (templates / "report.css").read_text(encoding="utf-8")
    text = environment.get_template("report.html").render(
        report=report, samples=samples, charts={name: Markup(svg) for name, svg in _charts(report).items()}
    )
    return head(style) + text


def _visible(value: Any) -> Any:
    """Text with control characters, line breaks and bidirectional overrides written out; autoescape does the rest."""
    return printable(value) if type(value) is str else value


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
    utility = ((report.get("internal") or {}).get("evaluation") or {}).get("utility")
    return drawn | ({"accuracy": charts.accuracy_chart(utility["scores"])} if utility else {})


def spoken(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def short(number: float) -> str:
    """Up to three digits."""
    return f"{number:.3g}"
