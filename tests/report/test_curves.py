"""What is shown of a plan's privacy loss, against closed forms and the numbers that are stated elsewhere."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from dpldm.privacy.accounting import Adjacency, epsilon
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import CandidateScores, ClassHistogram, NearestVotes
from dpldm.privacy.selection import Plan, SelectionPlan
from dpldm.report.curves import (
    belief,
    curve_of,
    epsilon_by_renyi,
    epsilon_without_amplification,
    gaussian_mu,
)

PLAN = PrivacyPlan(
    dataset_id="scans",
    run="a",
    epsilon=2.0,
    delta=1e-4,
    records=1000,
    expected_batch_size=100,
    steps=10,
    reserve_steps=5,
    max_grad_norm=1.0,
    draws_per_example=1,
    noise_multiplier=1.5,
)
WHOLE = replace(PLAN, expected_batch_size=1000, steps=4, reserve_steps=0, noise_multiplier=4.0)  # mu = 1/2
ASKED = replace(PLAN, queries=(ClassHistogram(noise_multiplier=5.0),))
SELECTED = SelectionPlan(replace(PLAN, queries=(CandidateScores(noise_multiplier=20.0, candidates=1),)), 4.0, 3)
EVOLVED = replace(
    PLAN,
    steps=0,
    reserve_steps=0,
    noise_multiplier=0.0,
    queries=(NearestVotes(noise_multiplier=6.0, candidates=5, rounds=7),),  # mu = 1/2
)
CUT = replace(PLAN, max_batch_size=200, most_records=1100)


@pytest.mark.parametrize("plan", [PLAN, WHOLE, ASKED, CUT, SELECTED, EVOLVED])
@pytest.mark.parametrize("adjacency", Adjacency)
def test_the_curve_passes_through_the_stated_point(plan: Plan, adjacency: Adjacency) -> None:
    """On a coarser grid, hence up to some percent above; never below by more than the fine grid's own slack."""
    curve = curve_of(plan, adjacency)
    at_stated = float(np.interp(plan.stated_epsilon(adjacency), curve.epsilons, curve.deltas))
    assert plan.delta * 0.99 <= at_stated <= plan.delta * 1.1


def test_of_a_gaussian_everything_is_a_closed_form() -> None:
    curve = curve_of(WHOLE, Adjacency.ADD_OR_REMOVE_ONE)
    assert gaussian_mu(WHOLE) == pytest.approx(0.5)
    assert curve.advantage == pytest.approx(2 * norm.cdf(0.25) - 1, rel=0.01)
    for alpha in (0.001, 0.01, 0.1, 0.5):
        exact = norm.sf(norm.isf(alpha) - 0.5)
        assert exact * (1 - 1e-6) <= curve.true_alarms(alpha) <= exact * 1.02
    assert epsilon_without_amplification(WHOLE) == pytest.approx(WHOLE.epsilon_after(4), rel=1e-3)
    assert gaussian_mu(EVOLVED) == pytest.approx(0.5)
    assert epsilon_without_amplification(EVOLVED) == pytest.approx(EVOLVED.stated_epsilon(), rel=1e-3)
    assert epsilon_by_renyi(EVOLVED) == epsilon_by_renyi(WHOLE)


@pytest.mark.parametrize("adjacency", Adjacency)
def test_a_selections_curve_is_not_that_of_a_trial(adjacency: Adjacency) -> None:
    """The best of several tells more than one of them, at every epsilon."""
    whole, trial = curve_of(SELECTED, adjacency), curve_of(SELECTED.trial, adjacency)
    of_trial = np.interp(whole.epsilons, trial.epsilons, trial.deltas)
    told = whole.epsilons < trial.epsilons[-1]
    assert (whole.deltas[told] > of_trial[told]).all()
    assert whole.advantage > trial.advantage
    assert whole.deltas[0] > whole.advantage, "delta at epsilon 0 is loose, other pairs tell better"
    assert epsilon_without_amplification(SELECTED) > SELECTED.stated_epsilon()
    assert epsilon_without_amplification(SELECTED) > epsilon_without_amplification(SELECTED.trial)


def test_a_curve_too_steep_for_numbers_ends_before_them() -> None:
    loud = replace(SELECTED, trial=replace(SELECTED.trial, noise_multiplier=0.05))
    for adjacency in Adjacency:
        curve = curve_of(loud, adjacency)
        assert np.isfinite(curve.epsilons).all()
        assert np.isfinite(curve.deltas).all()
        assert curve.advantage == curve.true_alarms(0.5) == 1.0


@pytest.mark.parametrize("plan", [PLAN, SELECTED])
def test_no_attack_beats_the_curve_and_guessing_always_reaches_the_diagonal(plan: Plan) -> None:
    curve = curve_of(plan, Adjacency.ADD_OR_REMOVE_ONE)
    rates = np.linspace(0, 1, 50)
    alarms = np.array([curve.true_alarms(rate) for rate in rates])
    assert (alarms >= rates - 1e-12).all()
    assert (np.diff(alarms) >= -1e-12).all()
    assert (alarms - rates).max() <= curve.advantage + 1e-12


def test_without_amplification_queries_count_and_more_is_lost() -> None:
    without = epsilon_without_amplification(ASKED)
    whole = epsilon(1.5, 1.0, 15, 1e-4, beside=ASKED.beside)
    assert without == pytest.approx(whole, rel=1e-3)
    assert without > epsilon_without_amplification(PLAN) > PLAN.epsilon_after(15)
    loud = replace(PLAN, noise_multiplier=0.1, steps=1000)
    assert math.isfinite(epsilon_without_amplification(loud)), "e^epsilon overflows"
    assert epsilon_without_amplification(replace(PLAN, noise_multiplier=1e5)) == 0.0


def test_renyi_is_an_upper_bound_too() -> None:
    assert epsilon_by_renyi(ASKED) >= ASKED.epsilon_after(15)


@pytest.mark.parametrize(("epsilon", "before", "after"), [(0, 0.3, 0.3), (1, 0.5, 0.7311), (10, 0.5, 0.99995)])
def test_belief_is_bayes_rule(epsilon: float, before: float, after: float) -> None:
    assert belief(epsilon, before) == pytest.approx(after, abs=1e-4)
    odds = before / (1 - before) * math.exp(epsilon)
    assert belief(epsilon, before) == pytest.approx(odds / (1 + odds))
