"""Gaussian noise on a grid of integers: for those who want no floating-point number between the proof and the release.

A sum of float32 values plus a float64 Gaussian lies on a lattice that depends on both, and the low bits of a release
can tell what was added (Mironov 2012). Here the sum is rounded to multiples of a step g first, and the noise is
g * round(2**BITS Z) with Z ~ N(0, 1): sum and noise are integers, and are added as integers.

**Why the accounting stays as it is.** For an integer n, n + round(2**BITS Z) = round(n + 2**BITS Z): the release is
a rounding of the real-valued Gaussian mechanism of the proof, and rounding is post-processing. Rounding the sum moves
every coordinate by half a step at most, so a unit's influence grows from C to at most C + 2 g sqrt(d) over d
coordinates (g sqrt(d), and as much again for the division by g in float64); g is chosen so that the noise has sigma
times that.

**Z is exact.** It comes from Karney's algorithm N (2016, ACM TOMS 42, arXiv 1303.6257), which compares uniform words
and computes no logarithm or cosine. Words have 63 bits. Where two that are compared are equal, their further bits would
decide, which are fair coins: only a second tie with the same word would err, which changes the distribution of a value
by less than 2**-110 in total variation.

What it does not close: the float32 additions inside the clipped sum itself (docs/privacy.md).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dpldm.privacy.entropy import Entropy, random_words

BITS = 30
"""Steps of the grid in a standard deviation of the noise: 2**BITS."""
HALF = 2**62
"""The word that stands for 1/2; words are uniform in [0, 2**63)."""

LARGEST = 2.0**60
"""Steps that a sum may have, far beyond what clipped gradients reach; with the noise it still fits an int64."""


def grid_step(noise_multiplier: float, clip_norm: float, coordinates: int) -> float:
    """g with g * 2**BITS = noise_multiplier * (clip_norm + 2 g sqrt(coordinates)).

    Positive for noise multipliers up to 1,000 (which a plan with grid noise is held to) and 1e11 coordinates.
    """
    return noise_multiplier * clip_norm / ((1 << BITS) - 2 * noise_multiplier * math.sqrt(coordinates))


def add_gaussian_on_grid(
    total: Tensor, noise_multiplier: float, clip_norm: float, coordinates: int, entropy: Entropy
) -> Tensor:
    """`total` rounded to the grid, plus integer noise; float32 at the end, which is post-processing.

    Args:
        coordinates: number of entries of all tensors that are released together.
    """
    step = grid_step(noise_multiplier, clip_norm, coordinates)
    on_grid = torch.round(total.cpu().double() / step).clamp(-LARGEST, LARGEST).long()  # brings no two sums apart
    noised = on_grid + rounded_gaussian(total.numel(), entropy).view(total.shape)
    return (noised.double() * step).float().to(total.device)


def rounded_gaussian(count: int, entropy: Entropy, bits: int = BITS) -> Tensor:
    """`count` independent values of round(2**bits Z), Z ~ N(0, 1); int64 (count,). 1 <= bits <= 50."""
    result = torch.empty(count, dtype=torch.int64)
    open_ = torch.arange(count)
    while len(open_):
        whole, fraction, accepted = _proposals(len(open_), entropy)
        rounded = (whole << bits) + ((fraction >> (62 - bits)) + 1 >> 1)
        negative = random_words(len(open_), entropy) < 0
        result[open_[accepted]] = torch.where(negative, -rounded, rounded)[accepted]
        open_ = open_[~accepted]
    return result


def _proposals(count: int, entropy: Entropy) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm N, steps 1 to 4: |Z| = whole + fraction / 2**63 where accepted."""
    whole = _geometric(count, entropy)
    # Step 2: keep `whole` with probability exp(-k (k - 1) / 2), as so many events of probability exp(-1/2).
    accepted = _all_happen(whole * (whole - 1), lambda rows: _happens_with_exp_minus_half(len(rows), entropy))
    fraction = _words(count, entropy)

    def step_four(rows: Tensor) -> Tensor:
        """Events of probability exp(-x (2 k + x) / (2 k + 2)), of which k + 1 make exp(-x (2 k + x) / 2)."""
        k, x = whole[rows], fraction[rows]

        def survives(active: Tensor) -> Tensor:  # with probability (2 k + x) / (2 k + 2)
            die = _die(2 * k[active] + 2, entropy)
            return (die > 1) | ((die == 1) & _below(_words(len(active), entropy), x[active], entropy))

        return _even_descents(x, survives, entropy)

    accepted &= _all_happen((whole + 1) * accepted, step_four)
    return whole, fraction, accepted


def _geometric(count: int, entropy: Entropy) -> Tensor:
    """Step 1: k with probability exp(-k/2) (1 - exp(-1/2)), (count,)."""
    k = torch.zeros(count, dtype=torch.int64)
    active = torch.arange(count)
    while len(active):
        active = active[_happens_with_exp_minus_half(len(active), entropy)]
        k[active] += 1
    return k


def _happens_with_exp_minus_half(count: int, entropy: Entropy) -> Tensor:
    always = torch.ones(count, dtype=torch.bool)
    return _even_descents(torch.full((count,), HALF), lambda active: always[active], entropy)


def _even_descents(start: Tensor, survives: Callable[[Tensor], Tensor], entropy: Entropy) -> Tensor:
    """Whether the number of descents start > u1 > u2 > ... is even, each also having to survive with probability p.

    n descents or more happen with probability (p start)**n / n!, an even number with exp(-p start) (von Neumann 1951),
    for start in units of 2**63.
    """
    last, even = start.clone(), torch.ones(len(start), dtype=torch.bool)
    active = torch.arange(len(start))
    while len(active):
        words = _words(len(active), entropy)
        descends = _below(words, last[active], entropy) & survives(active)
        active = active[descends]
        last[active] = words[descends]
        even[active] = ~even[active]
    return even


def _all_happen(trials: Tensor, event: Callable[[Tensor], Tensor]) -> Tensor:
    """For every row, whether `trials` independent events all happen, (rows,) bool. `event` gets the row of each."""
    rows = torch.repeat_interleave(torch.arange(len(trials)), trials)
    failures = torch.zeros(len(trials), dtype=torch.int64)
    return failures.index_add(0, rows, (~event(rows)).long()) == 0


def _below(words: Tensor, others: Tensor, entropy: Entropy) -> Tensor:
    """Whether the numbers that begin with `words` are below those that begin with `others`."""
    below, tied = words < others, words == others
    below[tied] = random_words(int(tied.sum()), entropy) < 0
    return below


def _die(sides: Tensor, entropy: Entropy) -> Tensor:
    """Fair dice with so many sides each, 0 and up; words beyond the last full round are thrown again."""
    words = _words(len(sides), entropy)
    rounds = (2**63 - 1) // sides * sides
    while len(again := torch.nonzero(words >= rounds).flatten()):
        words[again] = _words(len(again), entropy)
    return words % sides


def _words(count: int, entropy: Entropy) -> Tensor:
    """Uniform 63-bit words, int64 (count,)."""
    return random_words(count, entropy) & (2**63 - 1)
