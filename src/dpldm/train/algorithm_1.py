"""Algorithm 1 of DP-LDM (arXiv 2305.15759), line for line. The only place where private images meet a gradient.

What a line does in full: `mechanism` (charge, draw, clip, noise) in privacy/mechanism.py, losses in example_losses.py,
`update` in tuner.py.
"""

from collections.abc import Iterator

from diffusers import DDPMScheduler

from dpldm.data.latents import PrivateLatents
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.entropy import Entropy
from dpldm.privacy.ledger import BudgetExhausted, Ledger
from dpldm.privacy.mechanism import PrivateGradient
from dpldm.privacy.plan import PrivacyPlan
from dpldm.run import Run
from dpldm.train.example_losses import example_losses, fresh_draws, timestep_law
from dpldm.train.shown import FinetuneStep, shown
from dpldm.train.tuner import Tuner


def algorithm_1(
    tuner: Tuner,
    scheduler: DDPMScheduler,
    latents: PrivateLatents,
    plan: PrivacyPlan,
    ledger: Ledger,
    run: Run,
    entropy: Entropy,
) -> Iterator[FinetuneStep]:
    """Algorithm 1: T times draw, clip, sum, noise, divide, update."""
    settings, draws_each = run.config.optimizer, plan.draws_per_example
    shape, timesteps = latents.posterior.mean.shape[1:], timestep_law(scheduler, settings)
    dropout, min_snr = settings.label_dropout, settings.min_snr
    with ClippedSum(tuner.network, tuner.trainable, plan.max_grad_norm, draws_each, plan.clipping) as clipped:
        mechanism = PrivateGradient(plan, ledger, clipped, latents.units, entropy)
        while tuner.updates < plan.steps:
            try:
                batch = mechanism.draw()  # charge the ledger, then sample each unit with probability q
            except BudgetExhausted:
                yield shown(tuner, plan, ledger, ended_early=True)
                return
            for records, weights in latents.passes(batch, tuner.rows_at_once):  # none if empty
                of_pass = (records.numel(), draws_each, shape, timesteps, dropout, entropy)
                draws = fresh_draws(*of_pass, mirror=settings.mirror)
                losses = example_losses(tuner.network, scheduler, latents, records.flatten(), draws, min_snr=min_snr)
                weights = weights.to(losses.device)
                of_units = (losses.view_as(weights) * weights).sum(1)  # one gradient per unit: the mean over its images
                mechanism.accumulate(of_units, weights.any(1), records.shape[1])  # clip each unit's to C, add
            tuner.update(mechanism.release())  # add N(0, sigma^2 C^2 I), divide by L C; Adam, average
            tuner.save(run, plan, ledger.head)
            yield shown(tuner, plan, ledger)
