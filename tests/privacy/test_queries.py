"""Queries: how far one unit can move a sum, what is charged before what is read, and what becomes of answers."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpldm.privacy.entropy import SeededEntropy
from dpldm.privacy.grid import add_gaussian_on_grid
from dpldm.privacy.ledger import BudgetExhausted, Ledger, LedgerError, open_ledger, read_ledger
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.queries import (
    UNITS_AT_ONCE,
    Places,
    ask,
    class_counts,
    class_means,
    class_shares,
    class_spreads,
    class_sums,
    counts_by_share,
    deviations_of_means,
    packed,
    score_sums,
    shares_within_classes,
    spread_sums,
    unpacked,
)
from dpldm.privacy.questions import (
    CandidateScores,
    ClassHistogram,
    ClassMeans,
    ClassSpreads,
    PublicClassHistogram,
    Question,
)

K, D = 3, 4
HISTOGRAM, MEANS = ClassHistogram(noise_multiplier=20.0), ClassMeans(noise_multiplier=5.0, clip_norm=2.0)
PLAN = PrivacyPlan(
    dataset_id="scans",
    run="first",
    epsilon=1.0,
    delta=1e-6,
    records=1000,
    expected_batch_size=100,
    steps=3,
    reserve_steps=2,
    max_grad_norm=0.5,
    draws_per_example=1,
    noise_multiplier=2.0,
    queries=(HISTOGRAM, MEANS),
)

Image = tuple[int, bool, list[float]]
"""Label, whether it could be read, latent."""
Unit = list[Image]

EXTREMES = [0.0, 1.0, -1.0, 1e30, -1e30, 1e-40, float("nan"), float("inf"), float("-inf")]
latents = st.lists(st.sampled_from(EXTREMES) | st.floats(-5, 5, width=32), min_size=D, max_size=D)
images = st.tuples(st.sampled_from([-1, 0, 1, 2, K]), st.booleans(), latents)
units = st.lists(images, min_size=1, max_size=4)
sets = st.lists(units, max_size=5)


def places_of(data: list[Unit]) -> tuple[Places, Tensor]:
    """Units as tensors, the images numbered through; a unit's m images weigh 1/m, one that was not read 0."""
    width = max((len(unit) for unit in data), default=1)
    records, labels, weights = torch.zeros(3, len(data), width, dtype=torch.float64)
    rows: list[list[float]] = []
    for u, unit in enumerate(data):
        for place, (label, readable, latent) in enumerate(unit):
            records[u, place], labels[u, place], weights[u, place] = len(rows), label, readable / len(unit)
            rows.append(latent)
    return Places(records.long(), labels.long(), weights.float()), torch.tensor(rows).reshape(-1, D, 1)


def total_of(question: Question, data: list[Unit]) -> Tensor:
    """The sum that the noise is added to."""
    places, flat = places_of(data)
    if isinstance(question, CandidateScores):
        return score_sums(question, places, flat.flatten(1))
    if isinstance(question, ClassSpreads):
        return spread_sums(question, places, flat, CENTRES[:, None])
    return class_sums(question, places, flat, K) if isinstance(question, ClassMeans) else class_counts(places, K)


def total_by_hand(question: Question, data: list[Unit]) -> Tensor:
    """The same, image by image, from the definition."""
    if isinstance(question, CandidateScores):
        return scores_by_hand(data)
    if isinstance(question, ClassSpreads):
        return spreads_by_hand(question, data)
    wide = D + 1 if isinstance(question, ClassMeans) else 1
    total = torch.zeros(K, wide, dtype=torch.float64)
    for unit in data:
        for label, readable, latent in unit:
            if not readable or not 0 <= label < K:
                continue
            vector = torch.ones(1, dtype=torch.float64)
            if isinstance(question, ClassMeans):
                z = torch.tensor(latent).double()
                if not bool(torch.isfinite(z).all()):
                    continue
                z = z * min(1.0, question.clip_norm / max(float(z.norm()), 1e-300)) / question.clip_norm
                vector = torch.tensor([*z.tolist(), question.count_weight]).double()
                vector /= math.sqrt(1 + question.count_weight**2)
            total[label] += vector / len(unit)
    return total if wide > 1 else total[:, 0]


def spreads_by_hand(question: ClassSpreads, data: list[Unit]) -> Tensor:
    """Entry by entry of each image's matrix."""
    total = torch.zeros(K, D, D, dtype=torch.float64)
    for unit in data:
        for label, readable, latent in unit:
            if readable and 0 <= label < K and all(math.isfinite(entry) for entry in latent):
                r = torch.tensor(latent).double() - CENTRES[label]
                r = r / max(question.clip_norm, float(r.norm()))
                total[label] += torch.outer(r, r) / len(unit)
    upper = [(i, j) for i in range(D) for j in range(i, D)]
    entries = [total[:, i, j] * (1 if i == j else math.sqrt(2)) for i, j in upper]
    return torch.stack(entries, 1)


def scores_by_hand(data: list[Unit]) -> Tensor:
    """The latent stands for the scores of D candidates; the label does not matter."""
    total = torch.zeros(D, dtype=torch.float64)
    for unit in data:
        for _, readable, scores in unit:
            if readable and all(math.isfinite(score) for score in scores):
                total += torch.tensor([min(max(score, 0.0), 1.0) for score in scores]).double() / len(unit)
    return total / math.sqrt(D)


SCORES = CandidateScores(noise_multiplier=5.0, candidates=D)
SPREADS = ClassSpreads(noise_multiplier=5.0, clip_norm=1.5)
CENTRES = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 0.5, 0.0], [0.0, 3.0, 0.0, 0.0]]).double()
QUESTIONS = [
    SCORES,
    HISTOGRAM,
    MEANS,
    replace(MEANS, count_weight=1.0),
    replace(MEANS, count_weight=3.0, clip_norm=0.1),
    SPREADS,
]


# --- sensitivity --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
@settings(max_examples=150, deadline=None)
@given(data=sets, one=units, other=units)
def test_a_unit_more_moves_a_sum_by_at_most_1_and_another_by_at_most_replace_one(
    question: Question, data: list[Unit], one: Unit, other: Unit
) -> None:
    """Whatever the units hold: several images of several classes, unknown labels, null images, NaN and infinity."""
    without, with_one, with_other = (total_of(question, [*data, *more]) for more in ([], [one], [other]))
    assert float((with_one - without).norm()) <= 1 + 1e-9
    assert float((with_one - with_other).norm()) <= question.replace_one + 1e-9


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_the_bounds_are_reached(question: Question) -> None:
    """They could not be smaller: a unit at the clip norm; against it its opposite, or one of another class.

    (For scores, the opposite of all 1 is all 0.)
    """
    far = [9.0] * D
    one, opposite, elsewhere = ([(k, True, [s * x for x in far])] for k, s in ((0, 1), (0, -1), (1, 1)))
    empty, full = total_of(question, []), total_of(question, [one])
    assert float((full - empty).norm()) == pytest.approx(1.0, abs=1e-12)
    distances = [float((full - total_of(question, [unit])).norm()) for unit in (opposite, elsewhere)]
    assert max(distances) == pytest.approx(question.replace_one, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("question", [HISTOGRAM, MEANS, SPREADS], ids=str)
def test_a_group_counts_as_one_unit_however_many_images_it_has(question: Question, size: int) -> None:
    group = [(1, True, [9.0, 0.0, 0.0, 0.0])] * size
    assert torch.allclose(total_of(question, [group]), total_of(question, [group[:1]]), atol=1e-6)


def spreads_around_parts(data: list[Unit]) -> Tensor:
    """With the three classes for parts of one."""
    return spread_sums(SPREADS, *places_of(data), CENTRES[None])


@settings(max_examples=60, deadline=None)
@given(data=sets, one=units, other=units)
def test_spreads_around_parts_are_bounded_alike(data: list[Unit], one: Unit, other: Unit) -> None:
    without, with_one, with_other = (spreads_around_parts([*data, *more]) for more in ([], [one], [other]))
    assert float((with_one - without).norm()) <= 1 + 1e-9
    assert float((with_one - with_other).norm()) <= SPREADS.replace_one + 1e-9


def test_spreads_around_parts_add_up_to_their_class() -> None:
    """The same distances from the same centres, in one matrix."""
    data = [[(k, True, [2.0 * k, float(n), -1.0, 0.5])] * (1 + n) for k in (-1, 0, 1, 2, K) for n in (0, 1, 2)]
    assert torch.allclose(spreads_around_parts(data), total_of(SPREADS, data).sum(0, keepdim=True), atol=1e-12)


def test_weights_that_are_too_large_are_cut() -> None:
    """The bound does not rest on the caller."""
    places = Places(torch.arange(3)[None], torch.tensor([[0, 0, 1]]), torch.tensor([[2.0, -5.0, 2.0]]))
    assert class_counts(places, K).tolist() == [0.5, 0.5, 0.0]
    assert float(class_sums(MEANS, places, torch.full((3, D), 1e9), K).norm()) <= 1


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
@settings(max_examples=60, deadline=None)
@given(data=sets)
def test_a_sum_is_what_its_definition_says(question: Question, data: list[Unit]) -> None:
    assert torch.allclose(total_of(question, data), total_by_hand(question, data), atol=1e-6)


def test_latents_summed_in_parts_are_the_same_sum() -> None:
    count = 2 * UNITS_AT_ONCE + 7
    generator = torch.Generator().manual_seed(0)
    flat, labels = torch.randn(count, D, generator=generator), torch.arange(count) % K
    places = Places(torch.arange(count)[:, None], labels[:, None], torch.ones(count, 1))
    clipped = flat.double() / (flat.double().norm(dim=1, keepdim=True) / 2).clamp(min=1) / 2
    vectors = torch.cat([clipped, torch.full((count, 1), 0.25)], 1) / math.sqrt(1 + 0.25**2)
    expected = torch.stack([vectors[labels == k].sum(0) for k in range(K)])
    assert torch.allclose(class_sums(MEANS, places, flat, K), expected, atol=1e-9)


# --- charged, then read, then noised -------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path / "scans.jsonl", "scans", (2.0, 1e-5)) as opened:
        opened.register(PLAN)
        yield opened


def test_a_line_is_on_disk_before_anything_is_read(ledger: Ledger) -> None:
    def total() -> Tensor:
        last = read_ledger(ledger.path)[-1]
        seen.append((last["event"], last.get("query"), last.get("number"), last["plan"]))
        return torch.zeros(K)

    seen: list[tuple[Any, ...]] = []
    for question in PLAN.queries:
        ask(question, total, PLAN, ledger, SeededEntropy(0))
    assert seen == [("query", kind, 1, PLAN.digest()) for kind in ("class_histogram", "class_means")]
    assert ledger.attempts(PLAN) == 0, "a question is no attempt at an update"


def test_a_question_is_asked_as_often_as_is_paid_for_and_then_nothing_is_read(ledger: Ledger) -> None:
    class Crash(Exception):
        pass

    reads: list[int] = []

    def total() -> Tensor:
        reads.append(ledger.query_attempts(PLAN, HISTOGRAM))
        if len(reads) <= 2:
            raise Crash
        return torch.zeros(K)

    for expected in (Crash, Crash, None, BudgetExhausted, BudgetExhausted):
        with pytest.raises(expected) if expected else nullcontext():
            ask(HISTOGRAM, total, PLAN, ledger, SeededEntropy(0))
    assert reads == [1, 2, 3], "not read without a charge"
    assert ledger.query_attempts(PLAN, HISTOGRAM) == HISTOGRAM.attempts == 3
    assert ledger.query_attempts(PLAN, MEANS) == 0, "each question has attempts of its own"


def test_a_question_that_is_not_in_the_plan_is_not_asked(ledger: Ledger) -> None:
    cheaper, unknown = replace(HISTOGRAM, noise_multiplier=1.0), replace(PLAN, run="second")

    def unread() -> Tensor:
        raise AssertionError("was read")

    for question, plan in ((cheaper, PLAN), (HISTOGRAM, unknown), (cheaper, replace(PLAN, queries=(cheaper,)))):
        with pytest.raises(LedgerError, match=r"does not hold|has not been registered"):
            ask(question, unread, plan, ledger, SeededEntropy(0))


def test_noise_has_the_declared_deviation_and_none_repeats(tmp_path: Path) -> None:
    """4,096 entries at 20: the sample deviation is within 5.5 standard errors, or once in 3e7 runs it is not."""
    question = ClassHistogram(noise_multiplier=20.0)
    plan = replace(PLAN, queries=(question,))
    with open_ledger(tmp_path / "l.jsonl", "scans", (2.0, 1e-5)) as ledger:
        ledger.register(plan)
        first, second = (
            ask(question, lambda: torch.full((4096,), 1e3), plan, ledger, SeededEntropy(k)) for k in (0, 1)
        )
    for answer in (first, second):
        assert float(answer.double().std()) == pytest.approx(20.0, rel=5.5 / math.sqrt(2 * 4096))
        assert float(answer.double().mean()) == pytest.approx(1e3, abs=5.5 * 20 / math.sqrt(4096))
    assert not torch.equal(first, second)


# --- post-processing -----------------------------------------------------------------------------------------------


def test_a_plan_with_grid_noise_answers_on_the_grid(ledger: Ledger) -> None:
    plan, summed = replace(PLAN, noise="grid"), torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64)
    ledger.register(plan)
    question = plan.queries[0]
    answer = ask(question, lambda: summed, plan, ledger, SeededEntropy(7))
    assert torch.equal(answer, add_gaussian_on_grid(summed, question.noise_multiplier, 1.0, 3, SeededEntropy(7)))
    assert not torch.equal(answer, add_gaussian(summed, question.noise_multiplier, SeededEntropy(7)))


def test_shares_are_proportions() -> None:
    assert class_shares(torch.tensor([30.0, -5.0, 10.0])).tolist() == [0.75, 0.0, 0.25]
    assert class_shares(torch.tensor([-1.0, -5.0, 0.0, -2.0])).tolist() == [0.25] * 4


@given(
    noised=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12),
    count=st.integers(1, 10_000),
)
def test_counts_follow_the_shares_and_add_up(noised: list[float], count: int) -> None:
    shares = class_shares(torch.tensor(noised))
    counts = counts_by_share(shares, count)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert sum(counts) == count
    assert all(abs(n - count * share) < 1 for n, share in zip(counts, shares.tolist(), strict=True))
    assert all(n >= 0 for n in counts)


def test_cells_that_noise_could_have_filled_count_as_empty() -> None:
    """Three classes, two public ones: one with a sure and an unsure cell, one with none sure, one with a share each."""
    question = PublicClassHistogram(noise_multiplier=10.0, public_classes=2)
    noised = torch.tensor([90.0, 19.0, -40.0, 20.0, 30.0, 60.0])
    shares = shares_within_classes(question, noised)
    assert torch.allclose(shares, torch.tensor([[1, 0], [120 / 180, 60 / 180], [1 / 3, 2 / 3]]).double())
    assert shares_within_classes(question, torch.zeros(6)).tolist() == [[0.5, 0.5]] * 3


@given(cells=st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6))
def test_shares_within_classes_are_shares(cells: list[float]) -> None:
    shares = shares_within_classes(PublicClassHistogram(noise_multiplier=10.0, public_classes=3), torch.tensor(cells))
    assert shares.shape == (2, 3)
    assert torch.allclose(shares.sum(1), torch.ones(2).double())
    assert float(shares.min()) >= 0


def test_means_come_back_in_units_of_the_latent() -> None:
    """Without noise: the sum of what was clipped, and how many there were."""
    data = [[(0, True, [1.0, 0.0, 0.0, 0.5])], [(0, True, [0.0, 1.0, 0.0, 0.5])], [(1, True, [6.0, 0.0, 8.0, 0.0])]]
    sums, counts = class_means(MEANS, total_of(MEANS, data))
    assert torch.allclose(counts, torch.tensor([2.0, 1.0, 0.0]).double())
    expected = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.2, 0.0, 1.6, 0.0], [0.0] * 4]).double()
    assert torch.allclose(sums, expected)


def test_the_noise_of_means_has_the_deviations_that_are_stated() -> None:
    question = ClassMeans(noise_multiplier=3.0, clip_norm=2.0, count_weight=0.5)
    noise = 3.0 * torch.randn(2000, D + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums, counts = class_means(question, noise)
    of_entry, of_count = deviations_of_means(question)
    assert float(sums.std()) == pytest.approx(of_entry, rel=0.05)
    assert float(counts.std()) == pytest.approx(of_count, rel=0.1)


def test_a_symmetric_matrix_as_a_vector_keeps_its_norm_and_comes_back() -> None:
    square = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices = square + square.mT
    assert torch.allclose(packed(matrices).norm(dim=1), matrices.flatten(1).norm(dim=1))
    assert torch.allclose(unpacked(packed(matrices), 4), matrices)


def test_spreads_are_taken_around_the_part_of_each_image() -> None:
    """Two classes of two parts each, with numbers of parts for labels."""
    places = Places(torch.arange(4)[:, None], torch.tensor([[0], [1], [3], [-1]]), torch.ones(4, 1))
    flat = torch.eye(4) * 2
    centres = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    question = replace(SPREADS, clip_norm=50.0)
    found = class_spreads(question, spread_sums(question, places, flat, centres), 4)
    r = flat.double()[:3] - centres.view(4, 4)[[0, 1, 3]]
    expected = torch.stack([torch.outer(r[0], r[0]) + torch.outer(r[1], r[1]), torch.outer(r[2], r[2])])
    assert torch.allclose(found, expected)


def test_spreads_come_back_in_units_of_the_latent() -> None:
    """Without noise, nothing clipped: sums of outer products around the centres."""
    question = replace(SPREADS, clip_norm=50.0)
    data: list[Unit] = [[(1, True, [2.0, -1.0, 0.5, 3.0])], [(1, True, [1.0, 0.0, 0.5, 0.0])]]
    spreads = class_spreads(question, total_of(question, data), D)
    first, second = (torch.tensor(unit[0][2]).double() - CENTRES[1] for unit in data)
    expected = torch.outer(first, first) + torch.outer(second, second)
    assert torch.allclose(spreads, torch.stack([torch.zeros(D, D).double(), expected, torch.zeros(D, D).double()]))
