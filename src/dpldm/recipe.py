"""Settings of stages 1 and 2: how a backbone is made from public images."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

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
    attention: tuple[bool, ...] | None = None
    """Whether there is attention at each resolution; there always is in the middle. Blank: at all."""
    heads: Count | tuple[Count, ...] = 4
    """Attention heads, the same at all resolutions or one number for each. Told nothing: heads at the first resolution,
    all of one width."""
    told: Literal["clusters", "labels", "nothing"] = "clusters"
    """What the network is told about a public image: the cluster of its latent, the label of its public set, or
    nothing."""
    condition_dim: Count = 64
    """Width of the condition token."""
    pseudo_classes: Count = 64
    """k-means clusters of public latents that serve as labels, for told: clusters."""
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
    jitter: bool = True
    """Vary contrast, polarity, framing and side of public images: for a backbone that shall serve many sets."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks compute: auto is CUDA where there is one."""
    space: Literal["latents", "pixels"] = "latents"
    """Where the denoiser works. pixels: there is no autoencoder."""
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    diffusion: DiffusionRecipe = DiffusionRecipe()

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        levels, heads, nothing = len(self.diffusion.widths), self.diffusion.heads, self.diffusion.told == "nothing"
        if self.diffusion.attention is not None and len(self.diffusion.attention) != levels:
            raise ValueError("diffusion.attention needs a true or false for each of diffusion.widths")
        if isinstance(heads, tuple) and (len(heads) != levels or nothing):
            raise ValueError("diffusion.heads needs one number, or, where the network is told something, one a width")
        if self.space == "pixels" and nothing:
            raise ValueError("space: pixels needs a network that is told something: set diffusion.told")
        return self
