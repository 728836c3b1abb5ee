"""Noise on the grid: exact probabilities, integers throughout, the sensitivity that rounding leaves, a true scale."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpldm.privacy.entropy import SeededEntropy, SystemEntropy
from dpldm.privacy.grid import BITS, _below, _die, add_gaussian_on_grid, grid_step, rounded_gaussian

ALARM = 1e-6
DRAWS = 400_000


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_every_integer_has_the_probability_of_its_interval(bits: int) -> None:
    drawn = rounded_gaussian(DRAWS, SystemEntropy(), bits).numpy()
    scale = 2**bits
    values = np.arange(-4 * scale, 4 * scale + 1)
    inside = stats.norm.cdf((values + 0.5) / scale) - stats.norm.cdf((values - 0.5) / scale)
    observed = np.array([np.count_nonzero(drawn == value) for value in values])
    expected = np.append(inside, 1 - inside.sum()) * DRAWS
    assert stats.chisquare(np.append(observed, DRAWS - observed.sum()), expected).pvalue > ALARM


def test_at_full_resolution_it_is_the_normal_distribution() -> None:
    drawn = rounded_gaussian(DRAWS, SystemEntropy()).double().numpy() / 2**BITS
    assert stats.kstest(drawn, "norm", method="asymp").pvalue > ALARM
    assert abs(drawn.std() - 1) < float(stats.norm.isf(ALARM / 2)) / math.sqrt(2 * DRAWS)
    low, high = stats.binom.ppf([ALARM / 2, 1 - ALARM / 2], DRAWS, 2 * stats.norm.sf(3))
    assert low <= np.count_nonzero(np.abs(drawn) > 3) <= high


def test_low_bits_and_signs_are_fair_and_independent() -> None:
    drawn = rounded_gaussian(DRAWS, SystemEntropy()).numpy()
    bits = np.stack([drawn > 0, *((np.abs(drawn) >> place) & 1 for place in (0, 1, 7, 20))]).astype(float)
    bound = float(stats.norm.isf(ALARM / 2))
    assert np.all(np.abs(bits.mean(1) - 0.5) < bound / 2 / math.sqrt(DRAWS))
    assert np.all(np.abs(np.corrcoef(bits) - np.eye(len(bits))) < bound / math.sqrt(DRAWS))
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < bound / math.sqrt(DRAWS)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 50), st.floats(1e-6, 1e3), st.integers(1, 10**9))
def test_noise_is_sigma_times_the_influence_that_rounding_leaves(sigma: float, clip: float, coordinates: int) -> None:
    step = grid_step(sigma, clip, coordinates)
    assert step * 2**BITS == pytest.approx(sigma * (clip + 2 * step * math.sqrt(coordinates)), rel=1e-9)
    assert step * 2**BITS >= sigma * clip


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.floats(0.3, 20), st.floats(1e-3, 10), st.integers(0, 2**32))
def test_one_unit_moves_the_rounded_sum_by_less_than_the_noise_is_scaled_to(
    coordinates: int, sigma: float, clip: float, seed: int
) -> None:
    """Sums of D and of D plus one unit of norm C, with the same noise: the released difference is that of the grid."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.randn(coordinates, generator=generator) * 100 * clip
    unit = torch.nn.functional.normalize(torch.randn(coordinates, generator=generator).double(), dim=0) * clip
    total = total.double()

    def integers(sums: torch.Tensor) -> torch.Tensor:
        return torch.round(sums / grid_step(sigma, clip, coordinates))

    moved = (integers(total + unit) - integers(total)).norm() * grid_step(sigma, clip, coordinates)
    assert moved * sigma <= grid_step(sigma, clip, coordinates) * 2**BITS


def test_every_release_is_a_multiple_of_the_step() -> None:
    """In units of the step, float32 holds what it is given: sum plus noise stay below 2**24 here."""
    sigma = 1.0
    step = grid_step(sigma, 1.0, 1000)
    total = torch.linspace(-1, 1, 1000) / 64
    noised = add_gaussian_on_grid(total, sigma, 1.0, 1000, SeededEntropy(1))
    noise = rounded_gaussian(1000, SeededEntropy(1))
    wanted = (torch.round(total.double() / step).long() + noise).double() * step
    assert torch.equal(noised, wanted.float())
    assert noised.dtype == torch.float32


def test_the_sum_is_kept_to_a_billionth_of_the_noise() -> None:
    total = torch.tensor([[0.3, -7.25], [1e-3, 40.0]])
    with_sum = add_gaussian_on_grid(total, 1.0, 1.0, 4, SeededEntropy(3)).double()
    without = add_gaussian_on_grid(torch.zeros(2, 2), 1.0, 1.0, 4, SeededEntropy(3)).double()
    assert with_sum.shape == (2, 2)
    assert torch.allclose(with_sum - without, total.double(), rtol=0, atol=1e-5)  # float32 of the releases


def test_a_sum_beyond_all_measure_is_cut_not_wrapped_around() -> None:
    """Cutting to a box brings no two sums further apart; an integer that overflows changes its sign."""
    noised = add_gaussian_on_grid(torch.tensor([1e30, -1e30]), 1.0, 1.0, 2, SeededEntropy(0))
    assert noised[0] > 2.0**29
    assert noised[1] < -(2.0**29)


def test_ties_are_decided_by_fair_coins_and_dice_have_no_favourite() -> None:
    """Words that are equal happen once in 2**63; here they are all equal."""
    entropy, same = SystemEntropy(), torch.full((DRAWS,), 12345)
    coins = _below(same, same, entropy).double()
    assert abs(float(coins.mean()) - 0.5) < float(stats.norm.isf(ALARM / 2)) / 2 / math.sqrt(DRAWS)
    assert _below(torch.tensor([1, 2]), torch.tensor([2, 1]), entropy).tolist() == [True, False]
    thrown = _die(torch.full((DRAWS,), 6), entropy).numpy()
    assert stats.chisquare(np.bincount(thrown, minlength=6)).pvalue > ALARM


class _LastRound:
    """A word beyond the last full round of a die with 3 sides, then a word of the first."""

    private = False

    def __init__(self) -> None:
        self.words = [2**63 - 1, 1]

    def bytes(self, count: int) -> bytes:
        assert count == 8
        return self.words.pop(0).to_bytes(8, "little")


def test_a_word_beyond_the_last_full_round_is_thrown_again() -> None:
    assert (2**63 - 1) % 3 == 1
    assert _die(torch.tensor([3]), _LastRound()).tolist() == [1]


def test_nothing_in_nothing_out() -> None:
    assert rounded_gaussian(0, SystemEntropy()).shape == (0,)
