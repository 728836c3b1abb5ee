"""The content of a report as plain values, from which both the page and `report.json` are made.

Two editions. *release* holds functions of the privacy statement, of the released images and of an audit on made-up
data: nothing that is not in the release already, or could not be computed from it. *internal* holds, beside that, what
was measured on private images, and is marked so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.plan import PrivacyPlan
from dpldm.report.assumptions import assumptions
from dpldm.report.curves import (
    FALSE_ALARMS,
    Curve,
    belief,
    curve_of,
    epsilon_by_renyi,
    epsilon_without_amplification,
    gaussian_mu,
)
from dpldm.report.wording import guarantee_sentence, odds_sentence, strength, upper

MARK = "INTERNAL: do not publish"
"""Heads everything that was measured on private images; `verify` refuses a release that holds it."""
MOST_NAMES = 40
"""Classes that are named; privacy.json has them all."""
LONGEST_NAME = 80
"""Letters of a class's name in that list."""
BELIEFS = (0.01, 0.1, 0.5)
"""How likely somebody may hold it beforehand that a particular unit was used."""


class Edition(StrEnum):
    """Who may read a report."""

    RELEASE = "release"  # everybody
    INTERNAL = "internal"  # the holder of the data


@dataclass(frozen=True)
class Recorded:
    """What lies in a run's folder beside its release. INTERNAL, but for the first two."""

    audit: Mapping[str, Any] | None = None  # what `dpldm audit --json` wrote, of this very plan
    evaluation: Mapping[str, Any] | None = None  # private/evaluation.json
    backbone: Mapping[str, Any] | None = None  # its card; public
    durations: Sequence[Mapping[str, Any]] = ()  # lines of private/timings.jsonl
    ledger: Sequence[Mapping[str, Any]] = ()  # all lines of the data set's ledger


def report_of(statement: Mapping[str, Any], edition: Edition, recorded: Recorded) -> dict[str, Any]:
    """Everything a report says, as JSON values.

    Args:
        statement: a release's privacy.json, verified.
    """
    plan = PrivacyPlan.from_constants(statement["plan"])
    curves = {adjacency: curve_of(plan, adjacency) for adjacency in Adjacency}
    internal = edition is Edition.INTERNAL
    return {
        "format": "dpldm-report-1",
        "edition": edition.value,
        **({"mark": MARK} if internal else {}),
        "run": plan.run,
        "plan_digest": statement["plan_digest"],
        "public_benchmark": plan.public_benchmark,
        "guarantee": _guarantee(statement, plan),
        "odds": _odds(statement["guarantee"], curves[Adjacency.ADD_OR_REMOVE_ONE]),
        "accounting": _accounting(statement["guarantee"], plan),
        "curves": {adjacency.value: _points(curve) for adjacency, curve in curves.items()},
        "trade_off": _trade_off(curves),
        "spending": [[attempts, _up(epsilon)] for attempts, epsilon in plan.epsilon_curve()],
        "unit": _unit(plan),
        "assumptions": [asdict(assumption) for assumption in assumptions(plan, _plans(statement))],
        "ledger": {
            "data_set": plan.dataset_id,
            "plans": _plans(statement),
            "head": dict(statement["ledger"]["head"]),
        },
        "audit": _audit(recorded.audit),
        "public": _public(statement),
        "work": _work(statement, plan, recorded.backbone),
        "software": dict(statement["software"]),
        **({"internal": _internal(recorded, plan)} if internal else {}),
    }


def _up(value: float, digits: int = 4) -> float:
    """Rounded up: a bound must never be shown below itself."""
    return value if not math.isfinite(value) or value == 0 else math.ceil(value * 10**digits) / 10**digits


def _plans(statement: Mapping[str, Any]) -> int:
    return int(statement["ledger"]["plans_on_this_data_set"])


def _guarantee(statement: Mapping[str, Any], plan: PrivacyPlan) -> dict[str, Any]:
    claim = statement["guarantee"]
    return {
        "sentence": guarantee_sentence(statement),
        "epsilon": _up(claim["epsilon"]),
        "epsilon_replace_one": _up(claim["epsilon_replace_one"]),
        "delta": claim["delta"],
        "strength": strength(claim["epsilon"]),
        "covers": claim["covers"],
        "mechanism": statement["mechanism"],
        "mu_without_amplification": _up(gaussian_mu(plan), 2),
        "attempts": plan.attempts,
        "updates": statement["updates"],
    }


def _odds(claim: Mapping[str, Any], curve: Curve) -> dict[str, Any]:
    return {
        "sentence": odds_sentence(claim["epsilon"], claim["unit"]),
        "beliefs": [{"before": p, "after": _up(belief(claim["epsilon"], p), 6)} for p in BELIEFS],
        "advantage": _up(curve.advantage),
        "right_of_100": math.ceil(50 * (1 + curve.advantage)),
        "attacks": [{"false_alarms": rate, "true_alarms": _up(curve.true_alarms(rate))} for rate in FALSE_ALARMS],
    }


def _accounting(claim: Mapping[str, Any], plan: PrivacyPlan) -> list[dict[str, str]]:
    """Epsilon by every way to look at it, the stated one first."""
    rows = [
        ("adding or removing one", upper(claim["epsilon"]), "privacy loss distributions; what the release states"),
        ("replacing one", upper(claim["epsilon_replace_one"]), "the same plan, the other adjacency"),
    ]
    if plan.cap is None:
        rows.append(
            ("Rényi cross-check", upper(epsilon_by_renyi(plan)), "adding or removing one, by other, looser code")
        )
    without = "if somebody knew which batches a record was in"
    rows.append(("without amplification", upper(epsilon_without_amplification(plan)), without))
    if plan.queries:
        rows.append(("queries alone", upper(plan.epsilon_after(0)), "part of the stated epsilon"))
    return [{"how": how, "epsilon": epsilon, "meaning": meaning} for how, epsilon, meaning in rows]


def _points(curve: Curve) -> list[list[float]]:
    """Pairs (epsilon, delta), every fifth of them."""
    return [
        [round(float(e), 4), float(f"{d:.4g}")] for e, d in zip(curve.epsilons[::5], curve.deltas[::5], strict=True)
    ]


def _trade_off(curves: Mapping[Adjacency, Curve]) -> dict[str, list[float]]:
    """The most true alarms of any attack at rates of false alarms, which lie closer together where they are few."""
    rates = [round((k / 40) ** 2, 6) for k in range(41)]
    alarms = {adjacency.value: [_up(curve.true_alarms(r)) for r in rates] for adjacency, curve in curves.items()}
    return {"false_alarms": rates, **alarms}


def _unit(plan: PrivacyPlan) -> dict[str, Any]:
    """Whom the promise protects, and how much of them is used at most."""
    if plan.unit == "image":
        return {
            "name": "image",
            "cap": 1,
            "meaning": "The unit is one image; a person with several images is protected less.",
        }
    meaning = f"The unit is one person: all their images together, of which at most {plan.images_per_unit} are used."
    return {"name": "group", "cap": plan.images_per_unit, "meaning": meaning}


def _audit(audit: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if audit is None:
        return None
    kept = ("name", "violated", "shown", "ceiling")
    return {"violated": audit["violated"], "parts": [{key: part[key] for key in kept} for part in audit["parts"]]}


def _public(statement: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was declared public and is therefore not protected, a line each."""
    declared, plan = statement["declared_constants"], statement["plan"]
    sampling, optimizer = declared["sampling"], declared["optimizer"]
    size = f"{declared['image_size']} x {declared['image_size']}, {'grey' if declared['channels'] == 1 else 'colour'}"
    window = f"; 16-bit window {declared['window'][0]} to {declared['window'][1]}" if declared["window"] else ""
    embedder = "and the class embedder" if declared["tune_embedder"] else "without the class embedder"
    lines = {
        "records": f"{declared['records']:,} as declared; the exact number is not public",
        "classes": _classes(declared["labels"]),
        "images": f"{size}, crop {declared['crop']}{window}",
        "backbone": statement["backbone"]["name"],
        "tuned": f"{declared['trainable']}, {embedder}",
        "noise multiplier sigma": f"{plan['noise_multiplier']:g}",
        "sampling probability q": f"{plan['expected_batch_size']} / {plan['records']}",
        "attempts T + R": f"{plan['steps']} + {plan['reserve_steps']}",
        "clip norm C, rule": f"{plan['max_grad_norm']:g}, {plan['clipping']}",
        "draws per example K": f"{plan['draws_per_example']}",
        **{f"query {query['kind']}": _query(query) for query in plan.get("queries", ())},
        "Adam": ", ".join(
            f"{name.removeprefix('adam_').replace('_', ' ')} {value:g}" for name, value in optimizer.items()
        ),
        "drawing": f"{sampling['sampler']}, {sampling['steps']} steps, guidance {sampling['guidance']:g}, "
        f"seed {sampling['seed']}",
    }
    return [{"name": name, "value": value} for name, value in lines.items()]


def _classes(labels: Sequence[str]) -> str:
    if not labels:
        return "none"
    more = f", and {len(labels) - MOST_NAMES} more" if len(labels) > MOST_NAMES else ""
    names = (label if len(label) <= LONGEST_NAME else f"{label[:LONGEST_NAME]}…" for label in labels[:MOST_NAMES])
    return f"{len(labels)}: {', '.join(names)}{more}"


def _query(query: Mapping[str, Any]) -> str:
    return f"noise multiplier {query['noise_multiplier']:g}, attempts 1 + {query['reserve']}"


def _work(statement: Mapping[str, Any], plan: PrivacyPlan, backbone: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """What the run and its backbone took, as far as it follows from declared constants and public facts."""
    examples, draws = statement["updates"] * plan.expected_batch_size, plan.draws_per_example
    lines = {
        "updates": f"{statement['updates']:,} of {plan.steps:,}",
        "gradients, expected": f"{examples:,}, of {draws} draw{'s' if draws > 1 else ''} each",
    }
    recipe = (backbone or {}).get("recipe")
    if backbone and isinstance(recipe, Mapping) and "public_images" in backbone:
        steps = [f"{recipe[stage]['steps']:,} steps ({stage})" for stage in ("autoencoder", "diffusion")]
        lines["pre-training"] = f"{backbone['public_images']:,} public images, {' and '.join(steps)}"
    return [{"name": name, "value": value} for name, value in lines.items()]


def _internal(recorded: Recorded, plan: PrivacyPlan) -> dict[str, Any]:
    spent: dict[str, float] = {}
    for line in recorded.durations:
        stage = line["stage"].removesuffix("_if_possible")
        spent[stage] = spent.get(stage, 0.0) + line["seconds"]
    return {
        "mark": MARK,
        "evaluation": None if recorded.evaluation is None else dict(recorded.evaluation),
        "durations": [{"stage": stage, "seconds": round(seconds, 1)} for stage, seconds in spent.items()],
        "ledger": _ledger(recorded.ledger, plan),
    }


def _ledger(lines: Sequence[Mapping[str, Any]], plan: PrivacyPlan) -> dict[str, Any] | None:
    """All plans on the data set, and what they cost together."""
    if not lines:
        return None
    plans = [line for line in lines if line["event"] == "plan"]
    rows = [
        {
            "run": line["constants"]["run"],
            "epsilon": line["constants"]["epsilon"],
            "delta": line["constants"]["delta"],
            "charged": sum(other["event"] == "attempt" and other["plan"] == line["plan"] for other in lines),
            "this": line["plan"] == plan.digest(),
        }
        for line in plans
    ]
    reserved = [sum(row[key] for row in rows) for key in ("epsilon", "delta")]
    return {"plans": rows, "cap": lines[0]["cap"], "reserved": reserved, "lines": len(lines)}
