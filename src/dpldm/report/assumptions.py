"""What the guarantee rests on, each with whether it holds, does not hold, or was not checked."""

from dataclasses import dataclass
from enum import StrEnum

from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.selection import Plan, SelectionPlan, trial_of


class Status(StrEnum):
    """What is known of an assumption. Nobody may read the third as the first."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "not checked"


@dataclass(frozen=True)
class Assumption:
    """One sentence that must be true, what is known of it, and why or what to do."""

    text: str
    status: Status
    reason: str


def assumptions(plan: Plan, plans_on_this_data_set: int) -> list[Assumption]:
    """In the order of docs/privacy.md: what the code sees to first, what only the holder can know last."""
    trial, selected = trial_of(plan), isinstance(plan, SelectionPlan)
    return [
        *_of_the_code(trial, selected),
        *(_of_the_selection() if selected else []),
        *_of_the_holder(trial, plans_on_this_data_set),
        *([_secret_from_everybody()] if selected else []),
    ]


def _of_the_code(plan: PrivacyPlan, selected: bool) -> list[Assumption]:
    if not plan.tunes:
        return _of_questions(plan)
    answers = " and its part of the noised answers" if plan.queries else ""
    charged = (
        Assumption(
            "The whole selection was written to the ledger before its first trial touched a record.",
            Status.HOLDS,
            f"{_proved('S3')} All {plan.attempts} attempts of a trial are accounted for, also those that were not "
            "needed.",
        )
        if selected
        else Assumption(
            "Every attempt was written to the ledger before it touched a record.",
            Status.HOLDS,
            f"{_proved('6')} All {plan.attempts} attempts are accounted for, also those that were not needed.",
        )
    )
    return [
        Assumption(f"A record reaches the model only through its own gradient{answers}.", Status.HOLDS, _proved("1")),
        Assumption(
            f"What one {plan.unit} adds to a sum is cut to norm C, whatever it is, before noise is added.",
            Status.HOLDS,
            _proved("2"),
        ),
        Assumption(
            f"Each {plan.unit} enters a batch independently of all others, with probability "
            f"{plan.expected_batch_size}/{plan.records}.",
            Status.HOLDS,
            _proved("3"),
        ),
        Assumption(
            "Batches and noise come from the operating system's generator; no seed or state of it is stored.",
            Status.HOLDS,
            _proved("4"),
        ),
        charged,
        *_of_the_numbers(plan),
    ]


def _of_questions(plan: PrivacyPlan) -> list[Assumption]:
    """Of a plan whose questions are all there is."""
    attempts = sum(question.attempts for question in plan.queries)
    return [
        Assumption(
            "A record reaches the images only through its part of the noised answers.", Status.HOLDS, _proved("Q8")
        ),
        Assumption(
            f"What one {plan.unit} adds to an answer is cut to a fixed norm, whatever it is, before noise is added.",
            Status.HOLDS,
            _proved("Q1"),
        ),
        Assumption(
            "Noise comes from the operating system's generator; no seed or state of it is stored.",
            Status.HOLDS,
            _proved("4"),
        ),
        Assumption(
            "Every question was written to the ledger before it touched a record.",
            Status.HOLDS,
            f"{_proved('Q4')} All {attempts} attempts are accounted for, also those that were not needed.",
        ),
        *_of_the_numbers(plan),
    ]


def _of_the_numbers(plan: PrivacyPlan) -> list[Assumption]:
    exact = plan.noise == "grid"
    return [
        Assumption(
            "Delta is below 1/records.",
            Status.HOLDS,
            f"{plan.delta:g} is below 1/{plan.records}; recomputed by dpldm verify.",
        ),
        Assumption(
            "The noise is exactly the one that was accounted for.",
            Status.HOLDS if exact else Status.FAILS,
            "Sums and noise are whole multiples of a small step (privacy.noise: grid)."
            if exact
            else "It was computed in floating point, which is a theoretical weakness; privacy.noise: grid has none.",
        ),
    ]


def _proved(step: str) -> str:
    return f"By construction: step {step} of the proof in docs/privacy.md, with the tests behind it."


def _of_the_selection() -> list[Assumption]:
    return [
        Assumption(
            "The trial that was kept was chosen by its noised score alone, among independent runs of one mechanism.",
            Status.HOLDS,
            _proved("S1"),
        ),
        Assumption(
            "The number of trials is a random one that depends on no record; the trials that lost were deleted, and "
            "nothing that is left tells how many there were.",
            Status.HOLDS,
            _proved("S2"),
        ),
    ]


def _secret_from_everybody() -> Assumption:
    return Assumption(
        "Nobody outside learned how many trials there were, how long they took, or anything of those that lost.",
        Status.OPEN,
        "The number of trials must stay secret. Duration tells of it, and deleted files can come back from disks and "
        "backups.",
    )


def _of_the_holder(plan: PrivacyPlan, plans: int) -> list[Assumption]:
    several = "" if plans == 1 else f" Its ledger holds {plans} plans, whose epsilons add up."
    unit = (
        Assumption(
            "Nobody is shown in more than one image.",
            Status.OPEN,
            "Whoever is, is protected less than epsilon says; privacy.unit: group protects persons.",
        )
        if plan.unit == "image"
        else Assumption(
            "All images of a person carry the same name in the group column.",
            Status.OPEN,
            "Whoever has two names counts as two groups, and is protected less.",
        )
    )
    benchmark = Assumption(
        "The training images are private.", Status.FAILS, "They are a published benchmark: nothing was protected."
    )
    return [
        *([benchmark] if plan.public_benchmark else []),
        unit,
        Assumption(
            "The declared constants (records, classes, settings) were chosen without looking at private images.",
            Status.OPEN,
            "Only the holder can know. Settings can be tried on public images: dpldm rehearse.",
        ),
        Assumption(
            "No other release was made of these images than those that the ledger knows.",
            Status.OPEN,
            f"Another account or machine has a ledger of its own.{several}",
        ),
        Assumption(
            "The public images that the backbone learned from show none of the private ones.",
            Status.OPEN,
            "It cannot be proved; the backbone's card tells where its images come from.",
        ),
        Assumption(
            "Nobody watched the time, memory or private folder of the machine while it ran.",
            Status.OPEN,
            "The guarantee is about what was released.",
        ),
    ]
