"""A denoiser's noise schedule and loss, the same for every family; and, by these names too, the family that
`dpldm pretrain` makes (families/class_token.py)."""

from diffusers import DDPMScheduler
from torch import Tensor, nn

from dpldm.models.families import family_of
from dpldm.models.families.class_token import adapt_to_labels, build_denoiser, class_count, condition
from dpldm.models.lightening import computing

__all__ = ["adapt_to_labels", "build_denoiser", "build_scheduler", "class_count", "condition", "denoising_losses"]


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

    latents and noise are (N, c, h, w), timesteps (N,) integers, context what the denoiser's family calls its condition.
    `min_snr` is the gamma of min-SNR weighting; None weighs all timesteps alike.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    with computing(denoiser):
        prediction = family_of(denoiser).predict(denoiser, noisy, timesteps, context)
    target = _target(scheduler, latents, noise, timesteps)
    losses: Tensor = (prediction.float() - target).square().flatten(1).mean(1)
    return losses if min_snr is None else losses * _min_snr_weights(scheduler, timesteps, min_snr)


def _target(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the schedule says the network predicts, (N, c, h, w)."""
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    return latents if kind == "sample" else noise


def _min_snr_weights(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) as a weight of the clean latent's error (Hang et al. 2023, sec. 3.4), carried over to the error
    of what is predicted: over SNR for the noise, over SNR + 1 for the velocity, as it is for the clean latent; (N,)."""
    kept: Tensor = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    ratio = kept / (1 - kept)
    kind, weights = scheduler.config.prediction_type, ratio.clamp(max=gamma)
    return weights if kind == "sample" else weights / (ratio + (kind == "v_prediction"))
