"""What observations of the mechanism prove about its noise: lower bounds on leakage, never upper ones.

All thresholds and levels are fixed here, before anything is observed. A bound is wrong with at most the stated
probability; `LEVEL` is the probability that a correct mechanism is called a violation, per audit.

    mechanism   Clopper-Pearson bounds of a threshold test give the Gaussian that could have produced it at most
                (Nasr et al. 2023, arXiv 2302.07956)
    one run     guesses about many canaries of one run: Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846), and
                Mahloujifar, Melis and Chaudhuri 2024 (arXiv 2410.22235) for Gaussian trade-off curves
    sampler     moments of independent coins; sizes, favourites and neighbours of batches that were cut
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

LEVEL = 1e-3
"""Probability that an audit of a correct mechanism reports a violation."""
CONFIDENCE = 0.95
"""Of the lower bounds on epsilon that a one-run audit shows."""
THRESHOLD = 0.5
"""In units of C: half way between a sum without the canary and a sum with it."""
LARGEST_EPSILON = 60.0
ROUNDING = 1e-4
"""What float32 may add to a clipped gradient, relative to C."""

_NORMAL = NormalDist()


# --- the mechanism ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MechanismAudit:
    """What n attempts without and n with a canary show about sigma; in units of C."""

    claimed: float  # sigma of the plan
    attempts: int  # n, of each kind
    false_positives: int  # without the canary, reading above the threshold
    false_negatives: int  # with it, not above
    sigma_at_most: float  # from these two counts, whatever the noise looks like; infinite if they show nothing
    spread_at_most: float  # from the spread of the readings, if the noise is Gaussian
    shift_at_least: float  # what the canary adds

    @property
    def violated(self) -> bool:
        """Less noise than claimed, or a canary that counts more than C."""
        return self.sigma_at_most < self.claimed or self.spread_at_most < self.claimed or self._unclipped

    @property
    def sigma_if_gaussian(self) -> float:
        """Upper bound of sigma from spread and shift together: noise relative to what the canary adds."""
        return self.spread_at_most / self.shift_at_least if self.shift_at_least > 0 else math.inf

    @property
    def smallest_sigma(self) -> float:
        """The ceiling: `sigma_at_most` without a single error."""
        return sigma_of_counts(0, 0, self.attempts)

    @property
    def noticed(self) -> float:
        """A Gaussian of this sigma is given away by its counts in at least 95 of 100 audits; 0 if none is."""

        def excess(sigma: float) -> float:
            error = stats.norm.sf(THRESHOLD / sigma)
            worst = int(stats.binom.ppf(0.975, self.attempts, error))  # each count is larger in 2.5 % of audits
            return _separation(worst, worst, self.attempts) - 1 / self.claimed

        smallest = 1e-3 * self.claimed
        if excess(smallest) <= 0:
            return 0.0
        return float(optimize.brentq(excess, smallest, self.claimed, xtol=1e-4 * self.claimed))

    @property
    def noticed_by_spread(self) -> float:
        """A Gaussian of this sigma is given away by its spread in 95 of 100 audits."""
        degrees = 2 * self.attempts - 2
        ratio = stats.chi2.ppf(LEVEL / 4, degrees) / stats.chi2.ppf(0.95, degrees)
        return self.claimed * math.sqrt(ratio)

    @property
    def shift_noticed(self) -> float:
        """A canary that adds so much, in units of C, is called unclipped in 95 of 100 audits."""
        errors = stats.norm.isf(LEVEL / 4) + stats.norm.ppf(0.95)
        return float(1 + ROUNDING + errors * self.claimed * math.sqrt(2 / self.attempts))

    @property
    def _unclipped(self) -> bool:
        return self.shift_at_least > 1 + ROUNDING


def mechanism_audit(without: NDArray[np.float64], canary: NDArray[np.float64], claimed: float) -> MechanismAudit:
    """Judge readings <noised sum, u> / C, u being the canary's direction.

    Half of `LEVEL` belongs to the counts, a quarter each to spread and shift.

    Args:
        without, canary: (n,) each, n >= 2; independent attempts.
        claimed: sigma > 0.
    """
    n = len(without)
    positives, negatives = int((without > THRESHOLD).sum()), int((canary <= THRESHOLD).sum())
    degrees = 2 * n - 2
    scatter = float(((without - without.mean()) ** 2).sum() + ((canary - canary.mean()) ** 2).sum())
    spread = math.sqrt(scatter / stats.chi2.ppf(LEVEL / 4, degrees))
    shift = float(canary.mean() - without.mean()) + stats.t.ppf(LEVEL / 4, degrees) * math.sqrt(
        scatter / degrees * 2 / n
    )
    return MechanismAudit(
        claimed=claimed,
        attempts=n,
        false_positives=positives,
        false_negatives=negatives,
        sigma_at_most=sigma_of_counts(positives, negatives, n),
        spread_at_most=spread,
        shift_at_least=float(shift),
    )


def sigma_of_counts(false_positives: int, false_negatives: int, n: int) -> float:
    """Upper bound of sigma, too low with probability `LEVEL` / 2 at most; infinite if the counts show nothing.

    An attempt that is as private as N(0, sigma^2) against N(1, sigma^2) gives no test, of whatever kind, a larger
    Phi^-1(1 - FPR) - Phi^-1(FNR) than 1 / sigma (Dong, Roth and Su 2019, arXiv 1905.02383), so this does not assume
    that the noise is Gaussian.
    """
    mu = _separation(false_positives, false_negatives, n)
    return 1 / mu if mu > 0 else math.inf


def _separation(false_positives: int, false_negatives: int, n: int) -> float:
    rates = [clopper_pearson(errors, n, LEVEL / 4) for errors in (false_positives, false_negatives)]
    return float(stats.norm.isf(rates[0]) - stats.norm.ppf(rates[1]))


def clopper_pearson(successes: int, n: int, level: float) -> float:
    """Upper bound of a probability; too low with probability `level` at most."""
    return 1.0 if successes >= n else float(stats.beta.ppf(1 - level, successes + 1, n - successes))


# --- the sampler -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplerAudit:
    """Tests of independent coins, and of cut batches if there are any."""

    units: int
    rounds: int
    p_values: dict[str, float]
    rate_noticed: float  # a rate that is wrong by this share of q is called a violation in 95 of 100 audits

    @property
    def violated(self) -> bool:
        """One of them fails at its share of `LEVEL`."""
        return min(self.p_values.values()) < LEVEL / len(self.p_values)


@dataclass(frozen=True)
class CutBatches:
    """Batches of a sampler that cuts about half of them."""

    included: NDArray[np.bool_]  # (rounds, units)
    largest: int  # what they are cut to


def sampler_audit(
    included: NDArray[np.bool_], sampling_probability: float, cut: CutBatches | None = None
) -> SamplerAudit:
    """Judge batches of a sampler.

    Args:
        included: (rounds, units): who was in each batch.
        sampling_probability: q in (0, 1].
        cut: other batches, for a plan that cuts them.
    """
    (rounds, units), q = included.shape, sampling_probability
    of_cuts = {} if cut is None else _of_cuts(cut, q)
    if q == 1:
        return SamplerAudit(units, rounds, {"everyone is in every batch": float(included.all())} | of_cuts, 0.0)
    coins = included - q
    p_values = {
        "rate": float(stats.binomtest(int(included.sum()), included.size, q).pvalue),
        "inclusions of each unit": _spread(included.sum(0), rounds, q),
        "sizes of batches": _spread(included.sum(1), units, q),
        "pairs of units": _together(included[:, :-1], included[:, 1:], coins[:, :-1], coins[:, 1:], q),
        "successive batches": _together(included[:-1], included[1:], coins[:-1], coins[1:], q),
    } | of_cuts
    errors = stats.norm.isf(LEVEL / len(p_values) / 2) + stats.norm.ppf(0.95)
    return SamplerAudit(units, rounds, p_values, float(errors * math.sqrt((1 - q) / (q * included.size))))


def _of_cuts(cut: CutBatches, q: float) -> dict[str, float]:
    """Given its size, a batch must be any part of that size with equal probability, whether it was cut or not."""
    sizes, units = cut.included.sum(1), cut.included.shape[1]
    full = int((sizes == cut.largest).sum())
    chance = float(stats.binom.sf(cut.largest - 1, units, q))  # of a draw that fills the batch
    return {
        "cut batches are no larger": float(sizes.max(initial=0) <= cut.largest),
        "how often batches are cut": float(stats.binomtest(full, len(sizes), chance).pvalue),
        "units of cut batches": _favourites(cut.included),
        "neighbours in cut batches": _runs(cut.included),
    }


def _favourites(included: NDArray[np.bool_]) -> float:
    """Chi-square: is no unit kept more often than others, given the sizes of the batches?"""
    units, shares = included.shape[1], included.mean(1)
    variance = float((shares * (1 - shares)).sum()) * units / (units - 1)  # counts add up, which takes one degree
    if variance == 0:
        return 1.0
    total = float(((included.sum(0) - shares.sum()) ** 2).sum()) / variance
    return float(min(1.0, 2 * min(stats.chi2.cdf(total, units - 1), stats.chi2.sf(total, units - 1))))


def _runs(included: NDArray[np.bool_]) -> float:
    """Are neighbours kept or dropped together? Runs of included units, given the sizes (Wald and Wolfowitz 1940)."""
    units, sizes = included.shape[1], included.sum(1)
    runs = included[:, 0].sum() + (included[:, 1:] & ~included[:, :-1]).sum()
    expected = (sizes * (units - sizes + 1) / units).sum()
    variance = (sizes * (sizes - 1) * (units - sizes) * (units - sizes + 1) / (units**2 * (units - 1))).sum()
    return float(2 * stats.norm.sf(abs(runs - expected) / math.sqrt(variance))) if variance > 0 else 1.0


def _spread(counts: NDArray[np.int64], n: int, q: float) -> float:
    """Chi-square of binomial counts, with the variance that Bin(n, q) gives it."""
    variance = n * q * (1 - q)
    total = float(((counts - n * q) ** 2).sum() / variance)
    mean, spread = len(counts), len(counts) * (2 + (1 - 6 * q * (1 - q)) / variance)
    law = stats.gamma(mean**2 / spread, scale=spread / mean)  # the gamma law with these two moments
    return float(min(1.0, 2 * min(law.cdf(total), law.sf(total))))


def _together(
    first: NDArray[np.bool_], second: NDArray[np.bool_], one: NDArray[Any], other: NDArray[Any], q: float
) -> float:
    """Are coins that lie side by side independent?

    The larger of two p-values: the normal one is right where many pairs meet, the Poisson one where hardly any do.
    """
    covariance = float(np.einsum("ij,ij->", one, other))
    z = covariance / (math.sqrt(first.size) * q * (1 - q))
    met, expected = int((first & second).sum()), first.size * q * q
    poisson = 2 * min(stats.poisson.cdf(met, expected), stats.poisson.sf(met - 1, expected))
    return float(min(1.0, max(2 * stats.norm.sf(abs(z)), poisson)))


# --- canaries in one run ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneRunAudit:
    """Guesses about canaries of one run, each of which was in or out by a fair coin."""

    claimed: float  # epsilon
    delta: float
    canaries: int  # m
    guesses: int  # r, fixed in advance: half of them "in", half "out"
    right: int  # v
    at_least: float  # epsilon, for any mechanism
    at_least_gaussian: float  # epsilon, if its trade-off is that of one Gaussian
    ceiling: float  # what `at_least` would be with every guess right
    ceiling_gaussian: float
    violated: bool  # the guesses are better than the claimed trade-off allows at `LEVEL`
    refutable: bool  # they would be, with every guess right


Curve = Callable[[float], float]
"""A trade-off curve f, as p -> f(1 - p): the least type II error that goes with a type I error of 1 - p."""


def one_run_audit(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    guesses: int,
    claimed: float,
    delta: float,
    claimed_curve: Curve,
) -> OneRunAudit:
    """Guess "in" for the highest scores and "out" for the lowest, and see what the right guesses prove.

    Args:
        scores: (m,) float, higher means "in".
        included: (m,) bool, independent fair coins.
        guesses: r, even, at most m; must not have been chosen by looking at the scores.
        claimed_curve: of the run whose epsilon at delta is `claimed`.
    """
    m, side = len(scores), guesses // 2
    order = scores.argsort()
    right = int(included[order[m - side :]].sum() + (~included[order[:side]]).sum())
    level = 1 - CONFIDENCE
    return OneRunAudit(
        claimed=claimed,
        delta=delta,
        canaries=m,
        guesses=guesses,
        right=right,
        at_least=steinke_bound(right, guesses, m, delta, level),
        at_least_gaussian=gaussian_bound(right, guesses, m, delta, level),
        ceiling=steinke_bound(guesses, guesses, m, delta, level),
        ceiling_gaussian=gaussian_bound(guesses, guesses, m, delta, level),
        violated=curve_rejected(claimed_curve, right, guesses, m, LEVEL),
        refutable=curve_rejected(claimed_curve, guesses, guesses, m, LEVEL),
    )


def default_guesses(canaries: int, epsilon: float) -> int:
    """r, a function of the claim alone: a strong claim is refuted by few sure guesses; a weak one needs many, because
    the largest bound grows like ln(r / 3)."""
    return 2 * (canaries // (20 if epsilon < 3 else 4))


def steinke_p_value(epsilon: float, right: int, guesses: int, canaries: int, delta: float) -> float:
    """Upper bound of P[so many right guesses] under (epsilon, delta)-DP (arXiv 2305.08846)."""
    if right == 0:
        return 1.0
    chance = 1 / (1 + math.exp(-epsilon))
    below = stats.binom.cdf(np.arange(-1, right), guesses, chance)  # below[j]: P[fewer than j right guesses]
    missing = np.arange(1, right + 1)
    excess = (below[right] - below[right - missing]) / missing
    return float(1 - below[right] + 2 * canaries * delta * max(0.0, excess.max()))


def steinke_bound(right: int, guesses: int, canaries: int, delta: float, level: float) -> float:
    """Largest epsilon rejected at `level`; 0 if none is."""
    return _largest(lambda epsilon: steinke_p_value(epsilon, right, guesses, canaries, delta) < level)


def curve_rejected(curve: Curve, right: int, guesses: int, canaries: int, level: float) -> bool:
    """Do so many right guesses have probability `level` at most, if that is the trade-off (arXiv 2410.22235)?"""
    if right == 0:
        return False
    hit, miss = level * right / canaries, level * (guesses - right) / canaries
    for i in range(right - 1, -1, -1):
        larger = max(miss, curve(hit))
        hit = min(1.0, hit + i / (guesses - i) * (larger - miss))
        miss = larger
    return hit + miss > guesses / canaries


def gaussian_curve(mu: float) -> Curve:
    """The trade-off of N(0, 1) against N(mu, 1)."""
    return lambda p: _NORMAL.cdf(_NORMAL.inv_cdf(p) - mu) if p < 1 else 1.0


def curve_of_deltas(epsilons: NDArray[np.float64], deltas: NDArray[np.float64]) -> Curve:
    """The trade-off that (epsilon, delta)-DP at all these epsilons >= 0 leaves, (n,) each (Wasserman and Zhou 2010)."""
    shrink = np.exp(-epsilons)

    def curve(p: float) -> float:
        return float(max(0.0, (1 - deltas - (1 - p) / shrink).max(), (shrink * (p - deltas)).max()))

    return curve


def gaussian_bound(right: int, guesses: int, canaries: int, delta: float, level: float) -> float:
    """Largest epsilon at delta of a `gaussian_curve` that is rejected at `level`; 0 if none is."""
    most = gaussian_mu(LARGEST_EPSILON, delta)
    mu = _largest(lambda mu: curve_rejected(gaussian_curve(mu), right, guesses, canaries, level), most)
    return gaussian_epsilon(mu, delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at delta of telling N(0, 1) from N(mu, 1) (Balle and Wang 2018)."""
    if _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    return float(optimize.brentq(lambda epsilon: _gaussian_delta(epsilon, mu) - delta, 0.0, 1e4))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose epsilon at delta this is."""
    return float(optimize.brentq(lambda mu: _gaussian_delta(epsilon, mu) - delta, 1e-6, 100.0))


def _gaussian_delta(epsilon: float, mu: float) -> float:
    if mu == 0:
        return 0.0
    return float(stats.norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)))


def _largest(rejected: Callable[[float], bool], most: float = LARGEST_EPSILON) -> float:
    """Where a test that rejects small values stops rejecting, from below."""
    if not rejected(0.0):
        return 0.0
    low, high = 0.0, most
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low
