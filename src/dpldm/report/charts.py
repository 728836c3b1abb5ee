"""Charts as SVG inside a page: drawn by matplotlib, coloured by the page, so that they follow light and dark.

A page's policy forbids style attributes, so they become attributes of their own; colours become the page's variables.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from dpldm.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, SOFT, LINE, FIRST, SECOND, PAGE = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
"""Stand-ins that matplotlib draws with."""
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", FIRST: "accent", SECOND: "second", PAGE: "page"}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
WIDTH = 4.6  # inches at 72 to the inch: about the width of a phone, so that text keeps its size there

Draw = Callable[["Axes"], None]


def require_matplotlib() -> None:
    """Refuse to begin what charts could not be drawn for.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtra("matplotlib", "report", "A report's charts") from error


def figure(name: str, description: str, draw: Draw, height: float = 3.1) -> str:
    """One chart as SVG text without scripts, styles or foreign references.

    Args:
        name: distinguishes the ids of several charts in a page.
        description: what a screen reader says in its place.
        draw: puts the content on an axes.
        height: inches.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10,
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.edgecolor": LINE,
        "axes.labelcolor": SOFT,
        "axes.facecolor": "none",
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": SOFT,
        "ytick.labelcolor": SOFT,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "lines.linewidth": 1.8,
        "xtick.minor.visible": False,
        "ytick.minor.visible": False,
    }
    with matplotlib.rc_context(settings):
        canvas = Figure(figsize=(WIDTH, height), layout="constrained")
        canvas.patch.set_visible(False)
        draw(canvas.subplots())
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _for_a_page(buffer.getvalue(), description)


def _for_a_page(svg: bytes, description: str) -> str:
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style") or "metadata" in child.tag:
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)", svg.decode()))
    for element in root.iter():
        _style_to_attributes(element)
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        for key, value in element.attrib.items():
            if value in VARIABLES:
                element.set(key, f"var(--{VARIABLES[value]})")
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", description)
    return ElementTree.tostring(root, encoding="unicode")


def _style_to_attributes(element: ElementTree.Element) -> None:
    for declaration in filter(None, element.attrib.pop("style", "").split(";")):
        key, value = (part.strip() for part in declaration.split(":", 1))
        if key == "font":  # a shorthand, which is no attribute; the family is the page's
            size = re.search(r"[\d.]+px", value)
            key, value = "font-size", size[0] if size else "10px"
        if not key.startswith("-"):
            element.set(key, value)


# --- the charts of a report -----------------------------------------------------------------------------------------


def delta_chart(curves: dict[str, list[list[float]]], epsilon: float, delta: float) -> str:
    """Which pairs (epsilon, delta) hold, for both adjacencies; a point at the stated pair."""

    def draw(axes: "Axes") -> None:
        for (name, points), colour, dashes in zip(curves.items(), (FIRST, SECOND), ("-", (0, (5, 2))), strict=True):
            epsilons, deltas = np.array(points).T
            seen = deltas > 1e-9
            axes.semilogy(epsilons[seen], deltas[seen], color=colour, linestyle=dashes, label=_words(name))
        axes.plot([epsilon], [delta], "o", color=FIRST, markersize=7, markeredgecolor=PAGE, zorder=5)
        axes.annotate("stated", (epsilon, delta), (-7, -13), textcoords="offset points", ha="right", color=INK)
        axes.set(xlabel="epsilon", ylabel="delta", ylim=(1e-9, 2), xlim=(0, None))
        axes.set_yticks([1.0, 1e-3, 1e-6, 1e-9], ["1", "1e-3", "1e-6", "1e-9"])
        axes.grid(True)
        axes.legend(frameon=False, loc="upper right", labelcolor=INK)

    return figure(
        "delta", "Curves of delta over epsilon for both adjacencies, falling; a dot at the stated pair.", draw
    )


def attack_chart(false_alarms: Sequence[float], curves: dict[str, Sequence[float]]) -> str:
    """The most true alarms that any attack can have at a rate of false alarms: the trade-off curve, turned over."""

    def draw(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (2, 2)), label="guessing")
        for (name, rates), colour, dashes in zip(curves.items(), (FIRST, SECOND), ("-", (0, (5, 2))), strict=True):
            axes.plot(false_alarms, rates, color=colour, linestyle=dashes, label=_words(name))
        first = next(iter(curves.values()))
        axes.fill_between(false_alarms, false_alarms, first, color=FIRST, alpha=0.12, linewidth=0)
        axes.set(xlabel="false alarms", ylabel="true alarms, at most", xlim=(0, 1), ylim=(0, 1.01))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.grid(True)
        axes.legend(frameon=False, loc="lower right", labelcolor=INK)

    return figure("attack", "Curves of the most true alarms over false alarms, above the diagonal of guessing.", draw)


def spending_chart(points: list[list[float]]) -> str:
    """Epsilon after so many attempts."""

    def draw(axes: "Axes") -> None:
        attempts, epsilons = np.array(points).T
        axes.plot(attempts, epsilons, color=FIRST, marker="o", markersize=3.5)
        axes.set(xlabel="attempts", ylabel="epsilon", ylim=(0, None))
        axes.locator_params("x", integer=True)
        axes.grid(True)

    return figure("spending", "Epsilon over the number of attempts, rising.", draw, height=2.6)


def guesses_chart(right: int) -> str:
    """100 coin-flip guesses as dots: what luck gives, what the release may add at most, and the rest."""

    def draw(axes: "Axes") -> None:
        x, y = np.arange(100) % 20, -(np.arange(100) // 20)
        groups = [(0, 50, SOFT, SOFT), (50, right, FIRST, FIRST), (right, 100, "none", LINE)]
        for start, end, face, edge in groups:
            axes.scatter(x[start:end], y[start:end], s=58, facecolors=face, edgecolors=edge, linewidths=1)
        axes.set_in_layout(False)
        axes.set_position((0, 0, 1, 1))
        axes.set(xlim=(-0.45, 19.45), ylim=(-4.5, 0.5), aspect="equal")
        axes.axis("off")

    text = (
        f"100 dots: 50 are right by luck, {right - 50} more at most by attacking the release, {100 - right} are wrong."
    )
    return figure("guesses", text, draw, height=1.3)


def accuracy_chart(scores: Mapping[str, Mapping[str, Any]], beside: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy on real images, with intervals: classifiers that learned from synthetic ones, and what else."""
    bars = [(name, score, FIRST) for name, score in scores.items()]
    bars += [(name, score, SECOND) for name, score in beside.items()]

    def draw(axes: "Axes") -> None:
        for place, (_, score, colour) in enumerate(bars):
            low, high = score["interval"]
            axes.barh(place, score["mean"], color=colour, alpha=0.3, height=0.5)
            axes.plot([low, high], [place, place], color=colour, linewidth=3)
            axes.annotate(f"{100 * score['mean']:.1f} %", (high, place), (7, -3), textcoords="offset points", color=INK)
        axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
        axes.set(xlim=(0, 1.2), xlabel="accuracy on real test images")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.invert_yaxis()
        axes.grid(True, axis="x")

    told = ", ".join(f"{name} {100 * score['mean']:.1f} %" for name, score, _ in bars)
    return figure("accuracy", f"Bars of accuracy: {told}.", draw, height=0.9 + 0.4 * len(bars))


def _words(adjacency: str) -> str:
    return {"add_or_remove_one": "add or remove one", "replace_one": "replace one"}[adjacency]
