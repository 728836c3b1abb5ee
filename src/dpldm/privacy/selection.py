"""Selection: one trial after the other, a random number of them, of which the best is kept and the rest deleted unseen.

Papernot and Steinke 2022 (arXiv 2110.03620), theorem 2: if every trial is a fresh run of one mechanism, the number of
trials K is geometric and independent of the data, the best is chosen by what the trials themselves release (a noised
score among it), and neither the other trials nor K are ever seen, then the whole costs little more than one trial,
however many candidates there are to choose from.

K must stay inside: a ledger line for each trial would tell it, and with it the theorem's protection would be gone. So a
selection is one plan with two lines, whatever K is: one before its first trial, one after its last. Numbers alone, so
that `verify` can account for them without torch; K is drawn by `sampling.draw_trials`.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from dpldm.privacy.accounting import Adjacency, epsilon_of_selection
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import CandidateScores

MOST_MEAN_TRIALS = 1000.0


@dataclass(frozen=True)
class SelectionPlan:
    """A geometric number of trials, their law fixed and public before the first; the ledger reserves it whole."""

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
        """2: the line that opens the selection, and the one that closes it."""
        return 2

    @property
    def score(self) -> CandidateScores:
        """What each trial asks at its end, of itself alone."""
        return next(question for question in self.trial.queries if isinstance(question, CandidateScores))

    @property
    def chance_of_a_candidate(self) -> float:
        """Probability that a given candidate is tried at all: 1 - E[(1 - 1/k)^K]."""
        return self.mean_trials / (self.mean_trials + self.candidates - 1)

    def stated_epsilon(self, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE) -> float:
        """Upper bound of epsilon of the selection, at its delta: what a release states."""
        trial = self.trial
        settings = (trial.noise_multiplier, trial.sampling_probability, trial.attempts, trial.delta)
        return epsilon_of_selection(*settings, self.mean_trials, trial.beside, adjacency)

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

    @classmethod
    def from_constants(cls, constants: Mapping[str, Any]) -> Self:
        """The selection that `constants` describes.

        Raises:
            ValueError: a constant is out of range, contradicts the trial's, or is none of a selection.
            TypeError, LookupError: a constant is missing.
        """
        trial = PrivacyPlan.from_constants(constants["trial"])
        made = cls(trial, constants["mean_trials"], constants["candidates"])
        if made.constants() != dict(constants):
            raise ValueError("The constants of the selection contradict those of its trials.")
        return made


Plan = PrivacyPlan | SelectionPlan
"""What a release rests on."""


def plan_of_constants(constants: Mapping[str, Any]) -> Plan:
    """The plan of either kind that `constants` describes.

    Raises:
        ValueError, TypeError, LookupError: see `from_constants` of both.
    """
    kind = SelectionPlan if constants.get("kind") == "selection" else PrivacyPlan
    return kind.from_constants(constants)


def trial_of(plan: Plan) -> PrivacyPlan:
    """The constants of one run of Algorithm 1 under either kind of plan."""
    return plan.trial if isinstance(plan, SelectionPlan) else plan


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
    while high - low > 0.001 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if with_noise(middle).stated_epsilon() > trial.epsilon else (low, middle)
    return with_noise(math.ceil(1000 * high) / 1000)
