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
    start: str | None = None
    """Backbone with whose weights the network starts, where they fit (see train/inheriting.py). Blank: at random."""


class AdversarialRecipe(Section):
    """The loss of the papers in place of the light one: L1, a perceptual distance and PatchGAN (Rombach et al. 2022,
    app. G). Adam with betas 0.5 and 0.9 at a constant rate, as there; set ema_decay 0 for no average."""

    perceptual: Literal["efficientnet-lite0", "vgg-lpips"] = "efficientnet-lite0"
    """Network of the perceptual distance: an installable one, or the papers', whose weights are files."""
    perceptual_weights: tuple[Path, ...] = ()
    """For vgg-lpips: files (.safetensors or .pth) that hold together torchvision's VGG-16 and LPIPS' heads."""
    perceptual_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of the perceptual distance beside L1."""
    discriminator_start: int = Field(50_001, ge=0)
    """Steps before the discriminator starts, so that there is something to judge."""
    discriminator_weight: Positive = 0.5
    """Weight of its loss beside that of the reconstruction, once both gradients are equally long at the last layer."""
    discriminator_width: Count = 64
    """Channels of its first layer."""
    discriminator_layers: Count = 3
    """How often it halves the image, less or more one."""

    @model_validator(mode="after")
    def _vgg_has_weights(self) -> Self:
        if (self.perceptual == "vgg-lpips") != bool(self.perceptual_weights):
            raise ValueError("perceptual_weights are files for perceptual: vgg-lpips; give both, or neither")
        return self


class AutoencoderRecipe(StageRecipe):
    """Stage 1: the autoencoder. Its loss is a light one, which needs no other network, unless `adversarial` is set."""

    latent_channels: Count = 16
    """Channels of the latent."""
    widths: tuple[int, ...] = (16, 32, 64, 96)
    """Channels per resolution; each further entry halves the image once more."""
    layers_per_block: Count = 1
    """Residual blocks per resolution."""
    kl_weight: Positive = 1e-6
    """Weight of the KL term."""
    codebook: Count | None = None
    """Entries of the codebook of a vector-quantised autoencoder (VQ), which has no KL term. Blank: a KL autoencoder."""
    middle_attention: bool = False
    """Attention at the lowest resolution, as in the papers' networks."""
    adversarial: AdversarialRecipe | None = None
    """The papers' loss. Blank: the light one."""
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
    told: Literal["clusters", "labels", "names", "nothing"] = "clusters"
    """What the network is told about a public image: the cluster of its latent, the label of its public set, by MiniLM
    the name of what it shows, or nothing."""
    condition_dim: Count = 64
    """Width of a condition token."""
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
    """Vary framing and side of public images, and contrast and polarity of grey ones: for a backbone that shall serve
    many sets."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks compute: auto is CUDA where there is one."""
    space: Literal["latents", "pixels"] = "latents"
    """Where the denoiser works. pixels: there is no autoencoder."""
    autoencoder_of: str | None = None
    """Backbone whose autoencoder is taken as it is, in place of stage 1. Blank: one is trained."""
    autoencoder: AutoencoderRecipe = AutoencoderRecipe()
    diffusion: DiffusionRecipe = DiffusionRecipe()

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        levels, heads, told = len(self.diffusion.widths), self.diffusion.heads, self.diffusion.told
        if self.diffusion.attention is not None and len(self.diffusion.attention) != levels:
            raise ValueError("diffusion.attention needs a true or false for each of diffusion.widths")
        if isinstance(heads, tuple) and (len(heads) != levels or told == "nothing"):
            raise ValueError("diffusion.heads needs one number, or, where the network is told something, one a width")
        if self.space == "pixels" and told not in ("clusters", "labels"):
            raise ValueError("space: pixels needs a network that is told classes: set diffusion.told")
        if self.space == "pixels" and self.autoencoder_of is not None:
            raise ValueError("space: pixels needs no autoencoder: leave autoencoder_of out")
        if told == "names" and self.autoencoder.codebook is not None:
            raise ValueError("autoencoder.codebook does not go with diffusion.told: names, whose stock class has none")
        return self
