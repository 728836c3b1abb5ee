"""Whether a kept file may be used: whatever was paid for belongs to one plan, one backbone and one ledger."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpldm.errors import UserError
from dpldm.privacy.ledger import Head, Ledger
from dpldm.run import Run, require_same_backbone
from dpldm.train.checkpoint import Groups, load_checkpoint


def vouched(
    path: Path, what: str, run: Run, ledger: Ledger, backbone: str, declared: Mapping[str, Any]
) -> tuple[Groups, dict[str, Any]]:
    """Tensors and facts of a checkpoint or an answer that this run may go on from.

    Args:
        what: the file in words, for messages: "the checkpoint".
        ledger: must contain the head that the file was written under. One that was cut, replaced or forked forgot what
            the file cost, and would let it be paid for less.
        backbone: digest of the public weights at hand.
        declared: facts that must be the file's own, such as the digest of the plan.

    Raises:
        UserError: one of them is not; or the file is damaged.
        OSError: it is not there, or cannot be read.
    """
    groups, facts = load_checkpoint(path, paid_for=True)
    if any(name not in facts or facts[name] != value for name, value in declared.items()):
        raise UserError(
            f"{what[0].upper()}{what[1:]} of the run {run.config.name!r} was made under another privacy plan or other "
            "settings: restore those it was made with, or give this run a new name and pay for it again."
        )
    require_same_backbone(backbone, facts, run)
    head = facts.get("head")
    if head is None or not ledger.contains(Head(*head)):
        raise UserError(
            f"The ledger {run.ledger.name} does not contain what {what} of the run {run.config.name!r} was paid with "
            "(it was cut, replaced or forked): restore the ledger from a copy."
        )
    return groups, facts
