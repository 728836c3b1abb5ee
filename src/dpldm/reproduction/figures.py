"""Published figures, and which number of a manifest may stand beside each: only one of the same protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

Source = Literal["paper", "repository", "third", "unverified"]
SOURCES: dict[Source, str] = {
    "paper": "read in the paper",
    "repository": "the authors' repository",
    "third": "another group's run of the method",
    "unverified": "as remembered, not verified",
}


@dataclass(frozen=True)
class Protocol:
    """A way to measure."""

    title: str
    about: str
    ours: Mapping[str, str] = field(default_factory=dict)
    """What of an evaluation is measured that way: protocol and kind of a classifier, or a distance. Empty: nothing."""

    def number_in(self, evaluation: Mapping[str, Any]) -> float | None:
        """The evaluation's own number by this protocol, if it has one."""
        if "kind" in self.ours:
            utility = evaluation["utility"] or {"protocol": None}
            if utility["protocol"] != self.ours["protocol"] or self.ours["kind"] not in utility["scores"]:
                return None
            return 100 * float(utility["scores"][self.ours["kind"]]["mean"])
        if "distance" in self.ours:
            wanted = f"{self.ours['distance']} ("  # FID is said of the Inception network alone
            return next((float(d["value"]) for d in evaluation["distances"] if d["text"].startswith(wanted)), None)
        return None


@dataclass(frozen=True)
class Figure:
    """What somebody published of a method."""

    pair: str
    method: str
    protocol: str
    source: Source
    reference: str
    values: Mapping[int, float]  # by epsilon

    def text(self, epsilon: int) -> str:
        """A value with at least one decimal, as tables print them."""
        whole, _, decimals = f"{self.values[epsilon]:.2f}".partition(".")
        return f"{whole}.{decimals.rstrip('0') or '0'}"


@dataclass(frozen=True)
class Cost:
    """What somebody published of the work that a method is."""

    method: str
    hours: str
    source: Source
    reference: str


@dataclass(frozen=True)
class Published:
    """All of it."""

    protocols: Mapping[str, Protocol]
    figures: tuple[Figure, ...]
    costs: tuple[Cost, ...]

    def of(self, pair: str) -> list[Figure]:
        """The figures of a pair, DP-LDM's first; a pair on pixels stands beside the same ones."""
        found = [figure for figure in self.figures if figure.pair == pair.removesuffix("-pixels")]
        return sorted(found, key=lambda figure: figure.method != "DP-LDM")


@cache
def published_figures() -> Published:
    """The table `figures.yaml`."""
    text = (resources.files("dpldm.reproduction") / "figures.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    return Published(
        {name: Protocol(**values) for name, values in raw["protocols"].items()},
        tuple(Figure(**_renamed(entry)) for entry in raw["figures"]),
        tuple(Cost(**_renamed(entry)) for entry in raw["costs"]),
    )


def _renamed(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"reference" if key == "from" else key: value for key, value in entry.items()}
