"""Algorithm 1's private gradient, as one object: charge, Poisson draw, clip, noise, divide by a public constant.

    g = (1/L) * ( sum_{i in batch} g_i / max(1, ||g_i|| / C)  +  N(0, sigma^2 C^2 I) )

The paper (arXiv 2305.15759, Algorithm 1) prints the sum divided by the batch size B with the noise outside the
parentheses; taken literally that is B times the noise that the accountant needs. L is a declared constant and
never the size of the drawn batch, which is private.

A trainer has no other way to a gradient, and every way through here is charged and noised.
"""

from collections.abc import Mapping

from torch import Tensor

from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.entropy import Entropy
from dpldm.privacy.grid import add_gaussian_on_grid
from dpldm.privacy.ledger import Charging
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.sampling import poisson_batch


class PrivateGradient:
    """One attempt after another: `draw`, any number of `accumulate`, `release`.

    Args:
        plan: the constants; must be registered with the ledger.
        ledger: charged before each draw.
        clipped: the open clipped sum; its clip norm, draws and rule must be the plan's.
        units: number of units in the index, null records included. Used to draw, never shown.
        entropy: source of the draw and the noise.
    """

    def __init__(self, plan: PrivacyPlan, ledger: Charging, clipped: ClippedSum, units: int, entropy: Entropy) -> None:
        built = (clipped.clip_norm, clipped.draws, clipped.rule)
        if built != (plan.max_grad_norm, plan.draws_per_example, plan.clipping):
            raise ValueError("The clipped sum was not built with the plan's clip norm, draws per example and clipping.")
        if plan.most_records is not None and units > plan.most_records:
            raise ValueError("There are more records than privacy.most_records declares: raise it.")
        self._plan, self._ledger, self._clipped = plan, ledger, clipped
        self._units, self._entropy = units, entropy
        self._drawn = False

    def draw(self) -> Tensor:
        """Charge one attempt, then draw its batch: indices of the drawn units, one axis, possibly none (PRIVATE).

        Raises:
            BudgetExhausted: no attempt is left; nothing was drawn.
        """
        self._drawn = False  # an abandoned attempt has nothing to release any more,
        self._clipped.take()  # and what it left behind is dropped
        self._ledger.charge(self._plan)
        self._drawn = True
        plan = self._plan
        return poisson_batch(self._units, plan.sampling_probability, self._entropy, plan.max_batch_size)

    def accumulate(self, losses: Tensor, keep: Tensor, images: int = 1) -> None:
        """Add the clipped gradients of one physical part of the batch (see `ClippedSum.accumulate`)."""
        self._clipped.accumulate(losses, keep, images)

    def release(self) -> Mapping[str, Tensor]:
        """The noised mean gradient in units of C (that is, divided by L * C), parameter by parameter.

        Units of C make learning rates independent of the clip norm. Every parameter gets noise, also in an
        empty batch. One release per draw.
        """
        if not self._drawn:
            raise RuntimeError("release() without a fresh draw(): a sum must be noised once and paid for once.")
        self._drawn = False
        sums = self._clipped.take()
        scale = 1.0 / (self._plan.expected_batch_size * self._plan.max_grad_norm)
        coordinates = sum(total.numel() for total in sums.values())
        return {name: self._noised(total, coordinates) * scale for name, total in sums.items()}

    def _noised(self, total: Tensor, coordinates: int) -> Tensor:
        sigma, clip_norm = self._plan.noise_multiplier, self._plan.max_grad_norm
        if self._plan.noise == "grid":
            return add_gaussian_on_grid(total, sigma, clip_norm, coordinates, self._entropy)
        return add_gaussian(total, sigma * clip_norm, self._entropy)
