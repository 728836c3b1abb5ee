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
from dpldm.privacy.selection import Plan, SelectionPlan, plan_of_constants, trial_of
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
from dpldm.report.wording import (
    asks_alone,
    chance,
    guarantee_sentence,
    odds_sentence,
    plain_sentence,
    strength,
    trial_constants,
    upper,
)

MARK = "INTERNAL: do not publish"
"""Heads everything that was measured on private images; `verify` refuses a release that holds it."""
MOST_NAMES = 40
"""Classes that are named; privacy.json has them all."""
LONGEST_NAME = 80
"""Letters of a class's name in that list."""
BELIEFS = (0.01, 0.1, 0.5)
"""How likely somebody may hold it beforehand that a particular unit was used."""


BASELINES = {
    "classifier": "DP classifier",
    "pe": "Private Evolution",
    "portraits": "portraits alone",
    "noiseless": "no noise",
    "real": "real images",
}
"""Kinds of `dpldm baseline`, in the order in which a reader compares, by what a chart calls them."""


class Edition(StrEnum):
    """Who may read a report."""

    RELEASE = "release"  # everybody
    INTERNAL = "internal"  # the holder of the data


@dataclass(frozen=True)
class Recorded:
    """What lies in a run's folder beside its release. INTERNAL, but for `audit` and `backbone`."""

    audit: Mapping[str, Any] | None = None  # what `dpldm audit --json` wrote, of this very plan or of its trials'
    evaluation: Mapping[str, Any] | None = None  # private/evaluation.json
    baselines: Sequence[Mapping[str, Any]] = ()  # what `dpldm baseline` wrote, in the order of `BASELINES`
    memorisation: Mapping[str, Any] | None = None  # private/memorisation.json
    backbone: Mapping[str, Any] | None = None  # its card; public
    durations: Sequence[Mapping[str, Any]] = ()  # lines of private/timings.jsonl
    ledger: Sequence[Mapping[str, Any]] = ()  # all lines of the data set's ledger


def report_of(statement: Mapping[str, Any], edition: Edition, recorded: Recorded) -> dict[str, Any]:
    """Everything a report says, as JSON values.

    Args:
        statement: a release's privacy.json, verified.
    """
    plan = plan_of_constants(statement["plan"])
    trial, selected = trial_of(plan), isinstance(plan, SelectionPlan)
    curves = {adjacency: curve_of(plan, adjacency) for adjacency in Adjacency}
    internal = edition is Edition.INTERNAL
    return {
        "format": "dpldm-report-1",
        "edition": edition.value,
        **({"mark": MARK} if internal else {}),
        "run": trial.run,
        "selection": selected,
        "plan_digest": statement["plan_digest"],
        "public_benchmark": plan.public_benchmark,
        "guarantee": _guarantee(statement, plan),
        "odds": _odds(statement["guarantee"], curves[Adjacency.ADD_OR_REMOVE_ONE]),
        "accounting": _accounting(statement["guarantee"], plan),
        "curves": {adjacency.value: _points(curve) for adjacency, curve in curves.items()},
        "trade_off": _trade_off(curves),
        "spending": None
        if selected or not trial.tunes
        else [[attempts, _up(epsilon)] for attempts, epsilon in trial.epsilon_curve()],
        "unit": _unit(trial),
        "assumptions": [asdict(assumption) for assumption in assumptions(plan, _plans(statement))],
        "ledger": {
            "data_set": plan.dataset_id,
            "plans": _plans(statement),
            "head": dict(statement["ledger"]["head"]),
        },
        "audit": _audit(recorded.audit),
        "public": _public(statement),
        "work": _work(statement, trial, recorded.backbone),
        "software": dict(statement["software"]),
        **({"internal": _internal(recorded, plan)} if internal else {}),
    }


def _up(value: float, digits: int = 4) -> float:
    """Rounded up: a bound must never be shown below itself."""
    return value if not math.isfinite(value) or value == 0 else math.ceil(value * 10**digits) / 10**digits


def _plans(statement: Mapping[str, Any]) -> int:
    return int(statement["ledger"]["plans_on_this_data_set"])


def _guarantee(statement: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    claim = statement["guarantee"]
    return {
        "sentence": guarantee_sentence(statement),
        "plain": plain_sentence(claim["epsilon"], claim["delta"], claim["unit"]),
        "chance": chance(claim["delta"]),
        "epsilon": _up(claim["epsilon"]),
        "epsilon_replace_one": _up(claim["epsilon_replace_one"]),
        "delta": claim["delta"],
        "strength": strength(claim["epsilon"]),
        "covers": claim["covers"],
        "mechanism": statement["mechanism"],
        "mu_without_amplification": None if isinstance(plan, SelectionPlan) else _up(gaussian_mu(plan), 2),
        "tunes": trial_of(plan).tunes,
        "attempts": trial_of(plan).attempts,
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


def _accounting(claim: Mapping[str, Any], plan: Plan) -> list[dict[str, str]]:
    """Epsilon by every way to look at it, the stated one first."""
    stated, replacing = upper(claim["epsilon"]), upper(claim["epsilon_replace_one"])
    known = "if somebody knew which batches a record was in"
    without = ("without amplification", upper(epsilon_without_amplification(plan)), known)
    if isinstance(plan, SelectionPlan):
        alone = "tuning once, without a choice; not what this release costs"
        rows = [
            ("adding or removing one", stated, "Rényi DP of the best of all trials; what the release states"),
            ("replacing one", replacing, "removing one and adding another"),
            without,
            ("one trial alone", upper(plan.trial.stated_epsilon()), alone),
        ]
    else:
        rows = [
            ("adding or removing one", stated, "privacy loss distributions; what the release states"),
            ("replacing one", replacing, "the same plan, the other adjacency"),
        ]
        if plan.cap is None:
            checked = "adding or removing one, by other, looser code"
            rows.append(("Rényi cross-check", upper(epsilon_by_renyi(plan)), checked))
        if plan.tunes:
            rows.append(without)
        if plan.queries and plan.tunes:
            rows.append(("queries alone", upper(plan.epsilon_after(0)), "part of the stated epsilon"))
    return [{"how": how, "epsilon": epsilon, "meaning": meaning} for how, epsilon, meaning in rows]


def _points(curve: Curve) -> list[list[float]]:
    """Pairs (epsilon, delta), every fifth of them, delta to four digits."""
    pairs = zip(curve.epsilons[::5].tolist(), curve.deltas[::5].tolist(), strict=True)
    return [[_up(e), min(1.0, _up(d, 3 - math.floor(math.log10(d)))) if d > 1e-300 else d] for e, d in pairs]


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
    declared, plan = statement["declared_constants"], trial_constants(statement["plan"])
    sampling = declared["sampling"]
    size = f"{declared['image_size']} x {declared['image_size']}, {'grey' if declared['channels'] == 1 else 'colour'}"
    window = f"; 16-bit window {declared['window'][0]} to {declared['window'][1]}" if declared["window"] else ""
    lines = {
        "records": f"{declared['records']:,} as declared; the exact number is not public",
        "classes": _classes(declared["labels"]),
        "images": f"{size}, crop {declared['crop']}{window}",
        "backbone": statement["backbone"]["name"],
        **({"tuned": "nothing"} if asks_alone(plan) else _tuning(declared, plan)),
        **{f"query {query['kind']}": _query(query) for query in plan.get("queries", ())},
        **_selection(statement),
        **({} if asks_alone(plan) else {"Adam": _adam(declared["optimizer"])}),
        "drawing": f"{_solver(sampling)}seed {sampling['seed']}{_kept(sampling)}",
    }
    return [{"name": name, "value": value} for name, value in lines.items()]


def _tuning(declared: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, str]:
    """Lines for what was tuned, and for the constants of its gradients."""
    embedder = "and the class embedder" if declared["tune_embedder"] else "without the class embedder"
    return {
        "tuned": f"{declared['trainable']}, {embedder}",
        "noise multiplier sigma": f"{plan['noise_multiplier']:g}",
        "sampling probability q": f"{plan['expected_batch_size']} / {plan['records']}",
        "attempts T + R": f"{plan['steps']} + {plan['reserve_steps']}",
        "clip norm C, rule": f"{plan['max_grad_norm']:g}, {plan['clipping']}",
        "draws per example K": f"{plan['draws_per_example']}",
    }


def _adam(optimizer: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.removeprefix('adam_').replace('_', ' ')} {_setting(value)}" for name, value in optimizer.items()
    )


def _solver(sampling: Mapping[str, Any]) -> str:
    """How a reverse process was solved, where there was one."""
    if "sampler" not in sampling:
        return "from the noised Gaussians, "
    return f"{sampling['sampler']}, {sampling['steps']} steps, guidance {sampling['guidance']:g}, "


def _selection(statement: Mapping[str, Any]) -> dict[str, str]:
    """A line for a selection. The lines about sigma, attempts and queries are those of each trial."""
    if "learning_rates" not in (declared := statement["declared_constants"]):
        return {}
    rates = ", ".join(f"{rate:g}" for rate in declared["learning_rates"])
    trials = f"{statement['plan']['mean_trials']:g} trials on average, each as above; their number is secret"
    return {"selection": f"learning rate {declared['optimizer']['learning_rate']:g} of {rates}; {trials}"}


def _setting(value: Any) -> str:
    """A setting of the optimizer as a person writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_setting, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "none", False: "no", True: "yes"}[value]
    return value if isinstance(value, str) else f"{value:g}"


def _kept(sampling: Mapping[str, Any]) -> str:
    """What part of the drawn images was kept, if not all."""
    share = sampling.get("keep", 1)
    return f"; of the drawn images the {share:.0%} whose class is plainest" if share < 1 else ""


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
    if not plan.tunes:
        return [{"name": "answers", "value": f"{sum(question.answers for question in plan.queries)}; no gradients"}]
    kept = " of the trial that was kept" if "learning_rates" in statement["declared_constants"] else ""
    lines = {
        f"updates{kept}": f"{statement['updates']:,} of {plan.steps:,}",
        f"gradients{kept}, expected": f"{examples:,}, of {draws} draw{'s' if draws > 1 else ''} each",
    }
    recipe = (backbone or {}).get("recipe")
    if backbone and isinstance(recipe, Mapping) and "public_images" in backbone:
        steps = [f"{recipe[stage]['steps']:,} steps ({stage})" for stage in ("autoencoder", "diffusion")]
        lines["pre-training"] = f"{backbone['public_images']:,} public images, {' and '.join(steps)}"
    return [{"name": name, "value": value} for name, value in lines.items()]


def _internal(recorded: Recorded, plan: Plan) -> dict[str, Any]:
    spent: dict[str, float] = {}
    for line in recorded.durations:
        stage = line["stage"].removesuffix("_if_possible")
        spent[stage] = spent.get(stage, 0.0) + line["seconds"]
    return {
        "mark": MARK,
        "evaluation": None if recorded.evaluation is None else dict(recorded.evaluation),
        "baselines": _baselines(recorded.baselines),
        "memorisation": None if recorded.memorisation is None else dict(recorded.memorisation),
        "durations": [{"stage": stage, "seconds": round(seconds, 1)} for stage, seconds in spent.items()],
        "peak_bytes": max((line.get("peak_bytes", 0) for line in recorded.durations), default=0),
        "ledger": _ledger(recorded.ledger, plan),
    }


def _baselines(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What would do instead, or without privacy: a row for each classifier of each baseline that was run."""
    return [
        {"name": f"{BASELINES[each['kind']]}{f' {name}' if len(each['scores']) > 1 else ''}", "what": each["what"]}
        | {"score": score}
        for each in found
        for name, score in each["scores"].items()
    ]


def _ledger(lines: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any] | None:
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
