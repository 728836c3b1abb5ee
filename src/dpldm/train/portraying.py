"""`method: portraits`: all of a run's epsilon in two noised answers, the means and the covariances of latents.

    ask      the plan's questions, each charged to the ledger before it is answered (train/asking.py)
    keep     the Gaussians that follow from the answers (train/portraits.py), where a tuned model would be kept

Nothing is tuned. What is drawn from the Gaussians and decoded by the public autoencoder is post-processing.
"""

from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents, private_latents
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.privacy.entropy import Entropy, SystemEntropy
from dpldm.privacy.ledger import Ledger, LedgerError, open_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.run import Run, ledger_cap, plan_of
from dpldm.train.asking import ask_all, require_answers_fit
from dpldm.train.checkpoint import save_checkpoint
from dpldm.train.checks import check_images
from dpldm.train.portraits import Portraits
from dpldm.train.resuming import register
from dpldm.train.starting import compared, guesses_of_public_classes, portraits_known
from dpldm.train.vouching import vouched


def portray(config: RunConfig) -> Portraits:
    """Ask for the portraits of the classes under the run's plan, and keep them. The same call resumes.

    Raises:
        UserError: the settings, the data, the ledger or an answer do not allow it.
    """
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    check_images(config, backbone)
    return asked(Run(config), plan_of(config), config, backbone, SystemEntropy())


def asked(run: Run, plan: PrivacyPlan, declared: RunConfig, backbone: Backbone, entropy: Entropy) -> Portraits:
    """The portraits: those that were kept, or from answers that were kept or are given now.

    Args:
        run: whose settings are those of the questions.
        declared: the config that the ledger's cap comes from.

    Raises:
        UserError: see `portray`.
    """
    run.create()
    made = run.checkpoint.exists()  # then no private image is needed any more
    latents = None if made else _latents(run, plan, backbone)
    cap = ledger_cap(declared)
    try:
        with open_ledger(run.ledger, plan.dataset_id, cap, declared_cap=declared.privacy.cap) as ledger:
            if latents is None:
                return _kept(run, plan, ledger, backbone)
            require_answers_fit(run, plan, ledger, backbone.digest)
            register(plan, ledger, declared)
            ask_all(run, plan, ledger, latents, len(run.config.data.labels), backbone.digest, entropy)
            known = portraits_known(run, plan, ledger, backbone.digest, latents.posterior.mean.shape[1:])
            head = ledger.head
    except LedgerError as error:
        raise UserError(str(error)) from None
    facts = {"plan": plan.digest(), "backbone": backbone.digest, "updates": 0, "head": [head.seq, head.hash]}
    save_checkpoint(run.checkpoint, {"portraits": vars(known)}, facts)
    return known


def _latents(run: Run, plan: PrivacyPlan, backbone: Backbone) -> PrivateLatents:
    """The private images as they are asked about."""
    latents = private_latents(
        *(run.config.data, backbone.autoencoder, run.config.backbone, run.latents),
        images_per_group=plan.images_per_unit if plan.unit == "group" else None,
        keep=run.started,
    )
    return compared(latents, guesses_of_public_classes(backbone, run.config), run.config)


def _kept(run: Run, plan: PrivacyPlan, ledger: Ledger, backbone: Backbone) -> Portraits:
    """The portraits of the checkpoint, if the ledger vouches for them."""
    groups, _ = vouched(run.checkpoint, "the checkpoint", run, ledger, backbone.digest, {"plan": plan.digest()})
    return Portraits(**groups["portraits"])
