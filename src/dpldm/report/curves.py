"""What a plan's privacy loss allows, beyond one (epsilon, delta): curves, attacks, and other ways to account for it.

Everything follows from the plan alone, by dp-accounting; nothing here imports torch. All values are upper bounds of
what an attacker can do, whatever they know.
"""

import logging
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dpldm.privacy.accounting import Adjacency, deltas_of_selection, epsilon_of_selection, epsilon_rdp
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.selection import Plan, SelectionPlan

Floats = NDArray[np.float64]

GRID = 1e-3
"""Of the privacy loss, for curves: ten times coarser than for the epsilon that is stated, and still pessimistic."""
POINTS = 201
LARGEST_EPSILON = 700.0
"""Where a curve ends at the latest: beyond it e^epsilon is no number."""
FALSE_ALARMS = (0.001, 0.01, 0.1)
"""Rates of false alarms at which the best attack is told."""


@dataclass(frozen=True)
class Curve:
    """delta as a function of epsilon for one adjacency; the pairs that all hold at once."""

    epsilons: Floats  # (n,), from 0 on
    deltas: Floats  # (n,), upper bounds, at most 1

    @property
    def advantage(self) -> float:
        """The most by which any attack's true alarms can exceed its false ones: delta at epsilon 0.

        Any pair bounds it (Kairouz, Oh and Viswanath 2015, arXiv 1311.0776). If deltas at small epsilons are loose, as
        Rényi DP's are, others bound it better.
        """
        pure = np.tanh(self.epsilons / 2)  # (e^epsilon - 1) / (e^epsilon + 1)
        return float(np.min(pure + (1 - pure) * self.deltas))

    def true_alarms(self, false_alarms: float) -> float:
        """Upper bound of the true-positive rate at a false-positive rate (Dong, Roth and Su 2022, eq. 6)."""
        grown = np.exp(self.epsilons) * false_alarms + self.deltas
        mirrored = 1 - np.exp(-self.epsilons) * (1 - self.deltas - false_alarms)
        return float(min(1.0, grown.min(), mirrored.min()))


@lru_cache(maxsize=8)
def curve_of(plan: Plan, adjacency: Adjacency) -> Curve:
    """(epsilon, delta) of all that the plan pays for. A selection's is that of the whole, never of a trial."""
    epsilons = np.linspace(0.0, min(2 * plan.stated_epsilon(adjacency), LARGEST_EPSILON), POINTS)
    if isinstance(plan, SelectionPlan):
        trial = plan.trial
        settings = (trial.noise_multiplier, trial.sampling_probability, trial.attempts, plan.mean_trials, trial.beside)
        return Curve(epsilons, deltas_of_selection(epsilons, *settings, adjacency))
    return Curve(epsilons, _deltas(plan, adjacency, epsilons))


def _deltas(plan: PrivacyPlan, adjacency: Adjacency, epsilons: Floats) -> Floats:
    """Upper bounds of delta, (n,), of all attempts and queries of one run, cut batches paid for."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    replacing = adjacency is Adjacency.REPLACE_ONE
    relation = NeighboringRelation.REPLACE_ONE if replacing else NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = PLDAccountant(relation, GRID)
    if plan.tunes:
        attempt = PoissonSampledDpEvent(plan.sampling_probability, GaussianDpEvent(plan.noise_multiplier))
        accountant.compose(SelfComposedDpEvent(attempt, plan.attempts))
    for query in plan.beside:  # the accountant moves a replaced unit's sum by 2 (see privacy/accounting.py)
        relative = 2 / query.replace_one if replacing else 1.0
        accountant.compose(SelfComposedDpEvent(GaussianDpEvent(query.noise_multiplier * relative), query.times))
    cuts = 0.0 if plan.cap is None else plan.cap.delta(plan.sampling_probability, plan.attempts)
    return np.minimum(1.0, np.asarray(accountant.get_delta(epsilons)) + cuts)


def gaussian_mu(plan: PrivacyPlan) -> float:
    """mu of the plan if every unit were in every batch: Gaussians compose to one (Dong et al. 2022, cor. 3)."""
    attempts = plan.attempts / plan.noise_multiplier**2 if plan.tunes else 0.0
    return math.sqrt(attempts + sum(query.times / query.noise_multiplier**2 for query in plan.beside))


def epsilon_without_amplification(plan: Plan) -> float:
    """Epsilon (add or remove one) if the adversary knew who was in which batch: the closed form of a Gaussian.

    Balle and Wang 2018, arXiv 1805.06530, theorem 8. Of a selection, its bound with every unit in every batch.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if isinstance(plan, SelectionPlan):
        trial = plan.trial
        return epsilon_of_selection(
            trial.noise_multiplier, 1.0, trial.attempts, plan.delta, plan.mean_trials, trial.beside
        )
    mu = gaussian_mu(plan)

    def excess(epsilon: float) -> float:
        """delta at `epsilon` less the plan's; in logarithms, since e^epsilon alone overflows."""
        first = norm.logcdf(-epsilon / mu + mu / 2)
        second = epsilon + norm.logcdf(-epsilon / mu - mu / 2)
        return float(np.exp(first) * -np.expm1(min(0.0, second - first))) - plan.delta

    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, mu**2 / 2 + 40 * mu, xtol=1e-9))


@lru_cache(maxsize=8)
def epsilon_by_renyi(plan: PrivacyPlan) -> float:
    """The looser bound by other code, without cut batches: a check of the one that is stated."""
    logger = logging.getLogger("absl")  # tells of orders that it leaves out, which only makes the bound looser
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return epsilon_rdp(plan.noise_multiplier, plan.sampling_probability, plan.attempts, plan.delta, plan.beside)
    finally:
        logger.setLevel(level)


def belief(epsilon: float, before: float) -> float:
    """The most that an observer who held membership likely with probability `before` may hold it afterwards."""
    return before / (before + (1 - before) * math.exp(-epsilon))
