"""Selection: its epsilon against exact densities and the theorem written out, its draw, its two lines in the ledger."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from dpldm.privacy.accounting import (
    Adjacency,
    WholeRelease,
    deltas_of_selection,
    epsilon,
    epsilon_of_selection,
    epsilon_rdp,
)
from dpldm.privacy.entropy import SeededEntropy
from dpldm.privacy.ledger import BudgetExhausted, LedgerError, open_ledger, read_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import CandidateScores
from dpldm.privacy.sampling import draw_trials
from dpldm.privacy.selection import SelectionPlan, make_selection, plan_of_constants, trial_of

DELTA = 1e-5
SCORE = CandidateScores(noise_multiplier=20.0, candidates=1)
TRIAL = PrivacyPlan(
    dataset_id="scans",
    run="search",
    epsilon=2.0,
    delta=DELTA,
    records=1000,
    expected_batch_size=50,
    steps=40,
    reserve_steps=5,
    max_grad_norm=1e-3,
    draws_per_example=1,
    noise_multiplier=4.0,
    queries=(SCORE,),
)
PLAN = SelectionPlan(TRIAL, mean_trials=5.0, candidates=3)


@pytest.mark.parametrize(("mean", "known"), [(2.0, 1.69), (5.0, 2.08), (10.0, 2.31)])
def test_known_values(mean: float, known: float) -> None:
    """Trials of q = 0.0256, 400 steps, sigma 2.113, epsilon 1.10 each by Rényi DP; worked out elsewhere."""
    assert epsilon_rdp(2.113, 0.0256, 400, DELTA) == pytest.approx(1.10, abs=0.006)
    assert epsilon_of_selection(2.113, 0.0256, 400, DELTA, mean) == pytest.approx(known, abs=0.006)


@pytest.mark.parametrize(("trials", "selected", "all_run"), [(3, 1.88, 1.80), (5, 2.08, 2.38), (10, 2.31, 3.49)])
def test_a_selection_pays_off_with_many_trials(trials: int, selected: float, all_run: float) -> None:
    """Against as many candidates run one after the other, all of them charged."""
    assert epsilon_of_selection(2.113, 0.0256, 400, DELTA, trials) == pytest.approx(selected, abs=0.006)
    assert epsilon(2.113, 0.0256, 400 * trials, DELTA, discretisation=1e-3) == pytest.approx(all_run, abs=0.006)


def exact_deltas(sigma: float, mean: float) -> Any:
    """Exact delta, as a function of epsilon, of the largest of K draws of N(0, sigma^2), or of N(1, sigma^2), K
    geometric; for replacing one, N(-1, sigma^2) against N(1, sigma^2).

    With the generating function f(x) = g x / (1 - (1 - g) x) of K, the largest draw has density f'(F(y)) F'(y).
    """
    g, y = 1 / mean, np.linspace(-12 * sigma, 12 * sigma + 1, 400_001)

    def density(mu: float) -> Any:
        above = stats.norm.sf((y - mu) / sigma)
        return stats.norm.pdf((y - mu) / sigma) / sigma * g / (g + (1 - g) * above) ** 2

    pairs = {
        Adjacency.ADD_OR_REMOVE_ONE: (density(0.0), density(1.0)),
        Adjacency.REPLACE_ONE: (density(-1.0), density(1.0)),
    }

    def delta(eps: float, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE) -> float:
        p, q = pairs[adjacency]
        return float(max(np.maximum(a - math.exp(eps) * b, 0).sum() for a, b in ((p, q), (q, p))) * (y[1] - y[0]))

    return delta


def best_of_geometric(sigma: float, mean: float) -> float:
    """Exact epsilon at DELTA of the same."""
    delta = exact_deltas(sigma, mean)
    return float(optimize.brentq(lambda eps: delta(eps) - DELTA, 0, 40))


@pytest.mark.parametrize(("sigma", "mean"), [(4.0, 2.0), (2.0, 5.0), (1.0, 10.0)])
def test_the_bound_holds_where_the_truth_is_known(sigma: float, mean: float) -> None:
    """A trial that releases its own score, one Gaussian: the best is really less private than one trial, and the bound
    is above it."""
    true = best_of_geometric(sigma, mean)
    bound = epsilon_of_selection(sigma, 1.0, 1, DELTA, mean)
    assert epsilon(sigma, 1.0, 1, DELTA) < true <= bound <= 2 * true


@pytest.mark.parametrize("adjacency", Adjacency)
@pytest.mark.parametrize(("sigma", "mean"), [(4.0, 2.0), (2.0, 5.0), (1.0, 10.0)])
def test_every_pair_of_a_curve_holds_where_the_truth_is_known(sigma: float, mean: float, adjacency: Adjacency) -> None:
    stated = epsilon_of_selection(sigma, 1.0, 1, DELTA, mean, adjacency=adjacency)
    epsilons = np.linspace(0.0, 1.1 * stated, 49)
    deltas, exact = deltas_of_selection(epsilons, sigma, 1.0, 1, mean, adjacency=adjacency), exact_deltas(sigma, mean)
    true = np.array([exact(eps, adjacency) for eps in epsilons])
    assert (deltas >= true - 1e-12).all()
    assert (deltas <= 1).all()
    assert (np.diff(deltas) <= 0).all()
    assert deltas[-1] < DELTA


@pytest.mark.parametrize("adjacency", Adjacency)
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_a_curve_passes_through_every_epsilon_that_could_be_stated(delta: float, adjacency: Adjacency) -> None:
    settings, beside = (4.0, 0.05, 45), TRIAL.beside
    stated = epsilon_of_selection(*settings, delta, 5.0, beside, adjacency)
    assert deltas_of_selection(np.array([stated]), *settings, 5.0, beside, adjacency)[0] == pytest.approx(
        delta, rel=1e-2
    )


@pytest.mark.parametrize(("sigma", "mean"), [(4.0, 2.0), (2.0, 5.0), (0.8, 10.0)])
def test_replacing_one_is_removing_one_and_adding_another(sigma: float, mean: float) -> None:
    """(e, d)-DP twice over is (2 e, (1 + exp(e)) d)-DP, and of all such e the smallest is taken."""
    stated = epsilon_of_selection(sigma, 1.0, 1, DELTA, mean, adjacency=Adjacency.REPLACE_ONE)
    half = stated / 2
    assert epsilon_of_selection(sigma, 1.0, 1, DELTA / (1 + math.exp(half)), mean) <= half
    less = half - 1e-3
    assert epsilon_of_selection(sigma, 1.0, 1, DELTA / (1 + math.exp(less)), mean) > less
    assert stated > 2 * epsilon_of_selection(sigma, 1.0, 1, DELTA, mean)


def test_a_selection_too_loud_for_any_number_costs_infinitely_much_to_replace_one() -> None:
    assert epsilon_of_selection(0.06, 1.0, 100, DELTA, 5.0, adjacency=Adjacency.REPLACE_ONE) == math.inf


@pytest.mark.parametrize("adjacency", Adjacency)
@pytest.mark.parametrize("sigma", [0.0, 1e-160, 1e-3, 1e-200])
def test_without_noise_worth_the_name_nothing_is_promised(sigma: float, adjacency: Adjacency) -> None:
    """Where numbers overflow, the library takes what is no number for an epsilon of 0."""
    settings = (sigma, 0.5, 3)
    assert epsilon_of_selection(*settings, DELTA, 3.0, adjacency=adjacency) == math.inf
    assert deltas_of_selection(np.array([0.0, 5.0]), *settings, 3.0, adjacency=adjacency).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("mean", [2.0, 7.5])
def test_is_the_theorem_written_out(mean: float) -> None:
    """Theorem 2 with eta = 1 for full batches, where the Rényi DP of n releases is n a / (2 sigma^2), and the step to
    epsilon of Canonne, Kamath and Steinke 2020 (arXiv 2004.00010, proposition 12)."""
    sigma, steps, beside = 20.0, 12, (WholeRelease(30.0, 3, 1.0),)
    orders = np.array([1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512, 1024])
    trial = orders * (steps / sigma**2 + 3 / 30.0**2) / 2
    least = ((1 - 1 / orders) * trial + math.log(mean) / orders).min()
    best = trial + 2 * least + math.log(mean) / (orders - 1)
    converted = best + np.log1p(-1 / orders) - np.log(DELTA * orders) / (orders - 1)
    found = epsilon_of_selection(sigma, 1.0, steps, DELTA, mean, beside)
    assert found == pytest.approx(converted.min(), rel=1e-6)


def test_noise_is_calibrated_for_the_whole_selection() -> None:
    made = make_selection(replace(TRIAL, noise_multiplier=0.0), 5.0, 3)
    assert 1.98 < made.stated_epsilon() <= 2.0 == made.epsilon
    assert made.trial.epsilon_after(45) < 1.5, "a trial alone costs less than the best of many"
    vaguer = make_selection(replace(TRIAL, queries=(replace(SCORE, noise_multiplier=200.0),)), 5.0, 3)
    assert vaguer.trial.noise_multiplier < made.trial.noise_multiplier, "the score is paid for"
    with pytest.raises(ValueError, match="No noise keeps this selection"):
        make_selection(replace(TRIAL, epsilon=0.1), 5.0, 3)


def test_more_candidates_cost_nothing_and_more_trials_do() -> None:
    assert replace(PLAN, candidates=300).stated_epsilon() == PLAN.stated_epsilon()
    assert replace(PLAN, mean_trials=10.0).stated_epsilon() > PLAN.stated_epsilon()


@pytest.mark.parametrize("mean", [1.5, 3.0, 8.5])
def test_the_number_of_trials_is_geometric_and_candidates_are_alike(mean: float) -> None:
    """Chi-square at 1e-6 on a fixed stream: K against the geometric law, candidates against equal shares."""
    entropy, plan = SeededEntropy(5), replace(PLAN, mean_trials=mean)
    drawn = [draw_trials(plan, entropy) for _ in range(4000)]
    seen = np.bincount([min(len(trials), 6) for trials in drawn], minlength=7)[1:]
    law = stats.geom(1 / mean)
    expected = 4000 * np.array([*law.pmf(np.arange(1, 6)), law.sf(5)])
    assert expected.min() > 10
    assert stats.chisquare(seen, expected).pvalue > 1e-6
    chosen = np.bincount([candidate for trials in drawn for candidate in trials], minlength=3)
    assert len(chosen) == 3
    assert stats.chisquare(chosen).pvalue > 1e-6


@pytest.mark.parametrize(("mean", "candidates"), [(2.0, 3), (8.0, 2), (1.0, 4)])
def test_the_chance_of_a_candidate_is_what_draws_show(mean: float, candidates: int) -> None:
    """4,000 draws on a fixed stream; five standard deviations."""
    entropy, plan = SeededEntropy(6), replace(PLAN, mean_trials=mean, candidates=candidates)
    seen = np.mean([0 in draw_trials(plan, entropy) for _ in range(4000)])
    assert seen == pytest.approx(plan.chance_of_a_candidate, abs=5 * 0.5 / 4000**0.5)


def test_constants_make_the_plan_again_and_contradictions_none() -> None:
    constants = json.loads(json.dumps(PLAN.constants()))
    assert plan_of_constants(constants) == PLAN
    assert plan_of_constants(TRIAL.constants()) == TRIAL == trial_of(PLAN) == trial_of(TRIAL)
    for change in ({"run": "other"}, {"epsilon": 1.0}, {"delta": 1e-6}, {"looks": 3}):
        with pytest.raises(ValueError, match="contradict"):
            plan_of_constants(constants | change)
    with pytest.raises(KeyError):
        plan_of_constants({key: value for key, value in constants.items() if key != "mean_trials"})


def test_a_mean_of_one_is_one_trial() -> None:
    plan, entropy = replace(PLAN, mean_trials=1.0), SeededEntropy(0)
    assert {len(draw_trials(plan, entropy)) for _ in range(200)} == {1}


def test_a_selection_is_one_reservation_and_two_lines_however_many_trials_follow(tmp_path: Path) -> None:
    path = tmp_path / "scans.jsonl"
    with open_ledger(path, "scans", (3.0, 1e-4)) as ledger:
        ledger.register(PLAN)
        ledger.register(PLAN)
        assert [ledger.charge(PLAN), ledger.charge(PLAN)] == [1, 2]
        with pytest.raises(BudgetExhausted):
            ledger.charge(PLAN)
        with pytest.raises(LedgerError, match="do not fit"):
            ledger.register(replace(PLAN, mean_trials=6.0))
        ledger.register(replace(TRIAL, epsilon=1.0, run="after"))
    assert [entry["event"] for entry in read_ledger(path)] == ["created", "plan", "attempt", "attempt", "plan"]


@pytest.mark.parametrize(
    "change",
    [
        {"mean_trials": 6.0},
        {"candidates": 4},
        {"trial": replace(TRIAL, noise_multiplier=4.1)},
        {"trial": replace(TRIAL, queries=(replace(SCORE, noise_multiplier=21.0),))},
        {"trial": replace(TRIAL, dataset_id="other")},
    ],
)
def test_the_digest_covers_every_constant(change: dict[str, Any]) -> None:
    assert replace(PLAN, **change).digest() != PLAN.digest()
    assert replace(PLAN).digest() == PLAN.digest()


def test_epsilon_counts_the_reserve_of_every_trial() -> None:
    trial = PLAN.trial
    counted = (trial.noise_multiplier, trial.sampling_probability, trial.steps + trial.reserve_steps, trial.delta)
    assert PLAN.stated_epsilon() == epsilon_of_selection(*counted, PLAN.mean_trials, trial.beside)
    assert replace(PLAN, trial=replace(trial, reserve_steps=0)).stated_epsilon() < PLAN.stated_epsilon()


@pytest.mark.parametrize(
    "change",
    [
        {"mean_trials": 0.9},
        {"mean_trials": float("nan")},
        {"mean_trials": 1e6},
        {"candidates": 0},
        {"candidates": 1.5},
        {"trial": replace(TRIAL, max_batch_size=2000, most_records=2000)},
        {"trial": replace(TRIAL, queries=())},
    ],
)
def test_what_the_theorem_does_not_cover_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"mean number of trials|at least one candidate|must not cut batches|needs a noised score"
    ):
        replace(PLAN, **change)
