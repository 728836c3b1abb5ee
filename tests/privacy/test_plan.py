"""The plan: what it refuses, what its noise is calibrated for, and what its digest covers."""

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpldm.privacy.accounting import Adjacency, WholeRelease, epsilon
from dpldm.privacy.plan import PrivacyPlan, calibrated, default_reserve
from dpldm.privacy.questions import ClassHistogram, ClassMeans, NearestVotes, Question

PLAN = PrivacyPlan(
    dataset_id="scans",
    run="first",
    epsilon=2.0,
    delta=1e-5,
    records=1000,
    expected_batch_size=100,
    steps=40,
    reserve_steps=10,
    max_grad_norm=0.5,
    draws_per_example=3,
    noise_multiplier=3.0,
)


def made_plan(**constants: Any) -> PrivacyPlan:
    return calibrated(PrivacyPlan(noise_multiplier=0.0, **constants))


def asked(**changes: Any) -> dict[str, Any]:
    constants = PLAN.constants() | changes
    return {key: constants[key] for key in constants if key != "noise_multiplier"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"delta": 1 / 1000}, "delta"),
        ({"delta": 0.5}, "delta"),
        ({"delta": 0.0}, "delta"),
        ({"delta": -1e-9}, "delta"),
        ({"delta": 1e-16}, "delta"),
        ({"delta": float("nan")}, "delta"),
        ({"records": 9}, "records"),
        ({"records": 0}, "records"),
        ({"records": -1000}, "records"),
        ({"expected_batch_size": 1001}, "expected_batch_size"),
        ({"expected_batch_size": 0}, "expected_batch_size"),
        ({"steps": 0}, "steps"),
        ({"reserve_steps": -1}, "reserve_steps"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm"),
        ({"draws_per_example": 0}, "draws_per_example"),
        ({"clipping": "per layer"}, "clipping"),
        ({"noise": "none"}, "noise"),
        ({"noise": "grid", "queries": (ClassHistogram(noise_multiplier=1001.0),)}, "noise"),
        ({"max_grad_norm": 1e-13}, "max_grad_norm"),
        ({"unit": "person"}, "unit"),
        ({"images_per_unit": 2}, "unit"),
        ({"unit": "group", "images_per_unit": 0}, "unit"),
        ({"max_batch_size": 200}, "belong together"),
        ({"most_records": 2000}, "belong together"),
        ({"max_batch_size": 120, "most_records": 1000}, "at least 1"),
        ({"max_batch_size": 99, "most_records": 2000}, "max_batch_size"),
        ({"max_batch_size": 200, "most_records": 999}, "most_records"),
    ],
)
def test_constants_out_of_range_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        made_plan(**asked(**changes))


def test_constants_that_no_plan_has_are_refused() -> None:
    constants = PLAN.constants()
    assert PrivacyPlan.from_constants(constants) == PLAN
    with pytest.raises(TypeError):
        PrivacyPlan.from_constants({**constants, "mean_loss": 0.1})
    with pytest.raises(TypeError):
        PrivacyPlan.from_constants({key: value for key, value in constants.items() if key != "records"})


def test_delta_just_below_one_in_records_is_taken() -> None:
    assert made_plan(**asked(epsilon=0.3, delta=0.999e-3)).delta == 0.999e-3


def test_noise_is_calibrated_for_all_attempts() -> None:
    plan = made_plan(**asked(epsilon=1.0, steps=10, reserve_steps=30))
    assert plan.attempts == 40
    q = 100 / 1000
    assert plan.sampling_probability == q
    spent = epsilon(plan.noise_multiplier, q, 40, 1e-5)
    assert 0.97 < spent <= 1.0
    assert plan.epsilon_after(40) == spent
    assert plan.epsilon_after(10) < 0.75, "the noise of 10 attempts alone would be far less"
    assert plan.epsilon_after(40, Adjacency.REPLACE_ONE) > spent


def test_everything_else_is_taken_over_as_it_was_asked() -> None:
    wanted = asked(epsilon=1.0, steps=10, reserve_steps=30)
    made = made_plan(**wanted).constants()
    assert {key: made[key] for key in wanted} == wanted
    assert made["unit"] == "image"


@pytest.mark.parametrize(("steps", "reserve"), [(1, 5), (150, 5), (250, 5), (251, 6), (1000, 20), (1001, 21)])
def test_default_reserve_is_two_per_cent_but_five(steps: int, reserve: int) -> None:
    assert default_reserve(steps) == reserve


TOGETHER = {
    "clipping": ({}, "automatic"),
    "noise": ({}, "grid"),
    "unit": ({}, "group"),
    "images_per_unit": ({"unit": "group"}, 2),
    "max_batch_size": ({"max_batch_size": 500, "most_records": 2000}, 501),
    "most_records": ({"max_batch_size": 500, "most_records": 2000}, 2001),
    "queries": ({}, (ClassHistogram(noise_multiplier=20.0),)),
}
"""Constants that are valid only beside others, or among few values: (the others, another value)."""


@pytest.mark.parametrize("field", [field.name for field in fields(PrivacyPlan)])
def test_digest_covers_every_constant(field: str) -> None:
    beside, other = TOGETHER.get(field, ({}, None))
    plan = replace(PLAN, **beside)
    value = getattr(plan, field)
    others = [other]
    if isinstance(value, float):
        others = [value * (1 + 1e-15), value / 2]
    elif other is None:
        others = [not value] if isinstance(value, bool) else [value + ("x" if isinstance(value, str) else 1)]
    for other in others:
        assert other != value
        assert replace(plan, **{field: other}).digest() != plan.digest()


@settings(max_examples=50, deadline=None)
@given(st.text('ab", {}:', max_size=5), st.text('ab", {}:', max_size=5))
def test_digest_does_not_mix_neighbouring_texts(first: str, second: str) -> None:
    plan = replace(PLAN, dataset_id=first, run=second)
    assert (plan.digest() == replace(PLAN, dataset_id=second, run=first).digest()) == (first == second)
    assert plan.digest() == PrivacyPlan(**plan.constants()).digest(), "constants are all there is to a plan"


@pytest.mark.parametrize(("sigma", "steps", "reserve"), [(4.0, 40, 10), (5.0, 3, 2), (6.0, 1, 0)])
def test_epsilon_curve_is_an_upper_bound_that_grows_to_the_final_value(sigma: float, steps: int, reserve: int) -> None:
    plan = replace(PLAN, noise_multiplier=sigma, steps=steps, reserve_steps=reserve)
    curve = plan.epsilon_curve()
    attempts, values = zip(*curve, strict=True)
    assert attempts == tuple(sorted(set(attempts)))
    assert attempts[-1] == steps + reserve
    assert len(curve) == min(16, steps + reserve)
    assert values == tuple(sorted(values))
    assert values[-1] == plan.epsilon_after(plan.attempts)
    for number, value in curve[:: max(1, len(curve) // 3)]:
        exact = plan.epsilon_after(number)
        assert exact <= value <= exact + 0.02


# --- questions beside the gradients -------------------------------------------------------------------------------

HISTOGRAM, MEANS = ClassHistogram(noise_multiplier=20.0), ClassMeans(noise_multiplier=30.0, clip_norm=8.0)
ASKING = replace(PLAN, queries=(HISTOGRAM, MEANS))


def test_a_plan_without_questions_is_the_plan_it_was_before_they_existed() -> None:
    """Ledgers, checkpoints and releases hold its digest."""
    assert "queries" not in PLAN.constants()
    assert "queries" in ASKING.constants()


def test_the_noise_pays_for_the_questions_too() -> None:
    wanted = asked(epsilon=1.0, steps=10, reserve_steps=30)
    alone, beside = made_plan(**wanted), made_plan(**wanted, queries=ASKING.queries)
    assert beside.noise_multiplier > alone.noise_multiplier
    assert 0.97 < beside.epsilon_after(40) <= 1.0
    assert 0.2 < beside.epsilon_after(0) < beside.epsilon_after(1) < beside.epsilon_after(40)
    assert all(value > beside.epsilon_after(0) for _, value in beside.epsilon_curve(8))
    assert beside.epsilon_curve(8)[-1] == (40, beside.epsilon_after(40))


def test_questions_that_leave_nothing_for_the_gradients_are_refused() -> None:
    greedy = ClassHistogram(noise_multiplier=1.0)
    with pytest.raises(ValueError, match=r"its queries alone cost \d+\.\d+: give queries more noise"):
        made_plan(**asked(epsilon=1.0), queries=(greedy,))


@pytest.mark.parametrize(
    "question",
    [
        replace(HISTOGRAM, noise_multiplier=20.000001),
        replace(HISTOGRAM, reserve=1),
        replace(MEANS, clip_norm=8.5),
        replace(MEANS, count_weight=0.3),
        replace(MEANS, noise_multiplier=31.0),
    ],
)
def test_digest_covers_every_constant_of_a_question(question: Question) -> None:
    others = tuple(question if known.kind == question.kind else known for known in ASKING.queries)
    assert replace(ASKING, queries=others).digest() != ASKING.digest()


def test_a_plan_is_what_its_constants_say() -> None:
    for plan in (PLAN, ASKING):
        stored = json.loads(json.dumps(plan.constants()))
        assert PrivacyPlan.from_constants(stored) == plan
        assert PrivacyPlan.from_constants(stored).digest() == plan.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.29},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": float("inf")},
        {"noise_multiplier": True},
        {"noise_multiplier": "20"},
        {"reserve": -1},
        {"reserve": 1.5},
        {"reserve": 101},
        {"clip_norm": 0.0},
        {"clip_norm": float("nan")},
        {"count_weight": -0.25},
        {"count_weight": float("inf")},
        {"kind": "median"},
        {"replace_one": 0.1},
    ],
)
def test_constants_of_a_question_out_of_range_are_refused(change: dict[str, Any]) -> None:
    stored = ASKING.constants()
    stored["queries"][1] |= change
    with pytest.raises((ValueError, TypeError), match=r"class_means|unknown kind|replace_one"):
        PrivacyPlan.from_constants(stored)


def test_a_plan_without_gradients_is_its_questions() -> None:
    """All of their epsilon and nothing else; and no plan is without both."""
    votes = NearestVotes(noise_multiplier=9.0, candidates=20, rounds=12)
    alone = replace(PLAN, steps=0, reserve_steps=0, noise_multiplier=0.0, queries=(votes,))
    assert not alone.tunes
    assert (alone.attempts, votes.attempts) == (0, 14)
    assert alone.stated_epsilon() == epsilon(0.0, 0.1, 0, 1e-5, beside=(WholeRelease(9.0, 14, math.sqrt(2)),))
    assert 1 < alone.stated_epsilon() < alone.stated_epsilon(Adjacency.REPLACE_ONE)
    assert alone.epsilon_curve() == [(0, alone.stated_epsilon())]
    assert PrivacyPlan.from_constants(alone.constants()) == alone
    for wrong in ({"queries": ()}, {"reserve_steps": 1}):
        with pytest.raises(ValueError, match=r"privacy\.(steps|reserve_steps)"):
            replace(alone, **wrong)


def test_a_question_is_asked_once_in_a_plan() -> None:
    with pytest.raises(ValueError, match="each kind of question once"):
        replace(PLAN, queries=(HISTOGRAM, replace(HISTOGRAM, noise_multiplier=40.0)))
