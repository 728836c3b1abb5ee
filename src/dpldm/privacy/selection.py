"""Selection: one trial after the other, a random number of them, of which the best is kept and the rest deleted unseen.

Papernot and Steinke 2022 (arXiv 2110.03620), theorem 2: if every trial is a fresh run of one mechanism, the number of
trials K is geometric and independent of the data, the best is chosen by what the trials themselves release (a noised
score among it), and neither the other trials nor K are ever seen, then the whole costs little more than one trial,
however many candidates there are to choose from.

K must stay inside: a ledger line for each trial would tell it, and with it the theorem's protection would be gone. So a
selection is one plan with one line, written before its first trial.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from dpldm.privacy.accounting import epsilon_of_selection
from dpldm.privacy.entropy import Entropy, random_units, random_words
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import CandidateScores

MOST_MEAN_TRIALS = 1000.0


@dataclass(frozen=True)
class SelectionPlan:
    """A geometric number of trials, fixed and public before the first; the ledger reserves it whole.

    Its epsilon is for adding or removing one unit. None is stated for replacing one: the theorem's bound is by Rényi
    DP, for which sampled Gaussians have no replace-one bound in dp-accounting.
    """

    trial: PrivacyPlan  # constants of every trial, its score among the queries; its epsilon is that of the selection
    mean_trials: float  # of the geometric distribution
    candidates: int  # how many settings a trial's own is drawn from, each equally likely

    def __post_init__(self) -> None:
        """Refuse what the theorem does not cover.

        Raises:
            ValueError: a constant is out of range, or trials cut their batches.
        """
        if not 1 <= self.mean_trials <= MOST_MEAN_TRIALS:
            raise ValueError(f"The mean number of trials must lie between 1 and {MOST_MEAN_TRIALS:g}.")
        if type(self.candidates) is not int or self.candidates < 1:
            raise ValueError("A selection needs at least one candidate.")
        if not any(isinstance(question, CandidateScores) for question in self.trial.queries):
            raise ValueError("A trial needs a noised score among its queries (CandidateScores): what is best, else?")
        if self.trial.cap is not None:
            raise ValueError("Trials of a selection must not cut batches: leave privacy.max_batch_size out.")

    @property
    def dataset_id(self) -> str:
        """The ledger's owner."""
        return self.trial.dataset_id

    @property
    def epsilon(self) -> float:
        """Target for the whole selection."""
        return self.trial.epsilon

    @property
    def delta(self) -> float:
        """Of the whole selection."""
        return self.trial.delta

    @property
    def public_benchmark(self) -> bool:
        """See `PrivacyPlan`."""
        return self.trial.public_benchmark

    @property
    def attempts(self) -> int:
        """1: the line that opens the selection."""
        return 1

    def stated_epsilon(self) -> float:
        """Upper bound of epsilon of the selection, at its delta."""
        trial = self.trial
        settings = (trial.noise_multiplier, trial.sampling_probability, trial.attempts, trial.delta)
        return epsilon_of_selection(*settings, self.mean_trials, trial.beside)

    def digest(self) -> str:
        """Identity of the plan: any change of a constant changes it."""
        return hashlib.sha256(json.dumps(self.constants(), sort_keys=True).encode()).hexdigest()

    def constants(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "kind": "selection",
            "run": self.trial.run,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "mean_trials": self.mean_trials,
            "candidates": self.candidates,
            "trial": self.trial.constants(),
        }


def make_selection(trial: PrivacyPlan, mean_trials: float, candidates: int) -> SelectionPlan:
    """A selection whose trials have noise enough that the whole costs at most `trial.epsilon`.

    Args:
        trial: its noise multiplier is put aside.

    Raises:
        ValueError: see `SelectionPlan`; or no noise is enough.
    """

    def with_noise(noise_multiplier: float) -> SelectionPlan:
        return SelectionPlan(replace(trial, noise_multiplier=noise_multiplier), mean_trials, candidates)

    low, high = 0.0, 1.0
    while with_noise(high).stated_epsilon() > trial.epsilon:
        low, high = high, high * 2
        if high > 1e6:
            raise ValueError("No noise keeps this selection within its epsilon: fewer trials, or a larger epsilon.")
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (middle, high) if with_noise(middle).stated_epsilon() > trial.epsilon else (low, middle)
    return with_noise(high)


def draw_trials(plan: SelectionPlan, entropy: Entropy) -> list[int]:
    """The candidate of each trial, in order. PRIVATE, its length above all; drawn once, after the selection's charge.

    Coins with 64 fresh bits each, and the first success ends: its probability is floor(2**64 / mean) / 2**64, less than
    1 / mean by one part in 10**16 at most, which is finer than the accountant's own arithmetic.
    """
    threshold = int(2**64 / Fraction(plan.mean_trials)) - 2**63  # as in `sampling`: a word w is the unsigned w + 2**63
    trials = 1
    while int(random_words(1, entropy)) >= threshold:
        trials += 1
    return (random_units(trials, entropy) * plan.candidates).long().tolist()
