"""Go or no-go: what to expect of a plan, by what was measured of others and by nothing else.

A plan with no more records and no less noise than one that did not learn is not expected to; one with no fewer records
and no more noise than one that did, is. In between, and for other images and backbones, nobody knows: a rehearsal
shows.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Start(IntEnum):
    """What tuning starts from; each says more than the one before."""

    NOTHING = 0
    CLASS_MEANS = 1
    PORTRAITS = 2

    def __str__(self) -> str:
        return ("without class means", "from class means", "from portraits of the classes")[self]


@dataclass(frozen=True)
class Measured:
    """A run of results/, by what decides whether a run learns."""

    manifest: str  # below results/
    images: str
    records: int
    noise_to_signal: float  # see `planning.Forecast`
    start: Start
    classes: int
    accuracy: float  # of a CNN that learnt from the synthetic images alone, on real ones

    @property
    def learnt(self) -> bool:
        """See `is_learnt`."""
        return is_learnt(self.accuracy, self.classes)

    def __str__(self) -> str:
        return (
            f"{self.images}, {self.records:,} records, noise-to-signal {self.noise_to_signal:.2f}, {self.start}: "
            f"{self.accuracy:.1%} of {self.classes} classes"
        )


MEASURED = (
    Measured("fashion-eps10-100-updates.json", "Fashion-MNIST", 60_000, 0.22, Start.NOTHING, 10, 0.7453),
    Measured("fashion-eps1-100-updates.json", "Fashion-MNIST", 60_000, 1.33, Start.NOTHING, 10, 0.6763),
    Measured("quickstart-diffusion.json", "digits", 4_000, 1.04, Start.CLASS_MEANS, 10, 0.590),
    Measured("proxies/an-a-rehearsal.json", "animals", 60_000, 0.22, Start.NOTHING, 10, 0.6027),
    Measured("proxies/letters-T400-rehearsal.json", "letters", 60_000, 0.69, Start.CLASS_MEANS, 10, 0.6147),
    Measured("proxies/letters-warm-rehearsal.json", "letters", 60_000, 0.22, Start.CLASS_MEANS, 10, 0.5693),
    Measured("proxies/qs4-base-rehearsal.json", "letters", 4_000, 1.02, Start.NOTHING, 10, 0.2576),
    Measured("proxies/qs-c-rehearsal.json", "letters", 4_000, 0.29, Start.NOTHING, 10, 0.2359),
    Measured("proxies/qs-d-rehearsal.json", "letters", 4_000, 0.29, Start.NOTHING, 10, 0.2532),
    Measured("fashion-eps1.json", "Fashion-MNIST", 60_000, 1.34, Start.PORTRAITS, 10, 0.7528),
    Measured("proxies/an-port1-rehearsal.json", "animals", 60_000, 1.59, Start.PORTRAITS, 10, 0.6505),
    Measured("proxies/lt-parts-rehearsal.json", "letters", 60_000, 0.64, Start.PORTRAITS, 10, 0.6694),
    Measured("proxies/q-port-rehearsal.json", "letters", 4_000, 1.10, Start.PORTRAITS, 10, 0.2998),
)
"""With grey32 as it is, or with the denoiser before it, that was trained for less long. Noise-to-signal is rounded up
for those that learnt and down for the others, so that each is an example of itself."""


@dataclass(frozen=True)
class Portrayed:
    """A run with `method: portraits`, or the baseline, of results/."""

    manifest: str  # below results/
    images: str
    per_class: int  # records
    noise_multiplier: float  # of both answers
    parts: int  # of each class
    classes: int
    accuracy: float  # as in `Measured`

    def __str__(self) -> str:
        return (
            f"{self.images}, {self.per_class:,} records a class, parts {self.parts}, noise {self.noise_multiplier:g}: "
            f"{self.accuracy:.1%} of {self.classes} classes"
        )


PORTRAYED = (
    Portrayed("fashion-portraits-eps10.json", "Fashion-MNIST", 6_000, 0.708, 256, 10, 0.8288),
    Portrayed("proxies/an-portraits-eps1-rehearsal.json", "animals", 6_000, 9.141, 64, 10, 0.6855),
    Portrayed("digits-portraits-eps10.json", "digits", 400, 0.708, 1, 10, 0.791),
    Portrayed("digits-portraits-eps1.json", "digits", 400, 5.282, 1, 10, 0.659),
)
"""Those that learnt, with grey32, those of few records last."""
HARDER = Portrayed("proxies/q-portraits-1-eps10-rehearsal.json", "letters", 400, 0.708, 1, 10, 0.4164)
"""One that did not, with no more noise than some of the above: how hard images are decides as well."""
HARD_TO_LEARN = 3.3
"""Noise-to-signal beyond which no plan is expected to learn: more than twice the largest at which one did."""


class Verdict(StrEnum):
    """What to expect."""

    LEARNT = "learnt before"
    NO = "do not expect this to learn"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Outlook:
    """A verdict, what it rests on, and what could be done instead."""

    verdict: Verdict
    reason: str
    alternatives: tuple[str, ...] = ()


def is_learnt(accuracy: float, classes: int) -> bool:
    """Whether an accuracy is more than half way from guessing to being always right."""
    return accuracy > (1 + 1 / classes) / 2


def outlook(
    records: int, noise_to_signal: float, start: Start, classes: int, *, public_classes: bool = False
) -> Outlook:
    """What to expect of a plan.

    Args:
        records: declared units.
        noise_to_signal: `planning.Forecast.noise_to_signal`.
        start: what tuning starts from.
        classes: 0 without classes.
        public_classes: whether the network is told public classes too, with which nothing that failed was measured.
    """
    no_easier_learnt = [
        run
        for run in MEASURED
        if run.learnt and run.records <= records and run.noise_to_signal >= noise_to_signal and run.start <= start
    ]
    no_harder_failed = [
        run
        for run in MEASURED
        if not (run.learnt or public_classes)
        and run.records >= records
        and run.noise_to_signal <= noise_to_signal
        and run.start >= start
    ]
    instead = alternatives(start, classes)
    if noise_to_signal > HARD_TO_LEARN:
        most = max(run.noise_to_signal for run in MEASURED if run.learnt)
        reason = (
            f"noise-to-signal {noise_to_signal:.1f} is above {HARD_TO_LEARN:g}, and nothing learnt above {most:.1f}"
        )
        return Outlook(Verdict.NO, reason, instead)
    if no_easier_learnt:
        reason = f"with no fewer records and no more noise than {no_easier_learnt[0]}; other images may be harder"
        return Outlook(Verdict.LEARNT, reason)
    if no_harder_failed:
        reason = f"it has no more records and no less noise than {no_harder_failed[0]}"
        return Outlook(Verdict.NO, reason, instead)
    return Outlook(Verdict.UNKNOWN, "neither a plan like it nor a harder one that learnt; dpldm rehearse shows")


def outlook_of_portraits(records: int, noise_multiplier: float, parts: int, classes: int) -> Outlook:
    """What to expect where images are drawn from portraits alone.

    Args:
        records: declared units.
        noise_multiplier: of both answers.
        parts: of each class.
        classes: at least 1.
    """
    per_class = records / classes
    no_easier = [
        run
        for run in PORTRAYED
        if run.per_class <= per_class and run.noise_multiplier >= noise_multiplier and run.parts >= parts
    ]
    if no_easier:
        example = no_easier[0]
        harder = f", as were {HARDER}" if example.per_class <= HARDER.per_class else ""
        reason = f"with no fewer records a class and no more noise than {example}; other images may be harder{harder}"
        return Outlook(Verdict.LEARNT, reason)
    if per_class <= HARDER.per_class and noise_multiplier >= HARDER.noise_multiplier:  # and no fewer parts than 1
        reason = f"it has no more records a class and no less noise than {HARDER}"
        return Outlook(Verdict.NO, reason, alternatives(Start.PORTRAITS, classes, tunes=False))
    return Outlook(Verdict.UNKNOWN, "neither portraits like these nor harder ones that learnt; dpldm rehearse shows")


def of_rehearsal(accuracy: float, start: Start, classes: int, *, tunes: bool = True) -> Outlook:
    """What to expect of a plan that was rehearsed on public images.

    Args:
        accuracy: of a CNN that learnt from the rehearsal's synthetic images alone.
        tunes: whether anything is tuned.
    """
    reason = (
        f"a classifier that learnt from what the same plan made of public images recognises {accuracy:.1%} of them, "
        f"where guessing one of {classes} classes gives {1 / classes:.1%}"
    )
    if is_learnt(accuracy, classes):
        return Outlook(Verdict.LEARNT, reason)
    if not tunes:
        easier = next(run for run in PORTRAYED if run.per_class == HARDER.per_class)
        reason += (
            f"; images decide as well: {easier.accuracy:.1%} of {easier.images} where it was {HARDER.accuracy:.1%} of"
        )
        reason += f" {HARDER.images}"
    return Outlook(Verdict.NO, reason, alternatives(start, classes, tunes=tunes))


def alternatives(start: Start, classes: int, *, tunes: bool = True) -> tuple[str, ...]:
    """What could be done instead of a plan that is not expected to learn."""
    means = (
        "a start from noised class means: privacy.class_means_noise 5 and optimizer.warm_start_steps 300 "
        "(letters, 4,000 records: 29.7 % instead of 25.8 %)"
    )
    classifier = (
        "a private classifier instead of images: dpldm baseline classifier (DP-SGD on public features; paid for like a "
        "run)"
    )
    if not tunes:
        return ("more records, a larger epsilon, or fewer privacy.class_parts", *([classifier] if classes else []))
    portraits = (
        "all of epsilon for portraits of the classes: method: portraits (digits, 4,000 records, epsilon 10: 79.1 % "
        "instead of 59.0 %)"
    )
    return (
        *([portraits] if classes and start is not Start.PORTRAITS else []),
        *([means] if classes and start is Start.NOTHING else []),
        "more records, a larger epsilon, or a larger privacy.expected_batch_size",
        "fewer trained parameters, hence less noise: trainable: condition (dpldm plan --choices compares)",
        *([classifier] if classes else []),
    )
