"""The statistics of audits against closed forms and published values, and how often they err on correct mechanisms.

All randomness is numpy's under fixed seeds, so that no test fails by chance.
"""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from dpldm.privacy.accounting import delta_curve, epsilon, epsilon_from_below
from dpldm.privacy.audit import (
    LEVEL,
    CutBatches,
    OneRunAudit,
    _favourites,
    _runs,
    clopper_pearson,
    curve_of_deltas,
    curve_rejected,
    default_guesses,
    gaussian_bound,
    gaussian_curve,
    gaussian_epsilon,
    gaussian_mu,
    mechanism_audit,
    one_run_audit,
    sampler_audit,
    sigma_of_counts,
    steinke_bound,
    steinke_p_value,
)

SIGMAS = {1: 2.113, 4: 0.909, 10: 0.633}
"""Noise multipliers of epsilon 1, 4 and 10 at q = 0.0256, T = 400, delta = 1e-5."""


# --- the mechanism ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 50), (1, 50), (17, 50), (49, 50)])
def test_clopper_pearson_is_the_exact_binomial_bound(k: int, n: int) -> None:
    bound = clopper_pearson(k, n, 0.01)
    assert stats.binom.cdf(k, n, bound) == pytest.approx(0.01)
    assert bound == pytest.approx(stats.binomtest(k, n).proportion_ci(0.98, method="exact").high)
    assert clopper_pearson(n, n, 0.01) == 1.0


def test_counts_of_a_gaussian_show_almost_its_sigma() -> None:
    """With ever more attempts the bound comes down to sigma, from above."""
    for sigma in SIGMAS.values():
        bounds = []
        for n in (10**4, 10**6, 10**8):
            errors = round(n * stats.norm.sf(0.5 / sigma))
            bounds.append(sigma_of_counts(errors, errors, n))
        assert bounds[0] > bounds[1] > bounds[2] > sigma
        assert bounds[2] == pytest.approx(sigma, rel=2e-3)
    assert sigma_of_counts(500, 500, 1000) == math.inf


def pairs(rng: np.random.Generator, n: int, sigma: float, shift: float = 1.0) -> tuple[NDArray[np.float64], ...]:
    return rng.normal(0.0, sigma, n), rng.normal(shift, sigma, n)


@pytest.mark.parametrize("sigma", [*SIGMAS.values(), 0.1, 20.0])
def test_a_correct_gaussian_is_hardly_ever_called_a_violation(sigma: float) -> None:
    """Level 1e-3: one alarm of 1,000 is expected at most; more than 7 would have probability 1e-5."""
    rng = np.random.default_rng(1)
    assert sum(mechanism_audit(*pairs(rng, 200, sigma), sigma).violated for _ in range(1000)) <= 7
    assert LEVEL == 1e-3


@pytest.mark.parametrize("sigma", SIGMAS.values())
@pytest.mark.parametrize("cause", ["spread", "shift"])
def test_the_smallest_stated_defect_is_noticed_as_often_as_stated(sigma: float, cause: str) -> None:
    rng = np.random.default_rng(2)
    n = 20_000
    stated = mechanism_audit(*pairs(rng, n, sigma), sigma)
    assert not stated.violated
    assert stated.noticed < stated.noticed_by_spread < sigma
    assert 1 < stated.shift_noticed < 1.2
    found = [
        mechanism_audit(*pairs(rng, n, stated.noticed_by_spread), sigma)
        if cause == "spread"
        else mechanism_audit(*pairs(rng, n, sigma, stated.shift_noticed), sigma)
        for _ in range(100)
    ]
    assert sum(audit.violated for audit in found) >= 85  # 95 expected; fewer than 85 has probability 4e-5


@pytest.mark.parametrize("sigma", SIGMAS.values())
def test_the_counts_alone_notice_what_they_are_said_to(sigma: float) -> None:
    rng = np.random.default_rng(3)
    true = mechanism_audit(*pairs(rng, 20_000, sigma), sigma).noticed
    found = [mechanism_audit(*pairs(rng, 20_000, true), sigma) for _ in range(100)]
    assert sum(audit.sigma_at_most < sigma for audit in found) >= 85
    assert true > 0.8 * sigma


def test_noise_of_another_shape_is_judged_by_its_counts() -> None:
    """Two-valued noise has the claimed spread and hides nothing."""
    rng = np.random.default_rng(4)
    noise = [0.4 * rng.choice([-1.0, 1.0], 5000) for _ in range(2)]
    found = mechanism_audit(noise[0], 1 + noise[1], 0.4)
    assert found.false_positives == found.false_negatives == 0
    assert found.sigma_at_most == found.smallest_sigma < 0.4
    assert found.violated


# --- the sampler -----------------------------------------------------------------------------------------------


def coins(rng: np.random.Generator, q: float, rounds: int = 400, units: int = 300) -> NDArray[np.bool_]:
    return rng.random((rounds, units)) < q


@pytest.mark.parametrize("q", [0.5, 0.0256, 1e-3, 1e-4])
def test_independent_coins_are_hardly_ever_called_a_violation(q: float) -> None:
    """Level 1e-3: at most 0.4 expected alarms of 400; more than 4 would have probability 6e-5."""
    rng = np.random.default_rng(5)
    assert sum(sampler_audit(coins(rng, q), q).violated for _ in range(400)) <= 4


def test_dependent_coins_are_noticed_by_the_test_that_is_for_them() -> None:
    rng = np.random.default_rng(6)
    fair = coins(rng, 0.1)
    sizes = np.stack([rng.permutation(300) < 30 for _ in range(400)])
    twins = np.repeat(coins(rng, 0.1, units=150), 2, axis=1)
    sticky = np.repeat(coins(rng, 0.1, rounds=200), 2, axis=0)
    favourites = rng.random((400, 300)) < np.where(np.arange(300) % 2, 0.12, 0.08)
    lowest = {name: min((v := sampler_audit(found, 0.1).p_values), key=lambda test: v[test]) for name, found in {
        "twins": twins, "sticky": sticky, "favourites": favourites}.items()}  # fmt: skip
    assert lowest == {
        "twins": "pairs of units",
        "sticky": "successive batches",
        "favourites": "inclusions of each unit",
    }
    assert sampler_audit(sizes, 0.1).p_values["sizes of batches"] < 1e-6
    assert sampler_audit(fair, 0.11).p_values["rate"] < 1e-6
    assert all(sampler_audit(found, 0.1).violated for found in (sizes, twins, sticky, favourites))
    assert not sampler_audit(fair, 0.1).violated


def cut(rng: np.random.Generator, q: float, kept: str = "any", rounds: int = 400, units: int = 300) -> CutBatches:
    """Fair coins, cut to about their mean by a rule that is right (any) or not."""
    found, largest = coins(rng, q, rounds, units), min(round(units * q), units // 2)
    for row in found:
        drawn = np.flatnonzero(row)
        start = rng.integers(0, max(1, len(drawn) - largest + 1))
        order = {
            "any": rng.permutation(len(drawn)),
            "first": np.arange(len(drawn)),
            "block": np.roll(np.arange(len(drawn)), -start),
            "too many": rng.permutation(len(drawn))[: max(0, len(drawn) - 1)],
            "none": np.arange(0),
        }[kept]
        size = {"too many": len(drawn), "none": 0}.get(kept, largest)
        if len(drawn) > largest:
            row[:] = False
            row[drawn[order[:size]]] = True
    return CutBatches(found, largest)


@pytest.mark.parametrize("q", [0.5, 0.0256, 0.004])
def test_fair_cuts_are_hardly_ever_called_a_violation(q: float) -> None:
    """Level 1e-3: at most 0.1 expected alarms of 100; more than 3 would have probability 4e-6."""
    rng = np.random.default_rng(10)
    assert sum(sampler_audit(coins(rng, q), q, cut(rng, q)).violated for _ in range(100)) <= 3


@pytest.mark.parametrize(
    ("kept", "noticed"),
    [
        ("first", "units of cut batches"),
        ("block", "neighbours in cut batches"),
        ("too many", "cut batches are no larger"),
        ("none", "how often batches are cut"),
    ],
)
def test_unfair_cuts_are_noticed_by_the_test_that_is_for_them(kept: str, noticed: str) -> None:
    rng = np.random.default_rng(11)
    found = sampler_audit(coins(rng, 0.3), 0.3, cut(rng, 0.3, kept, rounds=2000))
    assert found.violated
    assert found.p_values[noticed] < 1e-6
    assert sampler_audit(coins(rng, 1.0), 1.0, cut(rng, 1.0, "first")).violated


def test_runs_and_favourites_have_the_moments_that_are_used() -> None:
    """P-values of 500 sets of random parts are uniform: their mean, and how many are below 5 %, in five deviations."""
    rng = np.random.default_rng(12)
    parts = [np.stack([rng.permutation(40) < size for size in (7, 20, 31) * 20]) for _ in range(500)]
    for test in (_runs, _favourites):
        p_values = np.array([test(part) for part in parts])
        assert p_values.mean() == pytest.approx(0.5, abs=5 * (1 / 12 / 500) ** 0.5)
        assert np.mean(p_values < 0.05) == pytest.approx(0.05, abs=5 * (0.05 * 0.95 / 500) ** 0.5)


def test_at_q_1_everyone_must_be_in_every_batch() -> None:
    everyone = np.ones((5, 4), dtype=bool)
    assert not sampler_audit(everyone, 1.0).violated
    everyone[3, 2] = False
    assert sampler_audit(everyone, 1.0).violated


# --- canaries in one run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [10, 100, 1000, 5000])
def test_all_guesses_right_without_delta_has_a_closed_form(r: int) -> None:
    root = 0.05 ** (1 / r)
    assert steinke_bound(r, r, r, 0.0, 0.05) == pytest.approx(math.log(root / (1 - root)), abs=2e-4)


@pytest.mark.parametrize(
    ("m", "delta_0", "delta_small", "curve_all", "curve_tenth"),
    [(100, 3.49, 3.49, 8.2, 1.6), (500, 5.11, 5.10, 11.1, 4.4), (1000, 5.81, 5.78, 12.3, 5.6),
     (2000, 6.50, 6.45, 13.5, 6.6), (5000, 7.42, 7.28, 15.0, 8.0)],
)  # fmt: skip
def test_ceilings_have_known_values(
    m: int, delta_0: float, delta_small: float, curve_all: float, curve_tenth: float
) -> None:
    """The first two columns agree with an independent implementation to four decimals where compared."""
    assert steinke_bound(m, m, m, 0.0, 0.05) == pytest.approx(delta_0, abs=0.006)
    assert steinke_bound(m, m, m, 1e-5, 0.05) == pytest.approx(delta_small, abs=0.006)
    assert gaussian_bound(m, m, m, 1e-5, 0.05) == pytest.approx(curve_all, abs=0.06)
    assert gaussian_bound(m // 10, m // 10, m, 1e-5, 0.05) == pytest.approx(curve_tenth, abs=0.06)


def test_nothing_is_shown_by_guesses_that_are_no_better_than_coins() -> None:
    for right in (0, 50, 55):
        assert steinke_bound(right, 100, 1000, 1e-5, 0.05) == 0.0
        assert gaussian_bound(right, 100, 1000, 1e-5, 0.05) == 0.0
    assert steinke_p_value(0.0, 0, 100, 1000, 1e-5) == 1.0


def test_epsilon_of_a_gaussian_and_back() -> None:
    for delta in (1e-3, 1e-5, 1e-9):
        for claim in (0.1, 1.0, 10.0, 40.0):
            assert gaussian_epsilon(gaussian_mu(claim, delta), delta) == pytest.approx(claim, rel=1e-6)
    assert epsilon(1 / gaussian_mu(4.0, 1e-5), 1.0, 1, 1e-5) == pytest.approx(4.0, rel=1e-3)
    assert gaussian_epsilon(0.0, 1e-5) == 0.0


def test_deltas_of_a_gaussian_give_its_trade_off() -> None:
    epsilons = np.linspace(0.0, 10.0, 2001)
    mu = 1.5
    deltas = stats.norm.cdf(mu / 2 - epsilons / mu) - np.exp(epsilons) * stats.norm.cdf(-mu / 2 - epsilons / mu)
    curve, exact = curve_of_deltas(epsilons, deltas), gaussian_curve(mu)
    for p in (0.01, 0.2, 0.5, 0.8, 0.99):
        assert curve(p) == pytest.approx(exact(p), abs=1e-5)


@pytest.mark.parametrize(("claim", "r"), [(1.0, 50), (1.0, 500), (4.0, 500)])
def test_the_bound_exceeds_the_truth_in_hardly_more_than_a_twentieth_of_runs(claim: float, r: int) -> None:
    """Randomised response leaks exactly epsilon. 5 % nominal; 7 % is two standard errors of 500 runs above."""
    rng = np.random.default_rng(7)
    right = rng.binomial(r, 1 / (1 + math.exp(-claim)), 500)
    wrong = [steinke_p_value(claim, int(v), r, 500, 0.0) < 0.05 for v in right]
    assert 0 < np.mean(wrong) <= 0.07, "never too large would be a bound that shows less than it could"


@pytest.mark.parametrize("claim", [1.0, 10.0])
def test_the_gaussian_bound_exceeds_the_truth_in_hardly_more_than_a_twentieth_of_runs(claim: float) -> None:
    """Scores of one Gaussian with exactly this epsilon, guessed by rank as the audit does."""
    rng = np.random.default_rng(8)
    m, mu = 500, gaussian_mu(claim, 1e-5)
    curve, wrong = gaussian_curve(mu), 0
    for _ in range(500):
        included = rng.random(m) < 0.5
        order = (rng.normal(size=m) + mu * included).argsort()
        side = default_guesses(m, claim) // 2
        right = int(included[order[m - side :]].sum() + (~included[order[:side]]).sum())
        wrong += curve_rejected(curve, right, 2 * side, m, 0.05)
    assert wrong / 500 <= 0.07


def run_of_canaries(
    rng: np.random.Generator, m: int, sigma: float, shift: float, q: float, steps: int, claimed_sigma: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    included, scores = rng.random(m) < 0.5, np.zeros(m)
    for _ in range(steps):
        sums = rng.normal(0.0, sigma, m) + shift * (included & (rng.random(m) < q))
        scores += np.logaddexp(math.log1p(-q), math.log(q) + (sums - 0.5) / claimed_sigma**2)
    return scores, included


@pytest.mark.parametrize("claim", SIGMAS)
def test_correct_runs_are_never_refuted_and_catastrophes_are_seen(claim: int) -> None:
    """q = 0.0256, T = 400. Clipping off (10 C) is seen by 1,000 canaries at epsilon 1 and 4, never at 10."""
    rng = np.random.default_rng(9)
    sigma, q, steps, delta, m = SIGMAS[claim], 0.0256, 400, 1e-5, 1000
    curve = curve_of_deltas(*delta_curve(sigma, q, steps))
    claimed = epsilon(sigma, q, steps, delta)

    def judged(shift: float) -> OneRunAudit:
        scores, included = run_of_canaries(rng, m, sigma, shift, q, steps, sigma)
        return one_run_audit(scores, included, default_guesses(m, claim), claimed, delta, curve)

    assert not any(judged(1.0).violated for _ in range(20))
    catastrophe = judged(10.0)
    assert catastrophe.right == catastrophe.guesses
    assert catastrophe.violated == catastrophe.refutable == (claim < 10)
    assert catastrophe.at_least == catastrophe.ceiling


def test_epsilon_from_below_and_above_enclose_a_narrow_gap() -> None:
    for sigma, q, steps in ((2.113, 0.0256, 400), (0.633, 0.0256, 400), (1.655, 0.5, 35)):
        low, high = epsilon_from_below(sigma, q, steps, 1e-5), epsilon(sigma, q, steps, 1e-5)
        assert 0 < low <= high
        assert low == pytest.approx(high, rel=0.025)
    assert epsilon_from_below(math.inf, 0.1, 10, 1e-5) == 0.0
