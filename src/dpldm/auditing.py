"""`audit`: attack our own mechanism, and say what was seen and what could have been seen at most.

Never opens a private image: gradients and latents are made up, so an audit costs no budget. What passes is not thereby
proved; the proof is in docs/privacy.md, and so is what each part can and cannot show. An audit can only find that the
code does not do what the proof says.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.privacy import trials
from dpldm.privacy.accounting import delta_curve, epsilon_from_below
from dpldm.privacy.audit import (
    CONFIDENCE,
    LEVEL,
    THRESHOLD,
    MechanismAudit,
    curve_of_deltas,
    default_guesses,
    mechanism_audit,
    one_run_audit,
    sampler_audit,
)
from dpldm.privacy.entropy import SystemEntropy
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.selection import plan_of_constants, trial_of
from dpldm.run import plan_of
from dpldm.verifying import read_statement

ATTEMPTS = 20_000
"""Without the canary, and as many with it."""
SAMPLER_UNITS, SAMPLER_ROUNDS = 2000, 2000
CANARIES = 20_000
MOST_STEPS = 10_000
"""Attempts of the run with canaries; a longer plan is not played to its end."""


@dataclass(frozen=True)
class Part:
    """One part of the audit: what it shows, and what it could have shown at most."""

    name: str
    violated: bool
    shown: tuple[str, ...]  # lines
    ceiling: str
    figures: dict[str, Any]  # JSON values


@dataclass(frozen=True)
class Effort:
    """How much is tried; the defaults are what `dpldm audit` does."""

    attempts: int = ATTEMPTS
    sampler_rounds: int = SAMPLER_ROUNDS
    canaries: int = CANARIES


def audit(plan: PrivacyPlan, config: RunConfig | None = None, effort: Effort | None = None) -> Iterator[Part]:
    """The parts one after the other: mechanism, sampler, canaries, and with a config the replay of its trainer.

    Raises:
        UserError: the plan has no gradients or no noise, or the config's backbone cannot be tuned privately.
    """
    if not plan.tunes:
        raise UserError("The plan is one of queries without gradients, and audits are for what was tuned.")
    if plan.noise_multiplier == 0:
        raise UserError("The plan has no noise, so there is no guarantee to audit: ask for the release again.")
    effort = effort or Effort()
    yield _mechanism(plan, effort)
    yield _sampler(plan, effort)
    if config is not None:
        yield _replay(config, plan)
    yield _canaries(plan, effort)


def planned(release: Path | None, config: RunConfig | None) -> PrivacyPlan:
    """The plan of a release directory or of a run's config; of a selection, that of each of its trials.

    Raises:
        UserError: neither or both are given, or what is given holds no plan.
    """
    if release is None and config is not None:
        return plan_of(config)
    if release is None or config is not None:
        raise UserError("Give either --config with a run's settings, or --release with a release directory.")
    try:
        return trial_of(plan_of_constants(read_statement(release)["plan"]))
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"The statement in {release} holds no plan that can be audited: run `dpldm verify`.") from error


def _mechanism(plan: PrivacyPlan, effort: Effort) -> Part:
    n, claimed = effort.attempts, _claimed(plan)
    without, canary = (trials.readings(plan, n, canary=there) for there in (False, True))
    found = mechanism_audit(without, canary, plan.noise_multiplier)
    counts, gaussian = _epsilon_of(plan, found.sigma_at_most), _epsilon_of(plan, found.sigma_if_gaussian)
    shown = (
        f"{n:,} attempts without and {n:,} with a canary whose gradient exceeds C; a reading above {THRESHOLD:g} C: "
        f"{found.false_positives:,} without, {n - found.false_negatives:,} with",
        f"by these counts: sigma at most {found.sigma_at_most:.3f} (claimed {found.claimed:.3f}), "
        f"epsilon of all attempts at least {_evidence(counts)} (claimed {claimed:.2f})",
        f"if the noise is Gaussian: sigma at most {found.spread_at_most:.3f} by its spread, the canary adds at least "
        f"{found.shift_at_least:.3f} C (must not exceed 1); together epsilon at least {_evidence(gaussian)}",
    )
    figures = asdict(found) | {
        "epsilon_at_least": counts,
        "epsilon_at_least_if_gaussian": gaussian,
        "epsilon_claimed": claimed,
        "sigma_noticed": found.noticed,
        "sigma_noticed_by_spread": found.noticed_by_spread,
        "shift_noticed": found.shift_noticed,
        "smallest_sigma": found.smallest_sigma,
    }
    return Part("clipping and noise", found.violated, shown, _mechanism_ceiling(plan, found), figures)


def _mechanism_ceiling(plan: PrivacyPlan, found: MechanismAudit) -> str:
    counts = f"sigma below {found.noticed:.3f}" if found.noticed else "nothing"
    most = _epsilon_of(plan, found.smallest_sigma)
    return (
        f"in 95 of 100 audits {counts} by the counts, sigma below {found.noticed_by_spread:.3f} by the spread, "
        f"a canary that adds {found.shift_noticed:.2f} C; no epsilon above {most:.0f} by the counts"
    )


def _sampler(plan: PrivacyPlan, effort: Effort) -> Part:
    q = plan.sampling_probability
    size = (SAMPLER_UNITS, effort.sampler_rounds)
    cut = trials.cut_batches(plan, *size) if plan.cap is not None else None
    found = sampler_audit(trials.batches(plan, *size), q, cut)
    worst = min(found.p_values, key=lambda name: found.p_values[name])
    and_cut = f", and as many cut to {cut.largest:,}" if cut else ""
    shown = (
        f"{found.rounds:,} batches of {found.units:,} units at q = {q:.5g}{and_cut}; tests of independent coins: "
        f"{len(found.p_values)}, smallest p-value {found.p_values[worst]:.2g} ({worst})",
    )
    of_cuts = "cuts that favour units or keep neighbours together, " if cut else ""
    ceiling = (
        f"in 95 of 100 audits a rate that is wrong by {found.rate_noticed:.1%}; batches of a fixed size, {of_cuts}"
        "neighbouring units or successive batches that depend on each other; not a rare dependence"
    )
    return Part("sampling", found.violated, shown, ceiling, asdict(found) | {"q": q})


def _replay(config: RunConfig, plan: PrivacyPlan) -> Part:
    from dpldm.train.replay import STEPS, replay

    pairs = replay(config, plan)
    wrong = [pair for pair in pairs if pair.violated]
    shown = [
        f"{len(pairs)} pairs of neighbours, {STEPS} updates each, on backbone {Path(config.backbone).name}: "
        f"clipped sums at most {max(pair.distance for pair in pairs):.5f} C apart"
    ]
    if not wrong:
        shown.append("ledgers, files, shown steps, learning rates and ends are equal")
    for pair in wrong:
        what = ", ".join(pair.different) or "the sums"
        shown.append(f"a unit {pair.relation}, {pair.kind}: {what} differ; sums {pair.distance:.5f} C apart")
    ceiling = "what these pairs reach: nothing about other units, other settings, or reading and encoding of images"
    return Part("replay of the trainer", bool(wrong), tuple(shown), ceiling, {"pairs": [asdict(p) for p in pairs]})


def _canaries(plan: PrivacyPlan, effort: Effort) -> Part:
    m, claimed, steps = effort.canaries, _claimed(plan), min(plan.attempts, MOST_STEPS)
    included = np.frombuffer(SystemEntropy().bytes(m), dtype=np.uint8) % 2 == 1
    scores = trials.canary_scores(plan, included, steps)
    curve = curve_of_deltas(*delta_curve(plan.noise_multiplier, plan.sampling_probability, steps))
    found = one_run_audit(scores, included, default_guesses(m, claimed), claimed, plan.delta, curve)
    shown = (
        f"{m:,} canaries, each in by a fair coin, {steps:,} attempts; "
        f"{found.right:,} of {found.guesses:,} guesses right",
        f"epsilon at least {_evidence(found.at_least)} for any mechanism, {_evidence(found.at_least_gaussian)} for a "
        f"Gaussian trade-off ({CONFIDENCE:.0%} confidence each; claimed {claimed:.2f})",
    )
    ceiling = f"{found.ceiling:.2f}, and {found.ceiling_gaussian:.2f} for a Gaussian trade-off, with every guess right"
    if not found.refutable:
        ceiling += "; not even then would it be a violation"
    elif found.ceiling < claimed:
        ceiling += "; a violation only if hardly a guess is wrong, that is by a catastrophe"
    if steps < plan.attempts:
        ceiling += f"; {plan.attempts - steps:,} of {plan.attempts:,} attempts were left out"
    return Part("canaries in one run", found.violated, shown, ceiling, asdict(found) | {"attempts": steps})


def _claimed(plan: PrivacyPlan) -> float:
    """Epsilon that a release of this plan states."""
    return plan.epsilon_after(plan.attempts)


def _epsilon_of(plan: PrivacyPlan, sigma: float) -> float:
    """Lower bound of epsilon of the whole plan with this sigma."""
    return epsilon_from_below(sigma, plan.sampling_probability, plan.attempts, plan.delta)


def _evidence(bound: float) -> str:
    """A lower bound, rounded down."""
    down = math.floor(bound * 100) / 100
    return f"{down:.2f}" if down > 0 else "0.0 (no evidence found)"


def as_json(plan: PrivacyPlan, parts: list[Part]) -> dict[str, Any]:
    """Everything as JSON values; an infinite bound, which shows nothing, is null."""
    return {
        "format": "dpldm-audit-1",
        "plan": plan.constants(),
        "level": LEVEL,
        "violated": any(part.violated for part in parts),
        "parts": [_finite(asdict(part)) for part in parts],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
