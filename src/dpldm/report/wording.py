"""The guarantee in words. Imports nothing heavy, so that `verify` can hold a release to the same words."""

import math
from collections.abc import Mapping
from typing import Any


def upper(epsilon: float) -> str:
    """Epsilon rounded UP to two decimals: a shown bound must never be below the true one."""
    return f"{math.ceil(epsilon * 100) / 100:.2f}"


def guarantee_sentence(statement: Mapping[str, Any]) -> str:
    """The guarantee in one sentence that defines its unit."""
    claim = statement["guarantee"]
    replacing = f"replacing one: epsilon {upper(claim['epsilon_replace_one'])}"
    return (
        f"({upper(claim['epsilon'])}, {claim['delta']:g})-differentially private with respect to adding or removing "
        f"{unit_in_words(claim['unit'])} in the training set ({replacing})"
    )


def unit_in_words(unit: str) -> str:
    """What one unit is."""
    return {"image": "one image", "group": "one group, all images of one person,"}[unit]


def odds_sentence(epsilon: float, unit: str) -> str:
    """What epsilon bounds for someone who thought membership a coin flip: e^eps / (1 + e^eps)."""
    belief = 1 - math.exp(-epsilon) / (1 + math.exp(-epsilon))
    shown = math.ceil(belief * 1e6) / 1e4  # a bound is rounded up
    particular = {"image": "one particular image", "group": "one particular person"}[unit]
    weak = " As a worst-case promise this is weak." if epsilon > 5 else ""
    return (
        f"Someone who knows everything else and thought it a coin flip whether {particular} was used can "
        f"become at most {shown:g} % sure, but for a probability of about delta.{weak}"
    )
