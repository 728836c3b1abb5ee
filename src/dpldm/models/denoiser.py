"""The conditional denoiser: a stock `UNet2DConditionModel` over latents, its noise schedule, and its loss.

The class embedder lives inside the stock network: `encoder_hid_dim_type="text_proj"` is a Linear layer from
one-hot labels to one context token for cross-attention. Index K of K + 1 means "no label" (classifier-free
guidance). With a single context token the softmax of cross-attention runs over one key and is constant, so
`attn2.to_q`, `attn2.to_k` and `norm2` have no influence and no gradient: they are frozen by construction
(models/trainable.py).
"""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn


def build_denoiser(
    latent_channels: int,
    latent_size: int,
    classes: int,
    *,
    widths: tuple[int, ...],
    layers_per_block: int,
    heads: int,
    condition_dim: int,
) -> UNet2DConditionModel:
    """A UNet with a transformer block at every resolution; `classes` excludes the null label."""
    levels = len(widths)
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=widths,
        layers_per_block=layers_per_block,
        attention_head_dim=heads,  # diffusers reads this as the number of heads
        cross_attention_dim=condition_dim,
        encoder_hid_dim=classes + 1,
        encoder_hid_dim_type="text_proj",
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_scheduler(prediction_type: str) -> DDPMScheduler:
    """The LDM noise schedule (Rombach et al. 2022): scaled-linear betas, 1,000 steps, latents never clipped."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def class_count(denoiser: UNet2DConditionModel) -> int:
    """Number of classes, without the null label."""
    return int(denoiser.config.encoder_hid_dim) - 1


def condition(labels: Tensor, classes: int) -> Tensor:
    """One-hot context for the embedder: labels (N,) in [0, classes], `classes` = no label -> (N, 1, classes + 1)."""
    return F.one_hot(labels, classes + 1).float()[:, None]


def denoising_losses(
    denoiser: nn.Module,
    scheduler: DDPMScheduler,
    latents: Tensor,
    context: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    *,
    min_snr: float | None = None,
) -> Tensor:
    """Squared error of the prediction, one value per row (N,): eq. 2 of Rombach et al. (2022), not yet averaged.

    latents and noise are (N, c, h, w), timesteps (N,) integers, context (N, 1, classes + 1). `min_snr` is the gamma of
    min-SNR weighting; None weighs all timesteps alike.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    else:
        target = noise
    prediction: Tensor = denoiser(noisy, timesteps, encoder_hidden_states=context).sample
    losses: Tensor = (prediction.float() - target).square().flatten(1).mean(1)
    return losses if min_snr is None else losses * _min_snr_weights(scheduler, timesteps, min_snr)


def _min_snr_weights(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) as a weight of the clean latent's error (Hang et al. 2023, sec. 3.4), carried over to the error
    of what is predicted: over SNR for the noise, over SNR + 1 for the velocity; (N,)."""
    kept = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    ratio = kept / (1 - kept)
    weights: Tensor = ratio.clamp(max=gamma) / (ratio + (scheduler.config.prediction_type == "v_prediction"))
    return weights


@torch.no_grad()
def adapt_to_labels(denoiser: UNet2DConditionModel, classes: int) -> None:
    """Give the embedder one row per private label by a rule that sees no private image, in place.

    The null row is copied; every class row starts at the mean of the public class rows, so that before
    fine-tuning all labels mean "an average public image" and no label is favoured.
    """
    old = denoiser.encoder_hid_proj
    public_classes = old.in_features - 1
    new = nn.Linear(classes + 1, old.out_features, device=old.weight.device, dtype=old.weight.dtype)
    new.bias.copy_(old.bias)
    new.weight[:, :classes] = old.weight[:, :public_classes].mean(1, keepdim=True)
    new.weight[:, classes] = old.weight[:, public_classes]
    denoiser.encoder_hid_proj = new
    denoiser.register_to_config(encoder_hid_dim=classes + 1)
