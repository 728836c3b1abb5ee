"""Settings of stages 1 and 2: how a backbone is made from public images."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dpldm.section import Count, Positive, Section


class StageRecipe(Section):
    """What stages 1 and 2 have in common."""

    batch_size: Count
    """Images per step."""
    steps: Count
    """Optimizer steps."""
    learning_rate: Positive
    """Peak learning rate of AdamW."""
    warmup_steps: Count = 200
    """Steps of linear warm-up, then half a cosine."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are the ones that are kept."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    bf16: bool = False
    """Autocast to bfloat16: faster only on processors with bfloat16 units, several times slower on others."""


class AutoencoderRecipe(StageRecipe):
    """Stage 1: the autoencoder."""

    latent_channels: Count = 16
    """Channels of the latent."""
    widths: tuple[int, ...] = (16, 32, 64, 96)
    """Channels per resolution; each further entry halves the image once more."""
    layers_per_block: Count = 1
    """Residual blocks per resolution."""
    kl_weight: Positive = 1e-6
    """Weight of the KL term."""
    batch_size: Count = 64
    steps: Count = 9000
    learning_rate: Positive = 1.5e-3
    bf16: bool = True


class DiffusionRecipe(StageRecipe):
    """Stage 2: the conditional denoiser."""

    widths: tuple[int, ...] = (64, 128)
    """Channels per resolution of the UNet."""
    layers_per_block: Count = 1
    """Residual blocks per resolution."""
    heads: Count = 4
    """Attention heads."""
    condition_dim: Count = 64
    """Width of the condition token."""
    pseudo_classes: Count = 64
    """k-means clusters of public latents that serve as labels."""
    label_dropout: float = Field(0.15, ge=0, lt=1)
    """Probability of training with the null label (for guidance)."""
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    """What the network predicts."""
    batch_size: Count = 128
    steps: Count = 6000
    learning_rate: Positive = 1e-3


class BackboneRecipe(Section):
    """How a public backbone is made: everything that stages 1 and 2 need to run again."""

    name: str
    """Name of the backbone."""
    image_size: Count
    """Pixels a side during pre-training."""
    channels: Literal[1, 3]
    """1 grey, 3 colour."""
    public: tuple[Path, ...]
    """Directories made by `dpldm public`."""
    output: Path
    """Where the backbone is written."""
    seed: int = 0
    """Seed of the public randomness."""
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    diffusion: DiffusionRecipe = DiffusionRecipe()
