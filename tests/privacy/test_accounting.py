"""Epsilon against closed forms, dp-accounting's own answer, Rényi DP, and values worked out elsewhere."""

import math
import warnings
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.utils import get_noise_multiplier
from scipy import optimize, stats

from dpldm.privacy.accounting import (
    DISCRETISATION,
    Adjacency,
    Cap,
    WholeRelease,
    calibrate_noise,
    delta_curve,
    epsilon,
    epsilon_of_group,
    epsilon_rdp,
)

DELTA = 1e-5


def delta_of_gaussian(mu: float, eps: float) -> float:
    """Balle and Wang 2018 (arXiv 1805.06530), theorem 8, for sensitivity / standard deviation = mu."""
    return float(stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu))


def delta_of_sampled_gaussian(sigma: float, q: float, eps: float) -> float:
    """One Poisson-sampled Gaussian, both directions: the hockey-stick divergences of the pair of step 4 of the proof.

    E[(1 - q) P0 + q P1 || P0] at e^eps is q times that of P1 || P0 at 1 + (e^eps - 1) / q; and
    E[P0 || (1 - q) P0 + q P1] = E_x~P0 [1 - e^eps (1 - q + q L(x))]+ with L = P1 / P0 increasing in x.
    """
    removed = q * delta_of_gaussian(1 / sigma, math.log1p(math.expm1(eps) / q))
    room = math.exp(-eps) - (1 - q)
    if room <= 0:
        return removed
    edge = sigma**2 * math.log(room / q) + 0.5
    below_0, below_1 = stats.norm.cdf(edge / sigma), stats.norm.cdf((edge - 1) / sigma)
    added = below_0 - math.exp(eps) * ((1 - q) * below_0 + q * below_1)
    return max(removed, float(added))


def epsilon_of(delta_at_eps, delta: float) -> float:
    """The smallest eps >= 0 with delta_at_eps(eps) <= delta."""
    if delta_at_eps(0.0) <= delta:
        return 0.0
    return float(optimize.brentq(lambda eps: delta_at_eps(eps) - delta, 0.0, 60.0, xtol=1e-12))


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (4.0, 1), (20.0, 1), (4.0, 10), (30.0, 400)])
def test_full_batches_are_the_closed_form_of_the_gaussian(sigma: float, steps: int) -> None:
    """q = 1: T Gaussians of noise sigma are one of noise sigma / sqrt(T)."""
    exact = epsilon_of(lambda eps: delta_of_gaussian(math.sqrt(steps) / sigma, eps), DELTA)
    assert exact - 1e-9 <= epsilon(sigma, 1.0, steps, DELTA) <= exact + 2e-3


@settings(max_examples=12, deadline=None)
@given(st.floats(0.6, 5.0), st.floats(1e-4, 1.0), st.floats(-8, -3))
def test_one_sampled_gaussian_is_the_closed_form(sigma: float, q: float, log_delta: float) -> None:
    delta = 10**log_delta
    exact = epsilon_of(lambda eps: delta_of_sampled_gaussian(sigma, q, eps), delta)
    coarse = 10 * DISCRETISATION
    assert exact - 1e-9 <= epsilon(sigma, q, 1, delta, discretisation=coarse) <= exact + 2 * coarse


@pytest.mark.parametrize(("sigma", "q", "steps"), [(2.0, 0.02, 50), (3.0, 0.2, 20)])
def test_is_the_librarys_own_pessimistic_answer(sigma: float, q: float, steps: int) -> None:
    library = privacy_loss_distribution.from_gaussian_mechanism(
        sigma,
        sampling_prob=q,
        value_discretization_interval=DISCRETISATION,
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    ).self_compose(steps)
    assert epsilon(sigma, q, steps, DELTA) == pytest.approx(library.get_epsilon_for_delta(DELTA), rel=1e-6)


@pytest.mark.parametrize(
    ("sigma", "adjacency", "known"),
    [
        (2.113, Adjacency.ADD_OR_REMOVE_ONE, 1.00),
        (2.113, Adjacency.REPLACE_ONE, 1.93),
        (0.909, Adjacency.ADD_OR_REMOVE_ONE, 4.00),
    ],
)
def test_known_values(sigma: float, adjacency: Adjacency, known: float) -> None:
    """q = 0.0256, 400 steps, delta 1e-5, worked out independently."""
    assert epsilon(sigma, 0.0256, 400, DELTA, adjacency) == pytest.approx(known, abs=0.006)


@pytest.mark.parametrize(
    ("size", "known"), [(1, 1.00), (2, 2.16), (5, 6.19), pytest.param(10, 14.47, marks=pytest.mark.slow)]
)
def test_known_values_of_groups(size: int, known: float) -> None:
    """The same setting, for all images of a person at once where the unit is an image."""
    found = epsilon_of_group(2.113, 0.0256, 400, DELTA, size)
    assert known - 0.006 <= found <= known * 1.02  # the coarse grid rounds up


@pytest.mark.parametrize("size", [2, 3])
def test_a_release_beside_moves_by_the_size_of_a_group(size: int) -> None:
    """A Gaussian that nobody samples, and one that is: together one Gaussian of both distances."""
    beside = (WholeRelease(9.0, 2, 1.0),)
    exact = epsilon_of(lambda eps: delta_of_gaussian(size * math.sqrt(10 / 8.0**2 + 2 / 9.0**2), eps), DELTA)
    assert exact - 1e-9 <= epsilon_of_group(8.0, 1.0, 10, DELTA, size, beside=beside) <= exact + 2e-2


def test_releases_without_attempts_are_the_closed_form() -> None:
    """Of a Gaussian, for one unit and for a group; and by Rényi DP a looser bound."""
    beside = (WholeRelease(9.0, 14, 1.0),)
    for size in (1, 3):
        exact = epsilon_of(lambda eps, size=size: delta_of_gaussian(size * math.sqrt(14) / 9.0, eps), DELTA)
        assert exact - 1e-9 <= epsilon_of_group(0.0, 1.0, 0, DELTA, size, beside=beside) <= exact + 2e-2
    assert exact > epsilon_rdp(0.0, 1.0, 0, DELTA, beside) > epsilon(0.0, 1.0, 0, DELTA, beside=beside)


@pytest.mark.parametrize("size", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_group_in_every_batch_is_a_gaussian_of_its_size(size: int) -> None:
    exact = epsilon_of(lambda eps: delta_of_gaussian(size * math.sqrt(10) / 8.0, eps), DELTA)
    assert exact - 1e-9 <= epsilon_of_group(8.0, 1.0, 10, DELTA, size) <= exact + 2e-2


@pytest.mark.parametrize(
    ("target", "delta", "q", "steps"), [(10.0, 1e-5, 4096 / 60000, 106), (1.0, 1e-5, 0.01, 500), (4.0, 1e-6, 0.05, 50)]
)
def test_noise_is_within_a_percent_of_what_opacus_finds(target: float, delta: float, q: float, steps: int) -> None:
    """Another accountant (PRV, Gopi et al. 2021) in another library; its error allowance is 0.01 in epsilon."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_noise_multiplier(
            target_epsilon=target,
            target_delta=delta,
            sample_rate=q,
            steps=steps,
            accountant="prv",
            epsilon_tolerance=0.005,
        )
    assert calibrate_noise(target, delta, q, steps) == pytest.approx(theirs, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000))
def test_a_thousand_plans_are_never_above_renyi(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sigma, q = float(rng.uniform(0.5, 8.0)), float(10 ** rng.uniform(-4, 0))
    steps, delta = int(10 ** rng.uniform(0, 3)), float(10 ** rng.uniform(-8, -3))
    loose = epsilon_rdp(sigma, q, steps, delta)
    grid = DISCRETISATION if loose < 1 else 10 * DISCRETISATION
    if loose < 50:  # beyond, nothing is promised, and the grid has millions of points
        assert 0 <= epsilon(sigma, q, steps, delta, discretisation=grid) <= loose + 1e-3


@settings(max_examples=24, deadline=None)
@given(
    sigma=st.floats(1.0, 8.0),
    q=st.floats(1e-3, 0.3) | st.just(1.0),
    steps=st.integers(1, 300),
    log_delta=st.floats(-8, -3),
)
def test_never_above_renyi_and_never_below_zero(sigma: float, q: float, steps: int, log_delta: float) -> None:
    delta = 10**log_delta
    loose = epsilon_rdp(sigma, q, steps, delta)
    grid = DISCRETISATION if loose < 1 else 10 * DISCRETISATION  # small losses need the fine grid, large ones the time
    assert 0 <= epsilon(sigma, q, steps, delta, discretisation=grid) <= loose + 1e-3


@settings(max_examples=5, deadline=None)
@given(sigma=st.floats(1.5, 6.0), q=st.floats(5e-3, 0.5), steps=st.integers(1, 100))
def test_monotone_in_every_argument(sigma: float, q: float, steps: int) -> None:
    def at(sigma: float, q: float, steps: int, delta: float) -> float:
        return epsilon(sigma, q, steps, delta, discretisation=10 * DISCRETISATION)

    here = at(sigma, q, steps, DELTA)
    assert at(sigma * 1.2, q, steps, DELTA) <= here
    assert at(sigma, q * 1.2, steps, DELTA) >= here
    assert at(sigma, q, steps + 10, DELTA) >= here
    assert at(sigma, q, steps, DELTA * 10) <= here


@settings(max_examples=5, deadline=None)
@given(sigma=st.floats(1.5, 6.0), q=st.floats(5e-3, 1.0), steps=st.integers(1, 100))
def test_replacing_costs_at_least_as_much_as_adding(sigma: float, q: float, steps: int) -> None:
    added, replaced = (
        epsilon(sigma, q, steps, DELTA, adjacency, discretisation=10 * DISCRETISATION) for adjacency in Adjacency
    )
    assert replaced >= added


def test_finer_grids_only_come_down() -> None:
    """Pessimistic: the coarse value is an upper bound of the finer one."""
    values = [epsilon(1.2, 0.05, 100, DELTA, discretisation=grid) for grid in (1e-2, 1e-3, DISCRETISATION)]
    assert values == sorted(values, reverse=True)


def test_nothing_costs_nothing() -> None:
    assert epsilon(1.0, 0.5, 0, DELTA) == 0.0


@pytest.mark.parametrize("eps", [0.5, 1.5])
def test_delta_and_epsilon_are_one_curve(eps: float) -> None:
    at = round(10 * eps)  # the curve's epsilons are tenths
    epsilons, deltas = delta_curve(1.0, 1.0, 1)
    assert epsilons[at] == pytest.approx(eps)
    assert deltas[at] == pytest.approx(delta_of_gaussian(1.0, eps), rel=1e-2)
    delta = float(delta_curve(3.0, 0.2, 30)[1][at])
    assert epsilon(3.0, 0.2, 30, delta) == pytest.approx(eps, abs=1e-2)


@pytest.mark.parametrize(
    ("target", "delta", "q", "steps"),
    [(4.0, 1e-4, 1.0, 5), (1.0, 1e-5, 0.05, 155), (1.0, 1e-6, 0.01, 5000), (0.1, 1e-5, 0.125, 155), (2.0, 1e-5, 1, 1)],
)
def test_calibrated_noise_keeps_the_target_and_wastes_little(target: float, delta: float, q: float, steps: int) -> None:
    noise = calibrate_noise(target, delta, q, steps)
    assert epsilon(noise, q, steps, delta) <= target
    assert epsilon(0.97 * noise, q, steps, delta, discretisation=10 * DISCRETISATION) > target


@settings(max_examples=3, deadline=None)
@given(target=st.floats(0.1, 2.0), q=st.floats(0.05, 1.0), steps=st.integers(5, 200))
def test_calibrated_noise_of_any_plan_keeps_the_target(target: float, q: float, steps: int) -> None:
    noise = calibrate_noise(target, DELTA, q, steps)
    assert epsilon(noise, q, steps, DELTA) <= target
    assert epsilon(0.97 * noise, q, steps, DELTA, discretisation=10 * DISCRETISATION) > target


# --- a largest batch ----------------------------------------------------------------------------------------------


GRID = 10 * DISCRETISATION


@pytest.mark.parametrize("largest", [155, 165, 180])
def test_cut_batches_cost_at_least_what_the_library_finds_for_any_number_of_units(largest: int) -> None:
    """Its event is for an exact number of units, which is private; ours must hold for every number up to the bound.

    It is smaller for many units, all of whose batches are cut, than for a few: the bound must not follow it down.
    """
    ours = epsilon(2.0, 0.05, 20, DELTA, discretisation=GRID, cap=Cap(2000, largest))
    assert ours > epsilon(2.0, 0.05, 20, DELTA, discretisation=GRID)
    for units in (50, 1000, 1999, 2000):
        accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, GRID)
        accountant.compose(dp_accounting.TruncatedSubsampledGaussianDpEvent(units, 0.05, largest, 2.0), 20)
        assert ours >= accountant.get_epsilon(DELTA) - 1e-6


def test_a_cut_costs_its_probability_of_delta() -> None:
    """By adding up the binomial distribution in exact arithmetic: 20 batches of Bin(300, 1/10), cut at 60."""
    q, chance = Fraction(1, 10), Fraction(0)
    for size in range(60, 301):
        chance += math.comb(300, size) * q**size * (1 - q) ** (300 - size)
    cap = Cap(300, 60)
    assert cap.delta(0.1, 20) == pytest.approx(float(20 * chance), rel=1e-9)
    paid = epsilon(2.0, 0.1, 20, DELTA, cap=cap)
    assert paid == epsilon(2.0, 0.1, 20, DELTA - cap.delta(0.1, 20))
    assert epsilon(2.0, 0.1, 20, cap.delta(0.1, 20), cap=cap) == math.inf


def test_the_tighter_the_cut_and_the_more_units_the_more_it_costs() -> None:
    settings = (2.0, 0.05, 20, 1e-3, Adjacency.ADD_OR_REMOVE_ONE, GRID)
    by_size = [epsilon(*settings, cap=Cap(2000, largest)) for largest in (140, 145, 150, 1000)]
    assert by_size == sorted(by_size, reverse=True)
    assert by_size[0] > by_size[-1] == epsilon(*settings)
    by_units = [epsilon(*settings, cap=Cap(units, 145)) for units in (1000, 2000, 2050, 10_000)]
    assert by_units == sorted(by_units)
    assert by_units[0] < by_units[2] < by_units[3] == math.inf


@settings(max_examples=50, deadline=None)
@given(st.integers(100, 10**6), st.floats(1e-3, 0.5), st.integers(1, 1000), st.floats(-9, -3))
def test_the_smallest_largest_batch_is_the_smallest(units: int, q: float, steps: int, log_delta: float) -> None:
    delta = 10**log_delta
    least = Cap(units, 1).smallest_batch(q, steps, delta)
    assert Cap(units, least).delta(q, steps) <= delta
    assert Cap(units, least - 1).delta(q, steps) > delta


def test_noise_is_calibrated_for_the_cut() -> None:
    cap = Cap(2000, 145)
    cut, whole = calibrate_noise(1.0, 2e-4, 0.05, 20, cap), calibrate_noise(1.0, 2e-4, 0.05, 20)
    assert cut > whole
    assert epsilon(cut, 0.05, 20, 2e-4, cap=cap) <= 1.0


# --- releases on the whole data set beside the attempts -----------------------------------------------------------

HISTOGRAM = WholeRelease(noise_multiplier=20.0, times=3, replace_one=math.sqrt(2))
MEANS = WholeRelease(noise_multiplier=8.0, times=2, replace_one=1.94)


@pytest.mark.parametrize("release", [HISTOGRAM, MEANS, WholeRelease(1.0, 1, 1.0), WholeRelease(1.0, 1, 2.0)])
def test_a_release_alone_is_the_closed_form_of_the_gaussian(release: WholeRelease) -> None:
    """n releases with means r apart are one of mu = r sqrt(n) / sigma: r is 1 for adding, replace_one for replacing.
    A factor 2 too many or too few under replacing, where dp-accounting has a convention of its own, would show."""
    for adjacency, moved in ((Adjacency.ADD_OR_REMOVE_ONE, 1.0), (Adjacency.REPLACE_ONE, release.replace_one)):
        mu = moved * math.sqrt(release.times) / release.noise_multiplier
        exact = epsilon_of(lambda eps, mu=mu: delta_of_gaussian(mu, eps), DELTA)
        assert exact - 1e-9 <= epsilon(0.0, 0.5, 0, DELTA, adjacency, beside=(release,)) <= exact + 1e-3


@pytest.mark.parametrize("adjacency", Adjacency)
def test_attempts_and_releases_compose_as_the_library_composes_them(adjacency: Adjacency) -> None:
    """The same distributions built one by one and convolved, the sensitivity given instead of the noise rescaled."""
    relation = dp_accounting.NeighboringRelation[adjacency.name]
    grid = {"value_discretization_interval": DISCRETISATION, "neighboring_relation": relation}
    build = privacy_loss_distribution.from_gaussian_mechanism
    known = build(3.0, sampling_prob=0.1, **grid).self_compose(60)
    for release in (HISTOGRAM, MEANS):
        # From -s to +s for replacing, from 0 to s for adding.
        moved = release.replace_one / 2 if adjacency is Adjacency.REPLACE_ONE else 1.0
        known = known.compose(build(release.noise_multiplier, sensitivity=moved, **grid).self_compose(release.times))
    found = epsilon(3.0, 0.1, 60, DELTA, adjacency, beside=(HISTOGRAM, MEANS))
    assert found == pytest.approx(known.get_epsilon_for_delta(DELTA), abs=1e-3)
    assert found > epsilon(3.0, 0.1, 60, DELTA, adjacency) + 0.01


@pytest.mark.parametrize(("adjacency", "known"), [(Adjacency.ADD_OR_REMOVE_ONE, 1.260), (Adjacency.REPLACE_ONE, 2.477)])
def test_known_values_with_releases_beside(adjacency: Adjacency, known: float) -> None:
    """q = 0.0256, 400 steps, delta 1e-5, sigma 2.113: 1.00 and 1.93 without the releases. Worked out without
    dp-accounting, by quadrature of the loss densities, FFT and no pessimism."""
    found = epsilon(2.113, 0.0256, 400, DELTA, adjacency, beside=(HISTOGRAM, MEANS))
    assert found == pytest.approx(known, abs=0.006)


@settings(max_examples=15, deadline=None)
@given(
    sigma=st.floats(1.0, 8.0),
    q=st.floats(1e-3, 0.3),
    steps=st.integers(1, 200),
    noise=st.floats(1.0, 50.0),
    times=st.integers(1, 5),
    log_delta=st.floats(-8, -3),
)
def test_with_releases_never_above_renyi(
    sigma: float, q: float, steps: int, noise: float, times: int, log_delta: float
) -> None:
    beside = (WholeRelease(noise, times, math.sqrt(2)),)
    loose = epsilon_rdp(sigma, q, steps, 10**log_delta, beside)
    grid = DISCRETISATION if loose < 1 else 10 * DISCRETISATION
    found = epsilon(sigma, q, steps, 10**log_delta, discretisation=grid, beside=beside)
    alone = epsilon(0.0, q, 0, 10**log_delta, discretisation=grid, beside=beside)
    assert max(alone, 0.0) - 1e-9 <= found <= loose + 1e-3


def test_noise_is_calibrated_for_the_releases() -> None:
    alone, beside = calibrate_noise(1.0, DELTA, 0.05, 155), calibrate_noise(1.0, DELTA, 0.05, 155, None, (HISTOGRAM,))
    assert beside > alone
    assert 0.97 < epsilon(beside, 0.05, 155, DELTA, beside=(HISTOGRAM,)) <= 1.0
    assert epsilon(alone, 0.05, 155, DELTA, beside=(HISTOGRAM,)) > 1.0
    with pytest.raises(ValueError, match=r"epsilon 0\.2, of which its queries alone cost 0\.291"):
        calibrate_noise(0.2, DELTA, 0.05, 155, None, (HISTOGRAM,))


@pytest.mark.parametrize(("sigma", "q"), [(0.6, 0.05), (1.0, 0.5), (2.0, 0.9), (0.8, 1.0)])
def test_replacing_tells_most_between_opposite_gradients_of_norm_C(sigma: float, q: float) -> None:
    """Hockey-stick divergences by summing densities over a plane (to 2e-4): no two gradients of norm at most 1 have a
    larger one than (1, 0) and (-1, 0), at any threshold; and what the library composes is that pair."""
    axis = np.linspace(-1 - 7 * sigma, 1 + 7 * sigma, 241)
    x, y = np.meshgrid(axis, axis)
    cell = (axis[1] - axis[0]) ** 2

    def mixture(g: tuple[float, float]) -> np.ndarray:
        def gaussian(a: float, b: float) -> np.ndarray:
            return np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)

        return (1 - q) * gaussian(0, 0) + q * gaussian(*g)

    def divergence(p: np.ndarray, r: np.ndarray, epsilon: float) -> float:
        return float(np.maximum(p - math.exp(epsilon) * r, 0).sum() * cell)

    generator = np.random.default_rng(0)
    lengths, angles = generator.random((24, 2)) ** 0.3, 2 * math.pi * generator.random((24, 2))
    angles[:8, 1] = angles[:8, 0] + math.pi + 0.3 * generator.standard_normal(8)  # nearly opposite
    lengths[:12] = 1.0
    worst = mixture((1.0, 0.0)), mixture((-1.0, 0.0))
    for epsilon_ in (-1.0, 0.0, 0.3, 2.0):
        most = divergence(*worst, epsilon_)
        for (s, t), (u, v) in zip(lengths, angles, strict=True):
            one, other = mixture((s * math.cos(u), s * math.sin(u))), mixture((t * math.cos(v), t * math.sin(v)))
            assert divergence(one, other, epsilon_) <= most + 2e-4
        if epsilon_ >= 0:
            library = privacy_loss_distribution.from_gaussian_mechanism(
                sigma,
                sampling_prob=q,
                value_discretization_interval=1e-3,
                neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE,
            )
            assert library.get_delta_for_epsilon(epsilon_) == pytest.approx(most, abs=2e-4)
