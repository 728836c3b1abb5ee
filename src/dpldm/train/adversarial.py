"""Stage 1 as the papers do it: L1, a perceptual distance and PatchGAN (Rombach et al. 2022, app. G; Esser et al. 2021).

reconstruction   sum over the entries of an image of |x - y| + w LPIPS(x, y); for a codebook their mean, as there
autoencoder      reconstruction + bottleneck + lambda * d * -mean D(y), from the declared step on
lambda           |gradient of the reconstruction| / (|gradient of the critic's term| + 1e-4), at the last layer
critic           mean of max(0, 1 - D(x)) and max(0, 1 + D(y)), after the autoencoder's update, on the same images
"""

from collections.abc import Mapping
from math import inf
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpldm.models.critic import PatchCritic
from dpldm.models.perceptual import build_perceptual
from dpldm.recipe import AdversarialRecipe, AutoencoderRecipe
from dpldm.train.autoencoder import AutoencoderTraining, reconstructed
from dpldm.train.checkpoint import optimizer_tensors, restore_optimizer

BETAS = (0.5, 0.9)
"""Of Adam, for autoencoder and critic."""
LARGEST_WEIGHT = 1e4


class AdversarialTraining(AutoencoderTraining):
    """Stage 1 over `images`, uint8 (N, S, S, C), by the loss of `recipe.adversarial`.

    Raises:
        UserError: the perceptual network's weights are not there.
    """

    decay: ClassVar[str] = "constant"
    largest_gradient: ClassVar[float] = inf

    def build_beside(self) -> None:
        """The critic and its optimizer; the perceptual network is not trained."""
        settings = self.settings
        self.perceptual = build_perceptual(settings.perceptual, settings.perceptual_weights)
        torch.manual_seed(self.seed)
        width, layers = settings.discriminator_width, settings.discriminator_layers
        self.critic = PatchCritic(self.images.shape[3], width, layers).to(self.device)
        self.critic_names = [name for name, _ in self.critic.named_parameters()]
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=self.recipe.learning_rate, betas=BETAS)

    @property
    def settings(self) -> AdversarialRecipe:
        """Of the loss."""
        if self.recipe.adversarial is None:
            raise ValueError("The recipe declares the light loss.")
        return self.recipe.adversarial

    def build_optimizer(self) -> torch.optim.Optimizer:
        """See `PublicTraining`."""
        return torch.optim.Adam(self.parameters, lr=self.recipe.learning_rate, betas=BETAS)

    @property
    def judged(self) -> bool:
        """Whether the critic has started."""
        return self.done >= self.settings.discriminator_start

    def loss(self, generator: torch.Generator) -> Tensor:
        """See `PublicTraining`."""
        batch = self.batch(generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            reconstruction, cost = reconstructed(self.network, batch, self.recipe.kl_weight, generator)
        self._seen = (batch, reconstruction.detach())
        found = self.reconstruction(reconstruction, batch)
        if not self.judged:
            return found + cost
        unconvincing: Tensor = -self.critic(reconstruction).mean()
        weight = adaptive_weight(found, unconvincing, self.last_layer)
        return found + cost + weight * self.settings.discriminator_weight * unconvincing

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights of the decoder's last convolution."""
        return dict(self.network.named_parameters())["decoder.conv_out.weight"]

    def reconstruction(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """How far reconstructions are from their images, (), mean over the batch."""
        error = (reconstruction - images).abs().flatten(1).mean(1)
        distances = error + self.settings.perceptual_weight * self.perceptual(images, reconstruction)
        whole: Tensor = distances.mean() * (1 if self.recipe.codebook else images[0].numel())
        return whole

    def after_update(self) -> None:
        """One step of the critic, if it has started."""
        if not self.judged:
            return
        real, reconstruction = self._seen
        self.critic_optimizer.zero_grad()
        critic_loss(self.critic(real), self.critic(reconstruction)).backward()  # type: ignore[no-untyped-call]
        self.critic_optimizer.step()

    def beside(self) -> Mapping[str, Mapping[str, Tensor]]:
        """See `PublicTraining`."""
        return {
            "critic": self.critic.state_dict(),
            "critic_optimizer": optimizer_tensors(self.critic_optimizer, self.critic_names),
        }

    def restore_beside(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """See `PublicTraining`."""
        self.critic.load_state_dict(dict(groups["critic"]))
        restore_optimizer(self.critic_optimizer, self.critic_names, groups.get("critic_optimizer", {}))


def adaptive_weight(reconstruction: Tensor, unconvincing: Tensor, last: Tensor) -> Tensor:
    """What the critic's term must weigh to pull at the `last` layer as the reconstruction does (Esser et al., eq. 7).

    All but `last` are losses, (), that depend on it; the graph stays for the backward pass.
    """
    pulls = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, unconvincing)]
    weight: Tensor = (pulls[0] / (pulls[1] + 1e-4)).clamp(max=LARGEST_WEIGHT).detach()
    return weight


def critic_loss(real: Tensor, reconstructed: Tensor) -> Tensor:
    """Hinge loss of the critic's maps of both, (), halved as there."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + reconstructed).mean())


def stage_1(recipe: AutoencoderRecipe) -> type[AutoencoderTraining]:
    """Stage 1 by the loss that the recipe declares, to be made like `AutoencoderTraining`."""
    return AutoencoderTraining if recipe.adversarial is None else AdversarialTraining
