"""Epsilon and noise from dp-accounting's privacy loss distributions, cross-checked by Rényi DP.

The mechanism is the Poisson-subsampled Gaussian, composed, with or without a largest batch, and beside it Gaussian
releases on the whole data set. All results are upper bounds on epsilon (pessimistic discretisation). dp-accounting is
imported inside the functions, so that commands that do not account start fast.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

DISCRETISATION = 1e-4
"""Grid of the privacy loss: at 1e-3 a true 1.0 may show as 1.2 for small losses, at 1e-4 as 1.0002."""

SMALLEST_NOISE = 0.05
"""Below it the noise hides nothing and the grid would have millions of points; epsilon counts as infinite, whatever the
library would make of numbers that overflow."""
LARGEST_NOISE = 1e6
"""A target that needs more than this is not reached by any noise."""


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
    """Poisson batches cut to a largest size by a random choice, which must hardly ever happen.

    Where nothing is cut, an attempt is one on a Poisson sample. A cut may also push out another unit, and happens with
    probability at most t, the same for both neighbours: whether there is one depends on the units that they share. So
    all that cuts can cost in T attempts is T t of delta. (Accounting for the cut mechanism itself, arXiv 2508.15089,
    gains amplification from the exact number of units, which is private: more units are not always worse.)
    """

    most_units: int  # public upper bound of the units of either neighbour: more units are cut more often
    largest_batch: int

    def delta(self, sampling_probability: float, steps: int) -> float:
        """Upper bound of the probability that any of `steps` batches is cut."""
        from scipy.stats import binom

        return steps * float(binom.sf(self.largest_batch - 1, self.most_units, sampling_probability))

    def smallest_batch(self, sampling_probability: float, steps: int, delta: float) -> int:
        """The smallest largest batch for which `delta` is not exceeded."""
        from scipy.stats import binom

        return int(binom.isf(delta / steps, self.most_units, sampling_probability)) + 1


@dataclass(frozen=True)
class WholeRelease:
    """Gaussian noise on a sum over the whole data set, `times` times: a query beside the attempts."""

    noise_multiplier: float  # standard deviation over what adding or removing one unit changes at most
    times: int
    replace_one: float  # what replacing one unit changes at most, in units of what adding or removing one does


def _event(noise_multiplier: float, sampling_probability: float, steps: int) -> Any:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    return SelfComposedDpEvent(PoissonSampledDpEvent(sampling_probability, GaussianDpEvent(noise_multiplier)), steps)


def _whole_event(release: WholeRelease, adjacency: Adjacency) -> Any:
    """`release` as an event of dp-accounting's PLD accountant.

    For replacing, that accountant lets a Gaussian's mean go from -1 to +1, the most that is possible. A sum that a
    replaced unit moves by r instead of 2 is one with 2 / r times the noise. (Its Rényi accountant lets the mean of a
    Gaussian go from 0 to 1 under either relation, so this event is not for it.)
    """
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent

    relative = 2 / release.replace_one if adjacency is Adjacency.REPLACE_ONE else 1.0
    return SelfComposedDpEvent(GaussianDpEvent(release.noise_multiplier * relative), release.times)


@lru_cache(maxsize=256)
def epsilon(
    noise_multiplier: float,
    sampling_probability: float,
    steps: int,
    delta: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    discretisation: float = DISCRETISATION,
    cap: Cap | None = None,
    beside: tuple[WholeRelease, ...] = (),
) -> float:
    """Upper bound of epsilon after `steps` attempts, by PLD accounting; 0 for none, infinite below `SMALLEST_NOISE`.

    Args:
        cap: batches are cut, which is paid for in delta.
        beside: releases on the whole data set that are composed with the attempts.
    """
    left = delta if cap is None else delta - cap.delta(sampling_probability, steps)
    if steps == 0 and not beside:
        return 0.0
    if left <= 0 or (steps > 0 and noise_multiplier < SMALLEST_NOISE):
        return float("inf")
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(_relation(adjacency), discretisation)
    if steps > 0:
        accountant.compose(_event(noise_multiplier, sampling_probability, steps))
    for release in beside:
        accountant.compose(_whole_event(release, adjacency))
    return float(accountant.get_epsilon(left))


@lru_cache(maxsize=256)
def epsilon_of_group(
    noise_multiplier: float,
    sampling_probability: float,
    steps: int,
    delta: float,
    size: int,
    discretisation: float = 10 * DISCRETISATION,
    beside: tuple[WholeRelease, ...] = (),
) -> float:
    """Upper bound of epsilon for adding or removing `size` units at once: what one image as the unit leaves a person.

    Binomially many of the units are in a batch, and at worst their clipped gradients all point the same way: a mixture
    of Gaussians at 0, 1, ..., size, which dominates (Ganesh 2024, arXiv 2401.10294). A release beside the attempts
    moves by `size` at most.
    """
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, from_mixture_gaussian_mechanism
    from scipy.stats import binom

    losses = []
    if steps > 0:
        together = list(range(size + 1))
        chances = [float(chance) for chance in binom.pmf(together, size, sampling_probability)]
        attempt = from_mixture_gaussian_mechanism(
            noise_multiplier, together, chances, value_discretization_interval=discretisation
        )
        losses.append(attempt.self_compose(steps))
    for release in beside:
        one = from_gaussian_mechanism(
            release.noise_multiplier, sensitivity=size, value_discretization_interval=discretisation
        )
        losses.append(one.self_compose(release.times))
    loss = reduce(lambda first, second: first.compose(second), losses)
    return float(loss.get_epsilon_for_delta(delta))


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


def epsilon_rdp(
    noise_multiplier: float,
    sampling_probability: float,
    steps: int,
    delta: float,
    beside: tuple[WholeRelease, ...] = (),
) -> float:
    """The looser bound by Rényi DP (add or remove one): an independent check of `epsilon`."""
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=_relation(Adjacency.ADD_OR_REMOVE_ONE))
    if steps > 0:
        accountant.compose(_event(noise_multiplier, sampling_probability, steps))
    for release in beside:
        accountant.compose(_whole_event(release, Adjacency.ADD_OR_REMOVE_ONE))
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=256)
def epsilon_of_selection(
    noise_multiplier: float,
    sampling_probability: float,
    steps: int,
    delta: float,
    mean_trials: float,
    beside: tuple[WholeRelease, ...] = (),
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> float:
    """Upper bound of epsilon of the best of a geometric number of trials, by Rényi DP.

    Each trial is `steps` attempts and what is released beside them. Papernot and Steinke 2022 (arXiv 2110.03620),
    theorem 2 with eta = 1. There is no such bound in dp-accounting for PLD, nor for replacing one, which is therefore
    taken for removing one and adding another: (e, d)-DP for the one is (2 e, (1 + exp(e)) d)-DP for the other.
    """
    accountant = _accountant_of_selection(noise_multiplier, sampling_probability, steps, mean_trials, beside)
    if adjacency is Adjacency.ADD_OR_REMOVE_ONE:
        return float(accountant.get_epsilon(delta))
    low, high = 0.0, 1.0
    while accountant.get_epsilon(delta / (1 + math.exp(high))) > high:
        low, high = high, high * 2
        if high > 600:  # its exponential is no number any more
            return float("inf")
    while high - low > 1e-4:
        middle = (low + high) / 2
        enough = accountant.get_epsilon(delta / (1 + math.exp(middle))) <= middle
        low, high = (low, middle) if enough else (middle, high)
    return 2 * high


def deltas_of_selection(
    epsilons: NDArray[np.float64],
    noise_multiplier: float,
    sampling_probability: float,
    steps: int,
    mean_trials: float,
    beside: tuple[WholeRelease, ...] = (),
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> NDArray[np.float64]:
    """Upper bounds of delta, (n,), of the mechanism of `epsilon_of_selection` at increasing `epsilons`, (n,).

    The Rényi DP of every order is converted at every epsilon (Canonne, Kamath and Steinke 2020, arXiv 2004.00010,
    proposition 12), so all pairs hold at once; what holds at a smaller epsilon holds at a larger one.
    """
    accountant = _accountant_of_selection(noise_multiplier, sampling_probability, steps, mean_trials, beside)
    if adjacency is Adjacency.ADD_OR_REMOVE_ONE:
        deltas = np.array([accountant.get_delta(epsilon) for epsilon in epsilons])
    else:  # (e, d) twice is (2 e, (1 + exp(e)) d)
        deltas = np.array([(1 + math.exp(epsilon / 2)) * accountant.get_delta(epsilon / 2) for epsilon in epsilons])
    return np.minimum.accumulate(np.minimum(1.0, deltas))


def _accountant_of_selection(
    noise_multiplier: float,
    sampling_probability: float,
    steps: int,
    mean_trials: float,
    beside: tuple[WholeRelease, ...],
) -> Any:
    """A Rényi accountant (add or remove one) that holds one selection."""
    from dp_accounting import ComposedDpEvent, NonPrivateDpEvent
    from dp_accounting.dp_event import RepeatAndSelectDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=_relation(Adjacency.ADD_OR_REMOVE_ONE))
    if noise_multiplier < SMALLEST_NOISE:
        accountant.compose(NonPrivateDpEvent())
        return accountant
    attempts = _event(noise_multiplier, sampling_probability, steps)
    trial = ComposedDpEvent([attempts, *(_whole_event(release, Adjacency.ADD_OR_REMOVE_ONE) for release in beside)])
    with _dropped_orders_unsaid():
        accountant.compose(RepeatAndSelectDpEvent(trial, mean_trials, 1.0))
    return accountant


@contextmanager
def _dropped_orders_unsaid() -> Iterator[None]:
    """dp-accounting warns of every order of Rényi DP that it leaves out; with fewer orders the bound is still one."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def delta_curve(
    noise_multiplier: float, sampling_probability: float, steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(epsilons, upper bounds of delta), (n,) each, of the uncut mechanism (add or remove one)."""
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(_relation(Adjacency.ADD_OR_REMOVE_ONE), 10 * DISCRETISATION)
    accountant.compose(_event(noise_multiplier, sampling_probability, steps))
    epsilons = np.linspace(0.0, 30.0, 301)
    return epsilons, np.asarray(accountant.get_delta(epsilons))


def calibrate_noise(
    target_epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    cap: Cap | None = None,
    beside: tuple[WholeRelease, ...] = (),
) -> float:
    """A noise multiplier whose `epsilon` after `steps` attempts is at most the target, and hardly below it.

    What is released beside the attempts is part of that epsilon.

    The search runs on a grid ten times coarser, which is fast, still pessimistic, and costs at most half a percent
    of noise; the answer is then checked on the grid that epsilon is stated on.

    Raises:
        ValueError: the releases beside the attempts leave nothing of the target, or the accountant's grid is too
            coarse.
    """

    def reached(noise_multiplier: float, discretisation: float = DISCRETISATION) -> float:
        settings = (sampling_probability, steps, delta, Adjacency.ADD_OR_REMOVE_ONE, discretisation, cap, beside)
        return epsilon(noise_multiplier, *settings)

    coarse = 10 * DISCRETISATION
    low, high = 0.0, 1.0
    while reached(high, coarse) > target_epsilon:
        low, high = high, high * 2
        if high > LARGEST_NOISE:
            alone = epsilon(0.0, sampling_probability, 0, delta, beside=beside)
            raise ValueError(
                f"No noise keeps this plan within epsilon {target_epsilon:g}, of which its queries alone cost "
                f"{alone:.3f}: give queries more noise, or choose a larger epsilon or delta."
            )
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
