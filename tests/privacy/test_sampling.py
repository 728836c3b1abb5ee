"""Poisson draws: every unit on its own, with a probability that is q to 64 bits and never more.

Statistical tests raise a false alarm once in a million runs; `ALARM` is two-sided.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from dpldm.privacy.entropy import SeededEntropy, SystemEntropy, random_words
from dpldm.privacy.sampling import poisson_batch

ALARM = 1e-6
UNITS, DRAWS = 1000, 4000


class ScriptedEntropy:
    """Gives the wanted words, each counted from the smallest (0) to the largest (2**64 - 1)."""

    private = False

    def __init__(self, ranks: list[int]) -> None:
        self._data = b"".join((rank - 2**63).to_bytes(8, "little", signed=True) for rank in ranks)

    def bytes(self, count: int) -> bytes:
        assert count == len(self._data), "one word per unit"
        return self._data


@settings(max_examples=300, deadline=None)
@given(st.floats(0.0, 1.0), st.lists(st.integers(0, 2**64 - 1), max_size=4))
@example(0.0, [])
@example(1.0, [])
@example(5e-324, [])
@example(1 - 2**-53, [])
@example(0.5, [])
@example(1 / 3, [])
def test_exactly_the_floor_of_q_times_2_to_64_words_mean_yes(q: float, more: list[int]) -> None:
    """Word w says yes if and only if w + 1 <= q * 2**64: so the probability is floor(q * 2**64) / 2**64."""
    edge = int(Fraction(q) * 2**64)
    ranks = [rank for rank in (0, edge - 2, edge - 1, edge, edge + 1, 2**64 - 1, *more) if 0 <= rank < 2**64]
    expected = [index for index, rank in enumerate(ranks) if rank + 1 <= Fraction(q) * 2**64]
    assert poisson_batch(len(ranks), q, ScriptedEntropy(ranks)).tolist() == expected


def test_impossible_certain_and_hopeless() -> None:
    entropy = SystemEntropy()
    assert poisson_batch(1000, 0.0, entropy).tolist() == []
    assert poisson_batch(1000, 1.0, entropy).tolist() == list(range(1000))
    assert poisson_batch(1000, 1e-30, entropy).tolist() == []
    assert poisson_batch(0, 0.5, entropy).tolist() == []
    assert poisson_batch(0, 0.5, entropy).dtype == torch.int64


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.floats(0, 1), st.integers(0, 2**32))
def test_a_batch_is_increasing_and_in_range(units: int, q: float, seed: int) -> None:
    batch = poisson_batch(units, q, SeededEntropy(seed)).tolist()
    assert batch == sorted(set(batch))
    assert all(0 <= index < units for index in batch)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 50), st.floats(0, 1), st.integers(0, 2**32))
def test_more_units_do_not_change_the_coins_of_the_others(units: int, more: int, q: float, seed: int) -> None:
    """D and D' share the coins of their common records."""
    small = poisson_batch(units, q, SeededEntropy(seed)).tolist()
    large = poisson_batch(units + more, q, SeededEntropy(seed)).tolist()
    assert [index for index in large if index < units] == small


@pytest.fixture(scope="module", params=[0.1, 0.5], ids=["q=0.1", "q=0.5"])
def draws(request: pytest.FixtureRequest) -> tuple[float, np.ndarray]:
    """(q, inclusion (DRAWS, UNITS)) of four million coins."""
    q, entropy = request.param, SystemEntropy()
    included = np.zeros((DRAWS, UNITS), dtype=np.bool_)
    for row in included:
        row[poisson_batch(UNITS, q, entropy).numpy()] = True
    return q, included


def assert_chi_square(statistic: float, degrees: int) -> None:
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], degrees)
    assert low < statistic < high


def test_rate_is_q(draws: tuple[float, np.ndarray]) -> None:
    q, included = draws
    low, high = stats.binom.ppf([ALARM / 2, 1 - ALARM / 2], included.size, q)
    assert low <= included.sum() <= high


def test_every_unit_has_the_same_rate(draws: tuple[float, np.ndarray]) -> None:
    q, included = draws
    deviations = (included.sum(0) - DRAWS * q) / np.sqrt(DRAWS * q * (1 - q))
    assert_chi_square(float(np.square(deviations).sum()), UNITS)


def test_batch_sizes_vary_as_those_of_a_poisson_draw(draws: tuple[float, np.ndarray]) -> None:
    """Variance N q (1 - q): batches of fixed size have none, shuffled epochs less."""
    q, included = draws
    deviations = (included.sum(1) - UNITS * q) / np.sqrt(UNITS * q * (1 - q))
    assert_chi_square(float(np.square(deviations).sum()), DRAWS)


@pytest.mark.parametrize("apart", [1, 2, 64, 500])
def test_units_are_independent_in_pairs(draws: tuple[float, np.ndarray], apart: int) -> None:
    q, included = draws
    centred = included - q
    starts = [i for i in range(UNITS - apart) if (i // apart) % 2 == 0]  # disjoint pairs (i, i + apart)
    products = (centred[:, starts] * centred[:, [i + apart for i in starts]]).sum(0) / (np.sqrt(DRAWS) * q * (1 - q))
    assert_chi_square(float(np.square(products).sum()), len(starts))


@pytest.mark.parametrize("units", [1, 3])
def test_few_units_are_drawn_as_often_as_coins_say_also_none_of_them(units: int) -> None:
    """An empty draw that is drawn again, or a batch that is never empty, shows where there are few units."""
    q, draws = 0.3, 30_000
    sizes = [len(poisson_batch(units, q, SystemEntropy())) for _ in range(draws)]
    observed = np.bincount(sizes, minlength=units + 1)
    expected = stats.binom.pmf(np.arange(units + 1), units, q) * draws
    assert stats.chisquare(observed, expected).pvalue > ALARM


def test_consecutive_draws_are_independent(draws: tuple[float, np.ndarray]) -> None:
    q, included = draws
    centred = included - q
    products = (centred[::2] * centred[1::2]).sum(0) / (np.sqrt(DRAWS / 2) * q * (1 - q))
    assert_chi_square(float(np.square(products).sum()), UNITS)


def test_forty_million_coins_at_a_usual_rate() -> None:
    """What 4e7 coins resolve: the rate to 0.5 % (five standard errors), and the variance of a batch's size."""
    q, units, draws = 0.0256, 10_000, 4_000
    sizes = np.array([len(poisson_batch(units, q, SystemEntropy())) for _ in range(draws)])
    assert abs(sizes.mean() / (q * units) - 1) < 0.005
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], draws - 1) / (draws - 1)
    assert low < sizes.var(ddof=1) / (units * q * (1 - q)) < high


def test_system_entropy_never_repeats_itself() -> None:
    seen = {SystemEntropy().bytes(32) for _ in range(1000)}
    assert len(seen) == 1000
    assert SystemEntropy.private


def test_seeded_entropy_repeats_itself_and_says_so() -> None:
    first, again, other = SeededEntropy(1), SeededEntropy(1), SeededEntropy(2)
    stream = [first.bytes(16), first.bytes(16)]
    assert stream == [again.bytes(16), again.bytes(16)]
    assert stream[0] != stream[1]
    assert other.bytes(16) not in stream
    assert not SeededEntropy.private


def test_random_words_use_all_64_bits() -> None:
    words = random_words(200_000, SystemEntropy()).numpy().view(np.uint64)
    ones = np.array([np.count_nonzero(words & np.uint64(1 << bit)) for bit in range(64)])
    assert_chi_square(float(np.square((ones - 100_000) / np.sqrt(50_000)).sum()), 64)


# --- a largest batch ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.floats(0, 1), st.integers(1, 60), st.integers(0, 2**32))
def test_a_cut_batch_is_part_of_the_draw_and_never_larger(units: int, q: float, largest: int, seed: int) -> None:
    whole = poisson_batch(units, q, SeededEntropy(seed)).tolist()
    cut = poisson_batch(units, q, SeededEntropy(seed), largest).tolist()
    assert len(cut) == min(len(whole), largest)
    assert cut == sorted(set(cut))
    assert set(cut) <= set(whole)


def test_every_part_is_equally_likely() -> None:
    """All 10 pairs of 5 units, chi-square; q = 1, so that every draw is cut."""
    entropy, draws = SystemEntropy(), 20_000
    pairs: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        pair = tuple(poisson_batch(5, 1.0, entropy, 2).tolist())
        pairs[pair] = pairs.get(pair, 0) + 1
    assert len(pairs) == 10
    assert_chi_square(sum((count - draws / 10) ** 2 / (draws / 10) for count in pairs.values()), 9)
