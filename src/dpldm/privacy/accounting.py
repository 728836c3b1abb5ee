"""Epsilon and noise from dp-accounting's privacy loss distributions, cross-checked by Rényi DP.

The mechanism is the Poisson-subsampled Gaussian, composed, with or without a largest batch. All results are upper
bounds on epsilon (pessimistic
discretisation). dp-accounting is imported inside the functions, so that commands that do not account start fast.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

DISCRETISATION = 1e-4
"""Grid of the privacy loss: at 1e-3 a true 1.0 may show as 1.2 for small losses, at 1e-4 as 1.0002."""

SMALLEST_NOISE = 0.05
"""Below it the noise hides nothing and the grid would have millions of points."""


class Adjacency(StrEnum):
    """Which pairs of data sets must be hard to tell apart."""

    ADD_OR_REMOVE_ONE = "add_or_remove_one"
    REPLACE_ONE = "replace_one"


def _relation(adjacency: Adjacency) -> Any:
    from dp_accounting import NeighboringRelation

    return {
        Adjacency.ADD_OR_REMOVE_ONE: NeighboringRelation.ADD_OR_REMOVE_ONE,
        Adjacency.REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
    }[adjacency]


@dataclass(frozen=True)
class Cap:
    """Poisson batches cut to a largest size by a random choice (arXiv 2508.15089)."""

    most_units: int  # public upper bound of the units of either neighbour: more units would be cut more often
    largest_batch: int


def _event(noise_multiplier: float, sampling_probability: float, steps: int, cap: Cap | None = None) -> Any:
    from dp_accounting import (
        GaussianDpEvent,
        PoissonSampledDpEvent,
        SelfComposedDpEvent,
        TruncatedSubsampledGaussianDpEvent,
    )

    if cap is not None:
        sizes = (cap.most_units, sampling_probability, cap.largest_batch)
        return SelfComposedDpEvent(TruncatedSubsampledGaussianDpEvent(*sizes, noise_multiplier), steps)
    return SelfComposedDpEvent(PoissonSampledDpEvent(sampling_probability, GaussianDpEvent(noise_multiplier)), steps)


@lru_cache(maxsize=256)
def epsilon(
    noise_multiplier: float,
    sampling_probability: float,
    steps: int,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    discretisation: float = DISCRETISATION,
    cap: Cap | None = None,
) -> float:
    """Upper bound of epsilon after `steps` attempts, by PLD accounting; 0 for none, infinite without noise."""
    if steps == 0:
        return 0.0
    if noise_multiplier == 0:
        return float("inf")
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(_relation(adjacency), discretisation)
    accountant.compose(_event(noise_multiplier, sampling_probability, steps, cap))
    return float(accountant.get_epsilon(delta))


def epsilon_from_below(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> float:
    """Lower bound of the epsilon of the uncut mechanism (add or remove one): what an audit may say was shown.

    Args:
        noise_multiplier: infinite is no leakage at all; below `SMALLEST_NOISE` counts as that.
    """
    if noise_multiplier == float("inf"):
        return 0.0
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    sigma = max(noise_multiplier, SMALLEST_NOISE)
    coarser = 1 if sigma > 0.5 else 10 if sigma > 0.25 else 100  # the losses grow like 1 / sigma^2
    loss = from_gaussian_mechanism(
        sigma,
        sampling_prob=sampling_probability,
        pessimistic_estimate=False,
        value_discretization_interval=coarser * DISCRETISATION,
        use_connect_dots=False,
    )
    return max(0.0, float(loss.self_compose(steps).get_epsilon_for_delta(delta)))


def epsilon_rdp(noise_multiplier: float, sampling_probability: float, steps: int, delta: float) -> float:
    """The looser bound by Rényi DP (add or remove one): an independent check of `epsilon`."""
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=_relation(Adjacency.ADD_OR_REMOVE_ONE))
    accountant.compose(_event(noise_multiplier, sampling_probability, steps))
    return float(accountant.get_epsilon(delta))


def delta_curve(
    noise_multiplier: float, sampling_probability: float, steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(epsilons, upper bounds of delta), (n,) each, of the uncut mechanism (add or remove one)."""
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(_relation(Adjacency.ADD_OR_REMOVE_ONE), 10 * DISCRETISATION)
    accountant.compose(_event(noise_multiplier, sampling_probability, steps))
    epsilons = np.linspace(0.0, 30.0, 301)
    return epsilons, np.asarray(accountant.get_delta(epsilons))


def delta_at(noise_multiplier: float, sampling_probability: float, steps: int, target_epsilon: float) -> float:
    """Upper bound of delta at `target_epsilon` (add or remove one): the other way to read the same curve."""
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(_relation(Adjacency.ADD_OR_REMOVE_ONE), DISCRETISATION)
    accountant.compose(_event(noise_multiplier, sampling_probability, steps))
    return float(accountant.get_delta(target_epsilon))


def calibrate_noise(
    target_epsilon: float, delta: float, sampling_probability: float, steps: int, cap: Cap | None = None
) -> float:
    """A noise multiplier whose `epsilon` after `steps` attempts is at most the target, and hardly below it.

    The search runs on a grid ten times coarser, which is fast, still pessimistic, and costs at most half a percent
    of noise; the answer is then checked on the grid that epsilon is stated on.
    """

    def reached(noise_multiplier: float, discretisation: float = DISCRETISATION) -> float:
        settings = (sampling_probability, steps, delta, Adjacency.ADD_OR_REMOVE_ONE, discretisation, cap)
        return epsilon(noise_multiplier, *settings)

    coarse = 10 * DISCRETISATION
    low, high = 0.0, 1.0
    while reached(high, coarse) > target_epsilon:
        low, high = high, high * 2
    while high - low > 0.002 * high:
        middle = (low + high) / 2
        if middle < SMALLEST_NOISE or reached(middle, coarse) > target_epsilon:
            low = middle
        else:
            high = middle
    chosen = round(high + 0.0005, 3)
    while reached(chosen) > target_epsilon:
        chosen = round(chosen * 1.002 + 0.001, 3)
    if chosen > SMALLEST_NOISE and reached(chosen) < target_epsilon / 2:
        raise ValueError("These privacy constants cannot be accounted for: choose a larger delta or another epsilon.")
    return chosen
