"""How often a timestep of the noise schedule is trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

Shares = tuple[tuple[float, float, float], ...]
"""(from, to, share) for each part of the schedule: 0 is the clean end, 1 pure noise; shares are relative."""


@dataclass(frozen=True)
class Timesteps:
    """A mixture of uniform laws over parts of {0, ..., count - 1}.

    Ghalebikesabi et al. (2023, arXiv 2302.13861, sec. 4) train most on the parts that matter: large errors at timesteps
    that teach little use up the clip norm of those that teach much.
    """

    count: int  # steps of the noise schedule
    shares: Shares = ((0.0, 1.0, 1.0),)

    def at(self, units: Tensor) -> Tensor:
        """Timesteps for independent uniform numbers `units` in [0, 1), (N,) int64: the inverse of the law."""
        starts, ends, shares = torch.tensor(self.shares, dtype=torch.float64).unbind(1)
        first = (starts * self.count).long().clamp(max=self.count - 1)
        width = ((ends * self.count).long() - first).clamp(min=1)  # a part has one timestep at least
        upper = (shares / shares.sum()).cumsum(0)
        part = torch.searchsorted(upper, units, right=True).clamp(max=len(shares) - 1)
        within = 1 - (upper[part] - units) * shares.sum() / shares[part]  # uniform in [0, 1)
        return first[part] + (within * width[part]).long().clamp(min=0).minimum(width[part] - 1)
