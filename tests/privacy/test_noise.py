"""The noise against the normal distribution, on four million draws; false alarms once in a million runs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from dpldm.privacy.entropy import SeededEntropy, SystemEntropy, random_words
from dpldm.privacy.noise import add_gaussian, standard_gaussian

ALARM = 1e-6
DRAWS = 4_000_000


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    return standard_gaussian(DRAWS, SystemEntropy()).numpy()


def bound_of_correlation(pairs: int) -> float:
    return float(stats.norm.isf(ALARM / 2)) / math.sqrt(pairs)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def test_mean_is_zero_and_scale_is_one(sample: np.ndarray) -> None:
    assert sample.dtype == np.float64
    assert abs(sample.mean()) < bound_of_correlation(DRAWS)
    assert abs(sample.std() - 1) < 0.0025


def test_distribution_is_normal(sample: np.ndarray) -> None:
    assert stats.kstest(sample, "norm", method="asymp").pvalue > ALARM


def test_tails_are_there(sample: np.ndarray) -> None:
    """Kolmogorov-Smirnov hardly looks at tails, and privacy lives there."""
    for threshold in (3.0, 4.0):
        low, high = stats.binom.ppf([ALARM / 2, 1 - ALARM / 2], DRAWS, 2 * stats.norm.sf(threshold))
        assert low <= np.count_nonzero(np.abs(sample) > threshold) <= high


@pytest.mark.parametrize("lag", [1, 2, 3, 1000, DRAWS // 2])
def test_values_are_independent(sample: np.ndarray, lag: int) -> None:
    """The last lag pairs the two outputs of one Box-Muller transform: they share a radius, hence the squares."""
    x, y = sample[:-lag], sample[lag:]
    assert abs(correlation(x, y)) < bound_of_correlation(len(x))
    assert abs(correlation(np.square(x), np.square(y))) < bound_of_correlation(len(x))


def test_no_word_of_a_large_draw_comes_twice() -> None:
    """2**20 words of 64 bits, in one request: two of them are equal with probability 3e-8."""
    assert len(random_words(2**20, SystemEntropy()).unique()) == 2**20


class ScriptedEntropy:
    """The same word again and again, or words of a list."""

    private = False

    def __init__(self, words: list[int]) -> None:
        self._words = words

    def bytes(self, count: int) -> bytes:
        assert count == 8 * len(self._words)
        return b"".join(word.to_bytes(8, "little") for word in self._words)


word = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**63 - 1, 2**63, 2**64 - 1]))


@settings(max_examples=100, deadline=None)
@given(word, word)
def test_two_words_become_the_box_muller_pair(first: int, second: int) -> None:
    radius = math.sqrt(-2 * math.log(((first >> 11) + 1) / 2**53))
    angle = 2 * math.pi * ((second >> 11) / 2**53)
    pair = standard_gaussian(2, ScriptedEntropy([first, second])).tolist()
    assert pair == pytest.approx([radius * math.cos(angle), radius * math.sin(angle)], abs=1e-12)
    assert radius < 8.58, "the cut that docs/privacy.md states"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=3))
def test_any_shape_gets_noise_in_every_entry(shape: list[int]) -> None:
    noised = add_gaussian(torch.zeros(shape), 1.0, SystemEntropy())
    assert noised.shape == torch.Size(shape)
    assert noised.dtype == torch.float32
    assert bool((noised != 0).all())


@pytest.mark.parametrize("standard_deviation", [1e-6, 0.37, 1.0, 250.0])
def test_noise_has_the_wanted_standard_deviation(standard_deviation: float) -> None:
    noised = add_gaussian(torch.zeros(1_000_001), standard_deviation, SystemEntropy()).double()
    assert float(noised.std()) == pytest.approx(standard_deviation, rel=0.004)


def test_sum_is_rounded_once() -> None:
    """float64 until the sum: noise rounded to float32 beforehand gives other values, which are not released."""
    total = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    noise = 0.3 * standard_gaussian(100_000, SeededEntropy(5))
    noised = add_gaussian(total, 0.3, SeededEntropy(5))
    assert torch.equal(noised, (total.double() + noise).float())
    assert not torch.equal(noised, total + noise.float())


@pytest.fixture
def releases() -> list[Tensor]:
    """Two parameters in two releases, from one source of entropy."""
    entropy = SystemEntropy()
    return [add_gaussian(torch.zeros(500_000), 1.0, entropy) for _ in range(4)]


def test_parameters_and_releases_are_independent(releases: list[Tensor]) -> None:
    for index, one in enumerate(releases):
        for other in releases[:index]:
            assert abs(correlation(one.numpy(), other.numpy())) < bound_of_correlation(500_000)
            assert not bool((one == other)[:1000].all())


def test_noise_does_not_depend_on_the_sum() -> None:
    zero = add_gaussian(torch.zeros(1000), 1.0, SeededEntropy(3)).double()
    shifted = add_gaussian(torch.full((1000,), 64.0), 1.0, SeededEntropy(3)).double()
    assert float((shifted - 64.0 - zero).abs().max()) < 1e-5
