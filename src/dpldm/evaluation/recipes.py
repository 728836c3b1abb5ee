"""How classifiers are trained, recipe by recipe, each with its source."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class Recipe:
    """Optimizer, and what is done with its weights. No recipe augments images: a mirrored digit is none."""

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 3e-4
    batch_size: int = 128
    momentum: float = 0.0
    """Of SGD."""
    nesterov: bool = False
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    decay_epochs: int | None = None
    """The learning rate is multiplied by 0.2 after so many epochs, again and again; None keeps it."""
    average: float = 0.0
    """Decay of the averaged weights, which are those that are tested; 0 tests the weights themselves."""

    def optimizer_of(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a network's parameters."""
        parameters, rate, decay = network.parameters(), self.learning_rate, self.weight_decay
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
        return torch.optim.SGD(parameters, rate, self.momentum, weight_decay=decay, nesterov=self.nesterov)

    def learning_rate_after(self, epochs: int) -> float:
        """The learning rate of the epoch that follows `epochs` others."""
        falls = 0 if self.decay_epochs is None else epochs // self.decay_epochs
        return self.learning_rate * 0.2**falls

    def averaged(self, network: nn.Module) -> AveragedModel | None:
        """A copy that follows the network's parameters, slowly once it has seen many, and has its buffers."""
        if not self.average:
            return None

        def follow(averages: Tensors, current: Tensors, seen: Tensor | int) -> None:
            decay = min(self.average, (1 + float(seen)) / (10 + float(seen)))
            torch._foreach_lerp_(averages, current, 1 - decay)

        return AveragedModel(network, multi_avg_fn=follow)


PAPERS = Recipe()
"""DPDM (Dockhorn et al. 2023, arXiv 2210.09929) and DP-LDM, for grey images."""
PAPER_COLOUR = Recipe("sgd", 0.1, 1000, momentum=0.9, nesterov=True, weight_decay=5e-4, label_smoothing=0.1)
"""DP-LDM's script for WRN-40-4 on CIFAR-10."""
BENCHMARK = Recipe(learning_rate=0.01, batch_size=256, decay_epochs=20, average=0.9999)
"""DPImageBench (Gong et al. 2025, arXiv 2503.14681), all sets but CIFAR."""
BENCHMARK_CIFAR = Recipe("sgd", 0.1, 126, momentum=0.9, weight_decay=5e-4, decay_epochs=60, average=0.9999)
"""DPImageBench on CIFAR-10 and CIFAR-100."""
