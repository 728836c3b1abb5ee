"""Questions: what a plan asks of the data beside the gradients, as constants declared before the first draw.

Every question is one Gaussian release of a sum over all units, each contributing a vector of norm at most 1. So adding
or removing a unit moves the sum by at most 1, `noise_multiplier` is the standard deviation of the noise, and replacing
a unit moves the sum by at most `replace_one`. The vectors and the noise are in privacy/queries.py; here are numbers
alone, so that `verify` can account for them without torch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from dpldm.privacy.accounting import WholeRelease

LEAST_NOISE, MOST_NOISE = 0.3, 1e6
"""Below the first a question alone costs an epsilon above 10; beyond the second its cost drowns in rounding."""
MOST_RESERVE = 100
MOST_PARTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Question(ABC):
    """One Gaussian release on the whole data set, asked until it is answered once."""

    kind: ClassVar[str]  # its name in the ledger and in privacy.json; a plan holds each kind at most once
    noise_multiplier: float  # standard deviation over what adding or removing one unit changes at most
    reserve: int = 2  # further attempts that crashes may waste; paid for from the start, like those of the gradients

    def __post_init__(self) -> None:
        """Refuse constants that mean nothing, wherever they come from.

        Raises:
            ValueError: a constant is out of range; the message names it.
        """
        if type(self.noise_multiplier) not in (int, float) or not LEAST_NOISE <= self.noise_multiplier <= MOST_NOISE:
            raise ValueError(
                f"The noise multiplier of {self.kind} must be a number from {LEAST_NOISE:g} to {MOST_NOISE:g}."
            )
        if type(self.reserve) is not int or not 0 <= self.reserve <= MOST_RESERVE:
            raise ValueError(f"The reserve of {self.kind} must be a whole number from 0 to {MOST_RESERVE}.")

    @property
    def attempts(self) -> int:
        """How often it may be asked, and what is paid for."""
        return 1 + self.reserve

    @property
    @abstractmethod
    def replace_one(self) -> float:
        """What replacing one unit changes at most, in units of what adding or removing one does."""

    def release(self) -> WholeRelease:
        """What the accountant must know."""
        return WholeRelease(float(self.noise_multiplier), self.attempts, self.replace_one)

    def constants(self) -> dict[str, Any]:
        """The question as JSON values."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Histogram(Question):
    """How many units there are of each of several kinds. A unit's m images count 1/m each, each where it belongs."""

    @property
    def replace_one(self) -> float:
        """sqrt 2: two vectors without a negative entry, of norm at most 1, are at most so far apart."""
        return math.sqrt(2)


@dataclass(frozen=True, kw_only=True)
class ClassHistogram(Histogram):
    """Of each declared class."""

    kind = "class_histogram"


@dataclass(frozen=True, kw_only=True)
class PublicClassHistogram(Histogram):
    """Of each declared class within each class of the public backbone, which an image resembles most."""

    kind = "public_class_histogram"
    public_classes: int  # the backbone's

    def __post_init__(self) -> None:
        """See `Question`."""
        super().__post_init__()
        if type(self.public_classes) is not int or not 1 <= self.public_classes <= 1_000_000:
            raise ValueError(f"The public classes of {self.kind} must be a whole number from 1 to 1,000,000.")


@dataclass(frozen=True, kw_only=True)
class ClassMeans(Question):
    """Sum of the latents of each declared class, each clipped to norm R, and next to it how many there were; or the
    same of several parts of each class. Which part an image belongs to is a function of the image alone.

    In class k, or a part of it, a unit contributes (sum of w z / R, a sum of w) / sqrt(1 + a^2) over its images z
    there, with weights w = 1/m: the weight of the count, a, says how the budget is shared between the two.
    """

    kind = "class_means"
    clip_norm: float  # R, in units of the latent
    count_weight: float = 0.25
    """a. The error of a mean of d entries is least at a = d^(-1/4), and flat around it: 0.25 is right for d = 256."""
    parts: int = 1  # of each class

    def __post_init__(self) -> None:
        """See `Question`."""
        super().__post_init__()
        if type(self.parts) is not int or not 1 <= self.parts <= MOST_PARTS:
            raise ValueError(f"The parts of {self.kind} must be a whole number from 1 to {MOST_PARTS}.")
        _require_norm(self.clip_norm, f"The clip norm of {self.kind}")
        _require_norm(self.count_weight, f"The count weight of {self.kind}")

    @property
    def replace_one(self) -> float:
        """2 / sqrt(1 + a^2), for opposite latents of one class, where the count stays; sqrt 2 if that is more."""
        return max(math.sqrt(2), 2 / math.hypot(1, self.count_weight))


@dataclass(frozen=True, kw_only=True)
class ClassSpreads(Question):
    """Second moments of the latents of each declared class around noised means m, each difference clipped to norm R.

    In class k a unit contributes the sum of w r r^T / R^2 over its images of that class, with weights w = 1/m and
    r = z - m, where m is the mean of the class or of the image's part of it: the entries on and above the diagonal,
    those above it times sqrt 2, a vector with the matrix's norm.
    """

    kind = "class_spreads"
    clip_norm: float  # R, in units of the latent

    def __post_init__(self) -> None:
        """See `Question`."""
        super().__post_init__()
        _require_norm(self.clip_norm, f"The clip norm of {self.kind}")

    @property
    def replace_one(self) -> float:
        """sqrt 2: two positive semidefinite matrices have no negative inner product, and a norm of at most 1."""
        return math.sqrt(2)


@dataclass(frozen=True, kw_only=True)
class CandidateScores(Question):
    """Scores of k candidates that were fixed in advance, each between 0 and 1 for every image, added up over units.

    A unit contributes (the means of its images' scores) / sqrt(k). Which candidate has the largest noised score is
    post-processing.
    """

    kind = "candidate_scores"
    candidates: int  # k

    def __post_init__(self) -> None:
        """See `Question`."""
        super().__post_init__()
        if type(self.candidates) is not int or not 1 <= self.candidates <= 1000:
            raise ValueError(f"The candidates of {self.kind} must be a whole number from 1 to 1000.")

    @property
    def replace_one(self) -> float:
        """1: no score can change by more than from 0 to 1, which is what adding a unit can do already."""
        return 1.0


KINDS: dict[str, type[Question]] = {
    question.kind: question
    for question in (ClassHistogram, PublicClassHistogram, ClassMeans, ClassSpreads, CandidateScores)
}


def _require_norm(number: object, name: str) -> None:
    if type(number) not in (int, float) or not 1e-6 <= number <= 1e6:  # type: ignore[operator]
        raise ValueError(f"{name} must lie between 1e-6 and 1e6.")


def question_of(constants: Mapping[str, Any]) -> Question:
    """The question that `Question.constants` describes.

    Raises:
        ValueError: there is no such question, or a constant is out of range.
        TypeError: a constant is missing, or is none of its own.
    """
    kind = constants["kind"]
    if kind not in KINDS:
        raise ValueError("The plan has a question of an unknown kind.")
    return KINDS[kind](**{key: value for key, value in constants.items() if key != "kind"})
