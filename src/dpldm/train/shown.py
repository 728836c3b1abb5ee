"""What an update shows to whoever runs it, and all that it shows."""

from dataclasses import dataclass

from dpldm.privacy.ledger import Ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.train.tuner import Learner


@dataclass(frozen=True)
class FinetuneStep:
    """What a step shows: functions of the plan and of the number of attempts, nothing else."""

    number: int  # updates done
    steps: int  # T
    attempts: int  # charged so far
    epsilon_spent: float  # upper bound of epsilon after these attempts
    ended_early: bool = False  # the reserve is used up before T updates


def shown(tuner: Learner, plan: PrivacyPlan, ledger: Ledger, ended_early: bool = False) -> FinetuneStep:
    """What an update lets out."""
    attempts = ledger.attempts(plan)
    return FinetuneStep(tuner.updates, plan.steps, attempts, plan.epsilon_spent(attempts), ended_early)
