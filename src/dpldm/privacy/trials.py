"""The production mechanism at work on made-up gradients: what an audit observes.

Everything here goes through `PrivateGradient`, `ClippedSum`, `poisson_batch` and `add_gaussian` as the trainer does,
under the plan that is audited. There are no records, so there is nothing to charge.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpldm.privacy.audit import CutBatches
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.entropy import Entropy, SystemEntropy
from dpldm.privacy.mechanism import PrivateGradient
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.sampling import poisson_batch

WIDTH = 8
"""Inputs of the audited layer."""
COMPANIONS = 7
"""Records that are in every batch: what divides by the size of a batch then shows."""


class _NoLedger:
    """Made-up gradients belong to nobody: an attempt on them is not counted."""

    def charge(self, plan: PrivacyPlan) -> int:
        return 1


def canary_norm(plan: PrivacyPlan) -> float:
    """Norm of a canary's gradient: 10 C, and enough for `automatic` to bring it to almost C."""
    return 10 * plan.max_grad_norm + (10.0 if plan.clipping == "automatic" else 0.0)


def readings(plan: PrivacyPlan, attempts: int, *, canary: bool, entropy: Entropy | None = None) -> NDArray[np.float64]:
    """<noised sum, u> / C of so many attempts, (attempts,), u being the direction of the canary's gradient.

    The canary's gradient lies in two parameters, which must share one clip. Its companions' are orthogonal to it.
    """
    layer = nn.Linear(WIDTH, 1)
    inputs = torch.zeros(COMPANIONS + canary, WIDTH)
    inputs[:, 0] = -1.0  # with the bias: (-1, 1) is orthogonal to (1, 1)
    inputs[torch.arange(COMPANIONS), 1 + torch.arange(COMPANIONS)] = 1.0
    if canary:
        inputs[-1, 0] = 1.0
    rows = inputs.repeat_interleave(plan.draws_per_example, 0)
    size, keep = canary_norm(plan) / 2**0.5, torch.ones(len(inputs), dtype=torch.bool)
    found = np.empty(attempts)
    with _clipped(layer, plan) as clipped:
        mechanism = PrivateGradient(_uncut(plan), _NoLedger(), clipped, 0, entropy or SystemEntropy())
        for attempt in range(attempts):
            mechanism.draw()  # nobody: who is in the batch is up to the audit
            mechanism.accumulate(size * layer(rows).view(len(inputs), -1).mean(1), keep)
            released = mechanism.release()
            along = float(released["weight"][0, 0]) + float(released["bias"][0])
            found[attempt] = along / 2**0.5 * plan.expected_batch_size
    return found


def batches(plan: PrivacyPlan, units: int, rounds: int, entropy: Entropy | None = None) -> NDArray[np.bool_]:
    """Who was in each of so many batches, (rounds, units). Never cut: that would not be independent coins."""
    found = np.zeros((rounds, units), dtype=np.bool_)
    with _clipped(nn.Linear(1, 1), plan) as clipped:
        mechanism = PrivateGradient(_uncut(plan), _NoLedger(), clipped, units, entropy or SystemEntropy())
        for row in found:
            row[mechanism.draw().numpy()] = True
    return found


def cut_batches(plan: PrivacyPlan, units: int, rounds: int, entropy: Entropy | None = None) -> CutBatches:
    """As `batches`, but cut as the plan's are, to a size that about half of them exceed.

    Under the plan itself a cut is far too rare to be seen, and a plan of cuts as frequent as these is refused.
    """
    q, source = plan.sampling_probability, entropy or SystemEntropy()
    largest = max(1, min(round(units * q), units // 2))
    found = np.zeros((rounds, units), dtype=np.bool_)
    for row in found:
        row[poisson_batch(units, q, source, largest).numpy()] = True
    return CutBatches(found, largest)


def canary_scores(
    plan: PrivacyPlan, included: NDArray[np.bool_], steps: int, entropy: Entropy | None = None
) -> NDArray[np.float64]:
    """Log-likelihood ratios "in" against "out" of m canaries after one run of so many attempts, (m,).

    Canaries are records with orthogonal gradients, those of `included` the whole data set; each is clipped to C and
    drawn with the plan's q. The score of each is the best that who sees all noised gradients can have.
    """
    table, records = nn.Embedding(len(included), 1), torch.from_numpy(np.flatnonzero(included))
    scores = torch.zeros(len(included), dtype=torch.float64)
    with _clipped(table, plan) as clipped:
        mechanism = PrivateGradient(_uncut(plan), _NoLedger(), clipped, len(records), entropy or SystemEntropy())
        for _ in range(steps):
            batch = records[mechanism.draw()]
            if len(batch):
                rows = batch.repeat_interleave(plan.draws_per_example)[:, None]
                losses = canary_norm(plan) * table(rows).view(len(batch), -1).mean(1)
                mechanism.accumulate(losses, torch.ones(len(batch), dtype=torch.bool))
            sums = mechanism.release()["weight"].flatten().double() * plan.expected_batch_size
            scores += _log_likelihood_ratio(sums, plan)
    return scores.numpy()


def _log_likelihood_ratio(sums: Tensor, plan: PrivacyPlan) -> Tensor:
    """log of (1 - q) + q N(1, sigma^2) / N(0, sigma^2), at each value."""
    q = torch.tensor(plan.sampling_probability, dtype=torch.float64)
    gain = (sums - 0.5) / plan.noise_multiplier**2
    return torch.logaddexp(torch.log1p(-q), torch.log(q) + gain)


def _clipped(model: nn.Module, plan: PrivacyPlan) -> ClippedSum:
    return ClippedSum(model, dict(model.named_parameters()), plan.max_grad_norm, plan.draws_per_example, plan.clipping)


def _uncut(plan: PrivacyPlan) -> PrivacyPlan:
    return replace(plan, max_batch_size=None, most_records=None)
