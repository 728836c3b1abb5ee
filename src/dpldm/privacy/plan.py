"""The privacy plan: every constant of the mechanism, fixed and public before the first draw.

The object that trains is the object that is accounted: q, sigma, C, L, K and the number of attempts are read from
here by the sampler, the clipper, the noise, the ledger and the accountant, and from nowhere else. So are the questions
that are asked beside the gradients. Nothing in it comes from the private data; `records` is declared by the user.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from dpldm.privacy.accounting import Adjacency, Cap, WholeRelease, calibrate_noise, epsilon, epsilon_of_group
from dpldm.privacy.questions import LEAST_NOISE, Question, question_of

SMALLEST_DELTA = 1e-10
"""Below it the accountant's own rounding is no longer negligible (seen at 1e-12)."""
LARGEST_EPSILON = 100.0
MOST_ATTEMPTS = 1_000_000
LARGEST_CLIP_NORM = 1e12
LARGEST_GRID_NOISE = 1e3
SHARE_OF_CUTS = 0.1
"""Of delta, what cut batches may cost at most."""
UNITS = ("image", "group")


@dataclass(frozen=True)
class PrivacyPlan:
    """Poisson-subsampled Gaussian mechanism, `attempts` times, on units of `dataset_id`, and questions beside it.

    A plan of `steps` 0 has no gradients: its questions are all there is.
    """

    dataset_id: str  # the ledger's owner; stays the same when the folder changes
    run: str  # another run with the same constants is another plan, and is paid for again
    epsilon: float  # target, add or remove one unit, for all attempts
    delta: float
    records: int  # declared public size: number of units, rounded down by the user
    expected_batch_size: int  # L, the constant every clipped sum is divided by
    steps: int  # T, updates wanted; 0: no gradients, questions alone
    reserve_steps: int  # R, attempts that may be lost to crashes
    max_grad_norm: float  # C
    draws_per_example: int  # K noise and timestep draws, averaged inside an example
    noise_multiplier: float  # sigma; noise has standard deviation sigma * C
    max_batch_size: int | None = None  # a larger Poisson draw is cut to it; None: never cut
    most_records: int | None = None  # public upper bound of the units, which a cut batch needs
    clipping: str = "flat"  # how a gradient is brought to norm C at most: see privacy/clipping.py
    noise: str = "float"  # or "grid": sums and noise are integers, see privacy/grid.py
    unit: str = "image"  # or "group": all images of a person or patient; records, L and delta then count groups
    images_per_unit: int = 1  # m: a group keeps at most so many images, and has one gradient, their mean
    public_benchmark: bool = False  # a published data set: not protected by a cap, and reports say so
    queries: tuple[Question, ...] = ()  # what is asked before the first attempt; epsilon and noise include it

    def __post_init__(self) -> None:
        """Refuse constants that mean nothing, wherever they come from: a config, or somebody's privacy.json.

        Raises:
            ValueError: a constant is out of range; the message names it and what to change.
        """
        self._check_numbers()
        self._check_budget()
        self._check_cut_batches()
        self._check_rules()

    def _check_numbers(self) -> None:
        counts = (self.records, self.expected_batch_size, self.steps, self.draws_per_example, self.images_per_unit)
        bounds = [bound for bound in (self.max_batch_size, self.most_records) if bound is not None]
        if any(type(number) is not int for number in (*counts, self.reserve_steps, *bounds)):
            raise ValueError("privacy.records, expected_batch_size, steps, reserve_steps and draws are whole numbers.")
        if self.records < 10:
            raise ValueError("privacy.records must be at least 10.")
        if not 1 <= self.expected_batch_size <= self.records:
            raise ValueError("privacy.expected_batch_size must lie between 1 and privacy.records.")
        if self.draws_per_example < 1 or self.steps < (0 if self.queries else 1):
            raise ValueError("privacy.steps and draws_per_example must be positive.")
        if self.reserve_steps < 0 or (self.steps == 0 and self.reserve_steps > 0):
            raise ValueError("privacy.reserve_steps must not be negative, and is 0 where there are no gradients.")
        if self.attempts > MOST_ATTEMPTS:
            raise ValueError(f"privacy.steps and reserve_steps must not exceed {MOST_ATTEMPTS:,} together.")
        if not 1 / LARGEST_CLIP_NORM <= self.max_grad_norm <= LARGEST_CLIP_NORM:
            raise ValueError(
                f"privacy.max_grad_norm must lie between {1 / LARGEST_CLIP_NORM:g} and {LARGEST_CLIP_NORM:g}: float32 "
                "cannot hold the squares of much smaller or larger norms."
            )

    def _check_budget(self) -> None:
        if not 0 < self.epsilon <= LARGEST_EPSILON:
            raise ValueError(
                f"privacy.epsilon must be a positive number, at most {LARGEST_EPSILON:g} (1 is strong, 10 is weak)."
            )
        if not SMALLEST_DELTA <= self.delta < 1 / self.records:
            raise ValueError(
                f"privacy.delta must be below 1/records = {1 / self.records:.2e} (and at least {SMALLEST_DELTA:g}): "
                "a larger delta would allow publishing a record outright."
            )

    def _check_cut_batches(self) -> None:
        if (self.max_batch_size is None) != (self.most_records is None):
            raise ValueError(
                "privacy.max_batch_size and privacy.most_records belong together: how often a batch is cut depends on "
                "how many records there can be at most."
            )
        if self.cap is None:
            return
        if self.cap.largest_batch < self.expected_batch_size:
            raise ValueError("privacy.max_batch_size must not be below privacy.expected_batch_size.")
        if self.cap.most_units < self.records:
            raise ValueError("privacy.most_records must not be below privacy.records.")
        settings, room = (self.sampling_probability, self.attempts), SHARE_OF_CUTS * self.delta
        if self.cap.delta(*settings) > room:
            raise ValueError(
                f"privacy.max_batch_size {self.cap.largest_batch} would cut batches too often for this delta: set it "
                f"to at least {self.cap.smallest_batch(*settings, room)}, or lower privacy.most_records."
            )

    def _check_rules(self) -> None:
        if self.unit not in UNITS or self.images_per_unit < 1 or (self.unit == "image" and self.images_per_unit > 1):
            raise ValueError(
                "privacy.unit must be image, or group with privacy.max_images_per_group, the images that a group keeps."
            )
        if self.clipping not in ("flat", "automatic"):
            raise ValueError("privacy.clipping must be flat or automatic.")
        if not 0 <= self.noise_multiplier < float("inf"):
            raise ValueError("The noise multiplier must be a number, not negative.")
        kinds = {question.kind for question in self.queries}
        if len(kinds) < len(self.queries):
            raise ValueError("A plan asks each kind of question once.")
        if "class_spreads" in kinds and "class_means" not in kinds:
            raise ValueError("A plan that asks for class spreads asks for the class means that they are about.")
        if "candidate_scores" in kinds and not self.tunes:
            raise ValueError("A plan without gradients has no candidates to score.")
        noises = (self.noise_multiplier, *(question.noise_multiplier for question in self.queries))
        if self.noise not in ("float", "grid") or (self.noise == "grid" and max(noises) > LARGEST_GRID_NOISE):
            raise ValueError(
                f"privacy.noise must be float, or grid, which holds noise multipliers up to {LARGEST_GRID_NOISE:g}."
            )

    @property
    def sampling_probability(self) -> float:
        """q = L / records."""
        return self.expected_batch_size / self.records

    @property
    def attempts(self) -> int:
        """T + R: what the noise is calibrated for, and the most that will ever be drawn."""
        return self.steps + self.reserve_steps

    @property
    def tunes(self) -> bool:
        """Whether there are gradients."""
        return self.steps > 0

    @property
    def cap(self) -> Cap | None:
        """What the accountant must know if batches are cut."""
        if self.max_batch_size is None or self.most_records is None:
            return None
        return Cap(self.most_records, self.max_batch_size)

    @property
    def beside(self) -> tuple[WholeRelease, ...]:
        """What the accountant must know of the questions."""
        return tuple(question.release() for question in self.queries)

    def epsilon_after(self, attempts: int, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE) -> float:
        """Upper bound of epsilon after all questions and that many attempts, at the plan's delta."""
        settings = (self.noise_multiplier, self.sampling_probability, attempts, self.delta, adjacency)
        return epsilon(*settings, cap=self.cap, beside=self.beside)

    def stated_epsilon(self, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE) -> float:
        """Upper bound of epsilon of all that the plan pays for, at its delta: what a release states."""
        return self.epsilon_after(self.attempts, adjacency)

    def epsilon_of_several(self, units: int) -> float | None:
        """Upper bound of epsilon for adding or removing so many units at once; None if batches may be cut."""
        if self.cap is not None:  # what a cut costs was worked out for one unit
            return None
        grid = 5e-3 * units  # coarse, and still an upper bound: losses grow with the number of units
        settings = (self.noise_multiplier, self.sampling_probability, self.attempts, self.delta)
        return epsilon_of_group(*settings, units, grid, self.beside)

    def epsilon_curve(self, points: int = 16) -> list[tuple[int, float]]:
        """(attempts, epsilon) at about equally spaced numbers of attempts, the last being T + R.

        Epsilons are upper bounds on a coarse grid, capped by the exact final value, which bounds them all.
        """
        final = self.stated_epsilon()
        if not self.tunes:
            return [(0, final)]
        grid = sorted({max(1, round(self.attempts * (k + 1) / points)) for k in range(points)})
        return [(n, self.epsilon_spent(n)) for n in grid]

    def epsilon_spent(self, attempts: int) -> float:
        """Upper bound of epsilon after all questions and that many attempts, in hundredths of a second."""
        settings = (self.noise_multiplier, self.sampling_probability, attempts, self.delta)
        coarse = epsilon(*settings, discretisation=1e-3, cap=self.cap, beside=self.beside)
        return min(coarse, self.stated_epsilon())

    def digest(self) -> str:
        """Identity of the plan: any change of a constant changes it."""
        return hashlib.sha256(json.dumps(self.constants(), sort_keys=True).encode()).hexdigest()

    def constants(self) -> dict[str, Any]:
        """The plan as JSON values. Without questions there is no word of them: such plans are older than questions."""
        asked = [question.constants() for question in self.queries]
        return {key: value for key, value in asdict(self).items() if key != "queries"} | (
            {"queries": asked} if asked else {}
        )

    @classmethod
    def from_constants(cls, constants: Mapping[str, Any]) -> Self:
        """The plan that `constants` describes.

        Raises:
            ValueError: a constant is out of range.
            TypeError, LookupError: a constant is missing, or is none of a plan.
        """
        asked = tuple(question_of(question) for question in constants.get("queries", ()))
        return cls(**{**constants, "queries": asked})


def default_reserve(steps: int) -> int:
    """R = max(5, 2 % of T): each is an attempt that a crash may waste."""
    return max(5, -(-steps // 50))


def asking_alone(plan: PrivacyPlan) -> PrivacyPlan:
    """The same promise kept by the plan's questions alone: no gradients, and the same noise on every question, such
    that all their attempts together cost at most its epsilon.

    Raises:
        ValueError: no noise is enough, or hardly any is needed.
    """
    # A Gaussian on everybody is one on Poisson samples of probability 1.
    attempts = sum(question.attempts for question in plan.queries)
    noise = calibrate_noise(plan.epsilon, plan.delta, 1.0, attempts)
    if noise < LEAST_NOISE:
        raise ValueError("At this privacy.epsilon hardly any noise is left, which no plan may state: lower it.")
    return replace(
        plan,
        expected_batch_size=plan.records,
        steps=0,
        reserve_steps=0,
        max_grad_norm=1.0,
        noise_multiplier=0.0,
        queries=tuple(replace(question, noise_multiplier=noise) for question in plan.queries),
    )


def calibrated(plan: PrivacyPlan) -> PrivacyPlan:
    """The same plan, its noise such that all T + R attempts and all queries together cost at most its epsilon.

    Raises:
        ValueError: no noise is enough; see `calibrate_noise`.
    """
    settings = (plan.sampling_probability, plan.attempts, plan.cap, plan.beside)
    return replace(plan, noise_multiplier=calibrate_noise(plan.epsilon, plan.delta, *settings))
