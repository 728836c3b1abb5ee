"""What is trained: networks with their trained part, and made-up latents. The same numbers for every arm."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig
from torch import Tensor, nn

from dpldm.models.denoiser import build_denoiser, build_scheduler, condition
from dpldm.models.trainable import choose_trainable

CLASSES = 10
ADAPTED = r".*(attn1\.to_[qkv]|attn2\.to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)"
"""What has an influence in attention blocks with one context token."""


@dataclass(frozen=True)
class Case:
    """A network, what is tuned of it, and the rows of a physical pass, `draws` of which are one example."""

    name: str
    size: int  # of latents, a side
    channels: int
    widths: tuple[int, ...]
    trained: str  # a preset of models/trainable.py, or "lora"
    rows: int
    seconds: float  # for all rounds together
    draws: int = 1
    whole_step: int | None = None  # L: examples of a logical step, where that is measured too

    def network(self, everything: bool = False) -> nn.Module:
        """Always the same weights; all of them trained if `everything`."""
        torch.manual_seed(0)
        settings = {"layers_per_block": 1, "heads": 4, "condition_dim": 64}
        network = build_denoiser(self.channels, self.size, CLASSES, widths=self.widths, **settings).eval()
        if everything:
            choose_trainable(network, "all")
        elif self.trained == "lora":
            network.requires_grad_(False)
            network.add_adapter(LoraConfig(r=8, target_modules=ADAPTED, init_lora_weights=False))
        else:
            choose_trainable(network, self.trained)
        return network

    def rows_of_a_pass(self) -> "Rows":
        """Latents, labels, timesteps and noise of one physical pass."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.rows, self.channels, self.size, self.size)
        return Rows(
            torch.randn(shape, generator=generator),
            condition(torch.randint(CLASSES + 1, (self.rows,), generator=generator), CLASSES),
            torch.randint(1000, (self.rows,), generator=generator),
            torch.randn(shape, generator=generator),
            self.draws,
        )


SCHEDULER = build_scheduler("v_prediction")


@dataclass(frozen=True)
class Rows:
    """Rows of one pass, `draws` neighbours to an example."""

    latents: Tensor
    context: Tensor
    timesteps: Tensor
    noise: Tensor
    draws: int

    def losses(self, network: Callable[..., Tensor]) -> Tensor:
        """One loss per example. 100 times the denoising loss: Opacus adds 1e-6 to norms, which should not show."""
        noisy = SCHEDULER.add_noise(self.latents, self.noise, self.timesteps)
        target = SCHEDULER.get_velocity(self.latents, self.noise, self.timesteps)
        # Not the package's own loss, which asks a network for its family: the arms' networks are wrapped.
        error = network(noisy, self.timesteps, encoder_hidden_states=self.context).sample - target
        return 100 * error.square().flatten(1).mean(1).view(-1, self.draws).mean(1)

    def example(self, index: int) -> "Rows":
        """One example alone."""
        return self.part(slice(index * self.draws, (index + 1) * self.draws))

    def part(self, rows: slice) -> "Rows":
        return replace(self, **{n: t[rows] for n, t in vars(self).items() if n != "draws"})


SMALL, LARGE = (64, 128), (64, 128, 240)
"""The widths of grey32, about 4 million weights, and about 15 million."""

CASES = [
    Case("4M UNet, 4x4 latents", 4, 16, SMALL, "attention", 128, 220, whole_step=1024),
    Case("4M UNet, 8x8 latents", 8, 16, SMALL, "attention", 64, 250, whole_step=1024),
    Case("15M UNet, 16x16 latents", 16, 4, LARGE, "attention", 16, 380),
    Case("LoRA (r = 8) of the 15M UNet", 16, 4, LARGE, "lora", 16, 300),
    Case("all of the 4M UNet, 4x4 latents", 4, 16, SMALL, "all", 64, 220),
    *(
        Case(f"{name}, K = {draws}", size, channels, widths, "attention", rows, 40, draws)
        for name, size, channels, widths, rows in (
            ("4M UNet, 4x4 latents", 4, 16, SMALL, 128),
            ("4M UNet, 8x8 latents", 8, 16, SMALL, 64),
            ("15M UNet, 16x16 latents", 16, 4, LARGE, 16),
        )
        for draws in (4, 16)
    ),
]

TINY = (16, 32)
QUICK_CASES = [
    Case("tiny UNet, 4x4 latents", 4, 4, TINY, "attention", 8, 1, whole_step=16),
    Case("LoRA (r = 8) of the tiny UNet", 4, 4, TINY, "lora", 4, 1),
    Case("all of the tiny UNet, 4x4 latents", 4, 4, TINY, "all", 4, 1),
    Case("tiny UNet, 4x4 latents, K = 4", 4, 4, TINY, "attention", 8, 1, 4),
]
"""To see that the script works; their times say nothing."""
