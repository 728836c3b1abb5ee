"""Made-up records, nobody's: on them is seen what a pass takes, and that a network keeps its examples apart."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.models.autoencoder import Posterior, latent_shape
from dpldm.models.backbone import Backbone
from dpldm.models.families import family_of
from dpldm.privacy.entropy import Entropy, SystemEntropy
from dpldm.privacy.plan import PrivacyPlan
from dpldm.train.example_losses import example_losses, fresh_draws, timestep_law


def stand_ins(posterior: Posterior, labels: Tensor, usable: Tensor, network: nn.Module) -> PrivateLatents:
    """Made-up records for checks and timing; where captions are told, all have the empty one."""
    family = family_of(network)
    tokens = family.null(network).expand(len(labels), -1) if family.told == "captions" else None
    return PrivateLatents(posterior, labels, usable, tokens=tokens)


def made_up_records(means: Tensor, backbone: Backbone, config: RunConfig) -> PrivateLatents:
    """Records whose latents are exactly `means` (B, c, h, w), all of the first class if there are classes."""
    labels = torch.full((len(means),), 0 if config.data.labels else -1)
    return stand_ins(Posterior(means, torch.zeros_like(means)), labels, labels >= -1, backbone.denoiser)


def made_up_losses(
    backbone: Backbone, config: RunConfig, plan: PrivacyPlan, entropy: Entropy | None = None
) -> Callable[[int], Tensor]:
    """Losses (B,) of B made-up records under the backbone's network: what a pass takes is seen on them."""
    shape = torch.Size(latent_shape(backbone.autoencoder, config.data.image_size))
    timesteps, source = timestep_law(backbone.scheduler, config.optimizer), entropy or SystemEntropy()

    def losses(records: int) -> Tensor:
        made_up = made_up_records(torch.randn(records, *shape), backbone, config)
        draws = fresh_draws(records, plan.draws_per_example, shape, timesteps, 0.1, source)
        return example_losses(backbone.denoiser, backbone.scheduler, made_up, torch.arange(records), draws)

    return losses
