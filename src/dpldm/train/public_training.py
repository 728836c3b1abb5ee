"""The loop that stages 1 and 2 share: AdamW, warm-up and cosine, averaged weights, checkpoints, exact resume.

Public data only. A stage supplies `loss(generator)`; everything random in a step comes from that step's
generator, so a run that was killed continues as if it had not been.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dpldm.recipe import StageRecipe
from dpldm.train.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from dpldm.train.public_data import step_generator
from dpldm.train.schedule import rate

CPU = torch.device("cpu")


@dataclass(frozen=True)
class PublicStep:
    """What a pre-training step shows. Everything here comes from public images."""

    number: int  # steps done
    loss: float


class PublicTraining(ABC):
    """Network, optimizer and average of a pre-training stage. Iterate `steps()` to train."""

    decay: ClassVar[str] = "cosine"
    """Course of the learning rate after warm-up."""
    largest_gradient: ClassVar[float] = 1.0
    """Norm to which gradients are cut."""

    def __init__(
        self, network: nn.Module, recipe: StageRecipe, seed: int, checkpoint: Path, device: torch.device = CPU
    ) -> None:
        self.network, self.seed, self.checkpoint, self.device = network.to(device), seed, checkpoint, device
        self._recipe = recipe
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = list(network.parameters())
        self.optimizer = self.build_optimizer()
        self.average = EMAModel(self.parameters, decay=recipe.ema_decay, use_ema_warmup=True, power=0.75)
        self.done = 0
        self.build_beside()
        if checkpoint.exists():
            self._restore()

    @abstractmethod
    def loss(self, generator: torch.Generator) -> Tensor:
        """Mean loss of a fresh batch; all randomness from `generator`."""

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Of the network's parameters."""
        return torch.optim.AdamW(self.parameters, lr=self._recipe.learning_rate, weight_decay=0.01)

    def build_beside(self) -> None:  # noqa: B027 (most stages have nothing)
        """Make what else is trained."""

    def after_update(self) -> None:  # noqa: B027
        """What else a step trains."""

    def beside(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What else a checkpoint holds, by group."""
        return {}

    def restore_beside(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:  # noqa: B027
        """Put back what `beside` gave."""

    def steps(self) -> Iterator[PublicStep]:
        """Train to the end of the recipe, saving every `checkpoint_every` steps."""
        recipe = self._recipe
        while self.done < recipe.steps:
            factor = rate(self.decay, self.done, recipe.steps, recipe.warmup_steps)
            self.optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor
            loss = self.loss(step_generator(self.seed, self.done))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.parameters, self.largest_gradient)
            self.optimizer.step()
            self.average.step(self.parameters)
            self.after_update()
            self.done += 1
            if self.done % recipe.checkpoint_every == 0 or self.done == recipe.steps:
                self._save()
            yield PublicStep(self.done, loss.item())

    def averaged(self) -> nn.Module:
        """The network with its averaged weights, frozen and in evaluation mode."""
        self.average.copy_to(self.parameters)
        return self.network.eval().requires_grad_(False)

    def _save(self) -> None:
        groups = {
            "network": dict(zip(self.names, self.parameters, strict=True)),
            "average": dict(zip(self.names, self.average.shadow_params, strict=True)),
            "optimizer": optimizer_tensors(self.optimizer, self.names),
            **self.beside(),
        }
        facts = {"step": self.done, "average_step": self.average.optimization_step}
        save_checkpoint(self.checkpoint, groups, facts)

    def _restore(self) -> None:
        groups, facts = load_checkpoint(self.checkpoint)
        with torch.no_grad():
            for name, parameter in zip(self.names, self.parameters, strict=True):
                parameter.copy_(groups["network"][name])
        self.average.shadow_params = [groups["average"][name].to(self.device) for name in self.names]
        self.average.optimization_step = facts["average_step"]
        restore_optimizer(self.optimizer, self.names, groups["optimizer"])
        self.restore_beside(groups)
        self.done = facts["step"]
