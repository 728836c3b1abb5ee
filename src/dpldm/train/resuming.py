"""Where a run stands with its ledger: its budget is reserved once, its updates go on from where they stopped."""

from dpldm.config import RunConfig
from dpldm.data.fingerprints import note_fingerprint
from dpldm.data.latents import private_source
from dpldm.errors import UserError
from dpldm.privacy.ledger import Budgeted, Head, Ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.run import Run, require_same_backbone
from dpldm.train.checkpoint import load_checkpoint
from dpldm.train.tuner import Learner


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
    groups, facts = load_checkpoint(run.checkpoint, paid_for=True)
    if facts["plan"] != plan.digest():
        raise UserError(
            f"The run {run.config.name!r} was started under another privacy plan: give this run a new name, or "
            "restore the privacy settings it was started with."
        )
    require_same_backbone(tuner.backbone_digest, facts, run)
    if not ledger.contains(Head(*facts["head"])):
        raise UserError(
            f"The ledger {run.ledger.name} does not contain the attempts of this run's checkpoint (it was cut, "
            "replaced or forked): restore the ledger from a copy."
        )
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
