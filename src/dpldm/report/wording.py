"""The guarantee in words. Imports nothing heavy, so that `verify` can hold a release to the same words."""

import math
from collections.abc import Mapping
from typing import Any


def upper(epsilon: float) -> str:
    """Epsilon rounded UP to two decimals: a shown bound must never be below the true one."""
    return f"{math.ceil(epsilon * 100) / 100:.2f}"


def percent(bound: float) -> str:
    """A bound rounded UP, with as many digits as tell it from 100 %."""
    digits = 1 if bound < 0.999 else 4
    return (
        f"{min(100.0, math.ceil(bound * 10 ** (digits + 2) - 1e-9) / 10**digits):.{digits}f}".rstrip("0").rstrip(".")
        + " %"
    )


def guarantee_sentence(statement: Mapping[str, Any]) -> str:
    """The guarantee in one sentence that defines its unit."""
    claim = statement["guarantee"]
    replacing = f"replacing one: epsilon {upper(claim['epsilon_replace_one'])}"
    return (
        f"({upper(claim['epsilon'])}, {claim['delta']:g})-differentially private with respect to adding or removing "
        f"{unit_in_words(claim['unit'])} in the training set ({replacing})"
    )


def covers(plan: Mapping[str, Any]) -> str:
    """What the guarantee of a plan of either kind (its constants) is about."""
    if is_evolution(plan):
        return "all noised votes of all rounds, hence every candidate and image made from them"
    if asks_alone(plan):
        return "all query answers, hence every image made from them"
    answers = " and query answers" if trial_constants(plan).get("queries") else ""
    if is_selection(plan):
        return (
            f"all noised gradients{answers} of the trial that was kept, its score and its learning rate, hence every "
            "model and image made from them; neither the number of trials nor anything of the others, which were "
            "deleted"
        )
    return f"all noised gradients{answers} of the run, hence every model and image made from them"


def mechanism(plan: Mapping[str, Any]) -> str:
    """The mechanism of a plan of either kind (its constants) in a line."""
    trial = trial_constants(plan)
    if is_evolution(plan):
        return f"Gaussian ({trial['noise']} noise) on the votes of all units, one each, in every round"
    if asks_alone(plan):
        return f"Gaussian queries ({trial['noise']} noise)"
    before = "Gaussian queries, then " if trial.get("queries") else ""
    if is_selection(plan):
        before = "best of a secret, geometric number of trials by a noised score, each Gaussian queries and "
    return f"{before}Poisson-subsampled Gaussian ({trial['noise']} noise), {trial['clipping']} clipping"


def is_selection(plan: Mapping[str, Any]) -> bool:
    """Whether these are the constants of a selection among trials."""
    return plan.get("kind") == "selection"


def is_evolution(plan: Mapping[str, Any]) -> bool:
    """Whether these are the constants of rounds of votes."""
    return asks_alone(plan) and all(query.get("kind") == "nearest_votes" for query in plan.get("queries", ()))


def asks_alone(plan: Mapping[str, Any]) -> bool:
    """Whether these are the constants of questions without gradients."""
    return plan.get("steps") == 0


def trial_constants(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """The constants of one run of Algorithm 1 under a plan of either kind."""
    trial: Mapping[str, Any] = plan["trial"] if is_selection(plan) else plan
    return trial


def public_classes_told(plan: Mapping[str, Any]) -> int:
    """How many classes of its backbone the network of a plan of either kind (its constants) is told beside its own."""
    queries = trial_constants(plan).get("queries", ())
    return next((query["public_classes"] for query in queries if query["kind"] == "public_class_histogram"), 0)


def unit_in_words(unit: str) -> str:
    """What one unit is."""
    return {"image": "one image", "group": "one group, all images of one person,"}[unit]


WEAK = 5.0
"""Epsilon above which a worst-case promise is called weak."""


def strength(epsilon: float) -> str:
    """Epsilon in a word."""
    return "strong" if epsilon <= 1 else "moderate" if epsilon <= WEAK else "weak"


def plain_sentence(epsilon: float, delta: float, unit: str) -> str:
    """The guarantee for somebody who knows neither epsilon nor delta."""
    using = {"image": "one particular image", "group": "the images of one particular person"}[unit]
    return (
        f"In plain words: using {using} shifts the odds of anything that anybody may conclude from this release by at "
        f"most a factor of {factor(epsilon)}, but for a chance of about {chance(delta)}."
    )


def factor(epsilon: float) -> str:
    """e^epsilon rounded UP to two digits; as a power where it has more than nine."""
    if epsilon > 20:
        return f"e^{upper(epsilon)}"
    digit = 10.0 ** (math.floor(epsilon / math.log(10)) - 1)
    shown = math.ceil(math.exp(epsilon) / digit - 1e-9) * digit
    return f"{shown:,.0f}" if shown >= 10 else f"{shown:.1f}"


def chance(delta: float) -> str:
    """A small probability as one in so many, rounded so that it is never shown as less."""
    whole = math.floor(1 / delta + 1e-9)
    digit = 10 ** max(0, len(str(whole)) - 2)
    return f"1 in {whole // digit * digit:,}"


def odds_sentence(epsilon: float, unit: str) -> str:
    """What epsilon bounds for someone who thought membership a coin flip: e^eps / (1 + e^eps)."""
    shown = percent(1 - math.exp(-epsilon) / (1 + math.exp(-epsilon)))
    particular = {"image": "one particular image", "group": "one particular person"}[unit]
    weak = " As a worst-case promise this is weak." if epsilon > WEAK else ""
    return (
        f"Someone who knows everything else and thought it a coin flip whether {particular} was used can "
        f"become at most {shown} sure, but for a probability of about delta.{weak}"
    )
