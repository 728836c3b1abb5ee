"""The loop that stages 1 and 2 share: AdamW, warm-up and cosine, averaged weights, checkpoints, exact resume.

Public data only. A stage supplies `loss(generator)`; everything random in a step comes from that step's
generator, so a run that was killed continues as if it had not been.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dpldm.recipe import StageRecipe
from dpldm.train.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from dpldm.train.public_data import step_generator
from dpldm.train.schedule import rate


@dataclass(frozen=True)
class PublicStep:
    """What a pre-training step shows. Everything here comes from public images."""

    number: int  # steps done
    loss: float


class PublicTraining(ABC):
    """Network, optimizer and average of a pre-training stage. Iterate `steps()` to train."""

    def __init__(self, network: nn.Module, recipe: StageRecipe, seed: int, checkpoint: Path) -> None:
        self.network, self.seed, self.checkpoint = network, seed, checkpoint
        self._recipe = recipe
        self.names = [name for name, _ in network.named_parameters()]
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.learning_rate, weight_decay=0.01)
        self.average = EMAModel(self.parameters, decay=recipe.ema_decay, use_ema_warmup=True, power=0.75)
        self.done = 0
        if checkpoint.exists():
            self._restore()

    @abstractmethod
    def loss(self, generator: torch.Generator) -> Tensor:
        """Mean loss of a fresh batch; all randomness from `generator`."""

    def steps(self) -> Iterator[PublicStep]:
        """Train to the end of the recipe, saving every `checkpoint_every` steps."""
        recipe = self._recipe
        while self.done < recipe.steps:
            factor = rate("cosine", self.done, recipe.steps, recipe.warmup_steps)
            self.optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor
            loss = self.loss(step_generator(self.seed, self.done))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.average.step(self.parameters)
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
        }
        facts = {"step": self.done, "average_step": self.average.optimization_step}
        save_checkpoint(self.checkpoint, groups, facts)

    def _restore(self) -> None:
        groups, facts = load_checkpoint(self.checkpoint)
        with torch.no_grad():
            for name, parameter in zip(self.names, self.parameters, strict=True):
                parameter.copy_(groups["network"][name])
        self.average.shadow_params = [groups["average"][name] for name in self.names]
        self.average.optimization_step = facts["average_step"]
        restore_optimizer(self.optimizer, self.names, groups["optimizer"])
        self.done = facts["step"]
