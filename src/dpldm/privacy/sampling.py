"""Poisson sampling: every unit enters a batch independently with probability q. And the trials of a selection.

This is the sampling that the accountant assumes. Shuffled epochs and batches of fixed size have other, and far
weaker, guarantees (Chua et al. 2024, arXiv 2403.17673), so there is no way to ask for them.
"""

from fractions import Fraction

import torch
from torch import Tensor

from dpldm.privacy.entropy import Entropy, random_units, random_words
from dpldm.privacy.selection import SelectionPlan


def poisson_batch(units: int, sampling_probability: float, entropy: Entropy, largest: int | None = None) -> Tensor:
    """Indices of one Poisson draw, increasing, int64 (|batch|,); may be empty.

    Each unit is compared with a 64-bit word of its own, so its probability is floor(q * 2**64) / 2**64 <= q.

    Args:
        largest: a larger draw is cut to this size, all subsets being equally likely. Must be accounted as such
            (`accounting.Cap`): whether a unit is used then depends on the others.
    """
    batch = _bernoulli(units, sampling_probability, entropy)
    if largest is None or len(batch) <= largest:
        return batch
    kept = random_words(len(batch), entropy).argsort()[:largest]  # the order of independent words is uniform
    return batch[kept].sort().values


def _bernoulli(units: int, sampling_probability: float, entropy: Entropy) -> Tensor:
    words = random_words(units, entropy)
    # A word w counts as the unsigned number w + 2**63; it is below the threshold with the wanted probability.
    threshold = int(Fraction(sampling_probability) * 2**64) - 2**63
    if threshold >= 2**63:  # q = 1: everyone
        return torch.arange(units)
    return torch.nonzero(words < threshold).flatten()


def draw_trials(plan: SelectionPlan, entropy: Entropy) -> list[int]:
    """The candidate of each trial, in order. PRIVATE, its length above all; drawn once, before the selection's charge.

    Coins with 64 fresh bits each, and the first success ends: its probability is floor(2**64 / mean) / 2**64, less than
    1 / mean by one part in 10**16 at most, which is finer than the accountant's own arithmetic.
    """
    threshold = int(2**64 / Fraction(plan.mean_trials)) - 2**63  # a word w is the unsigned w + 2**63
    trials = 1
    while int(random_words(1, entropy)) >= threshold:
        trials += 1
    return (random_units(trials, entropy) * plan.candidates).long().tolist()
