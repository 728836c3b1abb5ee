"""Where a run stands with its ledger: its budget is reserved once, its updates go on from where they stopped."""

from dpldm.config import RunConfig
from dpldm.data.fingerprints import note_fingerprint
from dpldm.data.latents import private_source
from dpldm.errors import UserError
from dpldm.privacy.ledger import Budgeted, Ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.run import Run
from dpldm.train.tuner import Learner
from dpldm.train.vouching import vouched


def register(plan: Budgeted, ledger: Ledger, config: RunConfig) -> None:
    """Reserve the plan's budget, and note beside the ledger which state of the data it is spent on."""
    if not ledger.holds(plan):
        note_fingerprint(ledger.path, plan.digest(), private_source(config.data))
        ledger.register(plan)


def resume(tuner: Learner, run: Run, plan: PrivacyPlan, ledger: Ledger) -> None:
    """Continue from the run's checkpoint, if there is one and the ledger vouches for it.

    Raises:
        UserError: the checkpoint belongs to another plan, to other public weights, or to a ledger that is not this one;
            or it is gone.
    """
    if not run.checkpoint.exists():
        require_nothing_lost(run, plan, ledger)
        return
    declared = {"plan": plan.digest()}
    groups, facts = vouched(run.checkpoint, "the checkpoint", run, ledger, tuner.backbone_digest, declared)
    tuner.load(groups, facts["updates"], facts["average_step"])


def require_nothing_lost(run: Run, plan: PrivacyPlan, ledger: Ledger) -> None:
    """Refuse to start anew when too few attempts are left for T updates: the run's folder must be somewhere.

    Raises:
        UserError: more attempts than the reserve are charged, and the run has no checkpoint.
    """
    charged = ledger.attempts(plan)
    if charged > plan.reserve_steps:
        raise UserError(
            f"The ledger holds {charged} attempts of the run {run.config.name!r}, but {run.directory} has no "
            "checkpoint of them: put the run's folder back, correct runtime.output, or give this run a new name and "
            "pay for it again."
        )
