"""Votes: one for each unit, of its own image alone; and what becomes of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpldm.baselines.evolution import Population, choices, degree_of, parents, votes
from dpldm.config import EvolutionConfig
from dpldm.privacy.queries import Places
from dpldm.privacy.questions import NearestVotes

D, P, K = 3, 7, 3
generator = torch.Generator().manual_seed(0)
CANDIDATES = torch.nn.functional.normalize(torch.randn(P, D, generator=generator), dim=1)
CLASSES = torch.tensor([0, 1, 0, 1, 1, 0, 0])
"""Nobody stands for the class 2."""

Image = tuple[int, bool, list[float]]
"""Class, whether it could be read, features."""
Unit = list[Image]

numbers = st.sampled_from([0.0, 1.0, -1.0, 1e30, float("nan"), float("inf")]) | st.floats(-1, 1, width=32)
images = st.tuples(st.sampled_from([-1, 0, 1, 2, 9]), st.booleans(), st.lists(numbers, min_size=D, max_size=D))
units = st.lists(images, min_size=1, max_size=4)
sets = st.lists(units, max_size=5)


def votes_of(data: list[Unit]) -> Tensor:
    """By the production code: the images numbered through, each of a unit's m weighs 1/m, one that was not read 0."""
    width = max((len(unit) for unit in data), default=1)
    records, weights = torch.zeros(len(data), width, dtype=torch.int64), torch.zeros(len(data), width)
    rows: list[list[float]] = []
    labels: list[int] = []
    for u, unit in enumerate(data):
        for place, (label, readable, features) in enumerate(unit):
            records[u, place], weights[u, place] = len(rows), readable / len(unit)
            rows.append(features)
            labels.append(label)
    classes = torch.tensor(labels, dtype=torch.int64)
    chosen = choices(torch.tensor(rows).reshape(-1, D), classes, CANDIDATES, CLASSES)
    return votes(Places(records, classes[records] if labels else records, weights), chosen, P)


def votes_by_hand(data: list[Unit]) -> Tensor:
    """Image by image, from the definition."""
    total = torch.zeros(P, dtype=torch.float64)
    for unit in data:
        for label, readable, features in unit:
            running = [c for c in range(P) if int(CLASSES[c]) == label]
            if not readable or not running or not all(map(math.isfinite, features)):
                continue
            x = torch.tensor(features)
            distances = [float((x.double() - CANDIDATES[c].double()).norm()) for c in running]
            total[running[distances.index(min(distances))]] += 1 / len(unit)
    return total


@settings(max_examples=150, deadline=None)
@given(data=sets, one=units, other=units)
def test_a_unit_more_moves_the_votes_by_at_most_1_and_another_by_at_most_replace_one(
    data: list[Unit], one: Unit, other: Unit
) -> None:
    """Whatever the units hold: several images of several classes, unknown ones, null images, NaN and infinity."""
    without, with_one, with_other = (votes_of([*data, *more]) for more in ([], [one], [other]))
    assert float((with_one - without).norm()) <= 1 + 1e-9
    assert float((with_one - without).sum()) <= 1 + 1e-9
    question = NearestVotes(noise_multiplier=5.0, candidates=P, rounds=1)
    assert float((with_one - with_other).norm()) <= question.replace_one + 1e-9


@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(
        st.lists(
            st.tuples(st.integers(-1, 3), st.booleans(), st.lists(st.floats(-1, 1, width=16), min_size=D, max_size=D)),
            min_size=1,
            max_size=3,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_votes_are_those_of_a_loop(data: list[Unit]) -> None:
    ties = [abs(a - b) for unit in data for _, _, x in unit for a, b in _two_nearest(x)]
    if all(gap > 1e-5 for gap in ties):
        assert torch.allclose(votes_of(data), votes_by_hand(data), atol=1e-6)


def _two_nearest(features: list[float]) -> list[tuple[float, float]]:
    """The two smallest distances within each class."""
    distances = (torch.tensor(features).double() - CANDIDATES.double()).norm(dim=1)
    return [tuple(distances[label == CLASSES].sort().values[:2].tolist()) for label in (0, 1)]


def test_the_loop_has_something_to_say() -> None:
    """Ties, which a loop and a batch may settle otherwise, do not swallow the comparison."""
    rows = torch.randn(50, D, generator=torch.Generator().manual_seed(1)).tolist()
    data: list[Unit] = [[(number % 2, True, row)] for number, row in enumerate(rows)]
    found = votes_of(data)
    assert torch.equal(found, votes_by_hand(data))
    assert found.sum() == 50
    assert (found > 0).sum() > 4


def test_a_vote_does_not_depend_on_who_else_votes() -> None:
    rows = torch.randn(3000, D, generator=torch.Generator().manual_seed(2))
    classes = torch.arange(3000) % 2
    together = choices(rows, classes, CANDIDATES, CLASSES)
    for kept in (slice(1, None), slice(0, 1500), slice(7, 8)):
        assert torch.equal(together[kept], choices(rows[kept], classes[kept], CANDIDATES, CLASSES))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_group_has_one_vote_however_many_images_it_has(size: int) -> None:
    image: Image = (0, True, CANDIDATES[2].tolist())
    assert votes_of([[image] * size]).tolist() == pytest.approx([0, 0, 1, 0, 0, 0, 0], abs=1e-6)


# --- what becomes of them: post-processing -------------------------------------------------------------------------

POPULATION = Population(torch.zeros(P, 1, 1, 1), torch.full((P,), -1), CLASSES)
QUESTION = NearestVotes(noise_multiplier=5.0, candidates=P, rounds=1)


def drawn(noised: list[float], threshold: float, children: int = 6000) -> list[float]:
    """How often each candidate is a parent of a child of its class."""
    labels = torch.arange(children) % 2
    rows = parents(POPULATION, QUESTION, torch.tensor(noised), threshold, labels, torch.Generator().manual_seed(0))
    assert torch.equal(CLASSES[rows], labels)
    return (torch.bincount(rows, minlength=P) / (children / 2)).tolist()


def test_parents_are_drawn_by_what_the_threshold_leaves() -> None:
    """With deviation 5 and threshold 2, ten votes are taken off: 20, 5, 40 of class 0 and 0, 13, 11 of class 1."""
    found = drawn([30.0, 10.0, 15.0, 23.0, 21.0, 50.0, 9.0], 2.0)
    assert found == pytest.approx([20 / 65, 0, 5 / 65, 13 / 24, 11 / 24, 40 / 65, 0], abs=0.03)
    assert found[1] == found[6] == 0


def test_where_nothing_is_left_all_are_alike() -> None:
    assert drawn([0.0] * P, 2.0) == pytest.approx([1 / 4, 1 / 3, 1 / 4, 1 / 3, 1 / 3, 1 / 4, 1 / 4], abs=0.03)


def test_degrees_go_evenly_from_the_first_to_the_last() -> None:
    evolution = EvolutionConfig(rounds=3, degrees=(0.9, 0.3))
    assert [degree_of(evolution, number) for number in (1, 2, 3)] == pytest.approx([0.9, 0.6, 0.3])
    assert degree_of(EvolutionConfig(rounds=1, degrees=(0.9, 0.3)), 1) == 0.3
