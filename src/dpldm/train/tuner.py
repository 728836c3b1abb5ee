"""What is tuned: parameters, their optimizer and their average, and the network that they belong to."""

from collections.abc import Mapping

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from dpldm.config import OptimizerConfig, RunConfig
from dpldm.models.autoencoder import tile
from dpldm.models.backbone import Backbone
from dpldm.models.lightening import halve_frozen, recompute_activations
from dpldm.models.public_classes import adapt
from dpldm.models.trainable import choose_trainable
from dpldm.privacy.ledger import Head
from dpldm.privacy.plan import PrivacyPlan
from dpldm.progress import OnProgress, unseen
from dpldm.run import Run, bytes_of_latents
from dpldm.train.checkpoint import optimizer_tensors, restore_optimizer, save_checkpoint
from dpldm.train.made_up import made_up_losses
from dpldm.train.memory import bytes_of, free_memory, pass_cost, rows_that_fit
from dpldm.train.optimizer import CorrectedAdam, averaged
from dpldm.train.portraits import Portraits
from dpldm.train.schedule import rate
from dpldm.train.warm_start import warm_start


class Learner:
    """Parameters with their optimizer and averaged weights: all of it a function of noised gradients.

    Args:
        trainable: name -> parameter, the ones that the mechanism clips.
        backbone_digest: identity of the public weights that they are trained on top of.
    """

    def __init__(
        self,
        trainable: dict[str, nn.Parameter],
        backbone_digest: str,
        settings: OptimizerConfig,
        plan: PrivacyPlan,
    ) -> None:
        self.trainable, self.backbone_digest = trainable, backbone_digest
        self.settings, self.steps = settings, plan.steps
        self.optimizer = self._adam(plan.noise_multiplier / plan.expected_batch_size)
        self.average = averaged(self.settings.average, self._parameters, self.settings.ema_decay)
        self.updates = 0

    def _adam(self, noise_deviation: float) -> torch.optim.Adam:
        settings = self.settings
        rate, betas = settings.learning_rate, (settings.adam_beta1, settings.adam_beta2)
        if settings.noise_correction:
            return CorrectedAdam(self._parameters, rate, betas, noise_deviation)
        return torch.optim.Adam(self._parameters, lr=rate, betas=betas)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self.trainable.values())

    def update(self, gradient: Mapping[str, Tensor]) -> None:
        """One step of Adam, then one step of the average."""
        settings = self.settings
        factor = rate(settings.decay, self.updates, self.steps, settings.warmup_steps)
        self.optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
        for name, parameter in self.trainable.items():
            parameter.grad = gradient[name].to(parameter.device)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.step(self._parameters)
        self.updates += 1

    def save(self, run: Run, plan: PrivacyPlan, head: Head) -> None:
        """Checkpoint after every update, so that a kill costs at most the attempt under way."""
        names = list(self.trainable)
        groups = {
            "network": dict(self.trainable),
            "average": dict(zip(names, self.average.shadow_params, strict=True)),
            "optimizer": optimizer_tensors(self.optimizer, names),
        }
        facts = {
            "plan": plan.digest(),
            "backbone": self.backbone_digest,
            "updates": self.updates,
            "average_step": self.average.optimization_step,
            "head": [head.seq, head.hash],
        }
        save_checkpoint(run.checkpoint, groups, facts)

    def load(self, groups: Mapping[str, Mapping[str, Tensor]], updates: int, average_step: int) -> None:
        """Put back what `save` wrote."""
        names = list(self.trainable)
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(groups["network"][name])
        self.average.shadow_params = [groups["average"][name].to(p.device) for name, p in self.trainable.items()]
        self.average.optimization_step = average_step
        restore_optimizer(self.optimizer, names, groups["optimizer"])
        self.updates = updates


class Tuner(Learner):
    """The tuned network."""

    def __init__(self, backbone: Backbone, config: RunConfig, plan: PrivacyPlan) -> None:
        adapt(backbone.denoiser, config)
        self.network: nn.Module = backbone.denoiser.eval()
        trainable = choose_trainable(self.network, config.trainable, embedder=config.tune_embedder)
        super().__init__(trainable, backbone.digest, config.optimizer, plan)
        if config.runtime.gradient_checkpointing:
            recompute_activations(self.network)
        given = config.runtime.physical_batch_size
        self.rows_at_once = 1 if given == "auto" else given

    def settle(self, backbone: Backbone, config: RunConfig, plan: PrivacyPlan) -> None:
        """Take as little memory as `runtime` asks, and as many examples into a pass as fit if it says so. Not before
        the checks at set-up, which compare gradients in float32.

        Raises:
            UserError: the network or the autoencoder cannot do so.
        """
        runtime = config.runtime
        if runtime.frozen_dtype == "bfloat16":
            halve_frozen(self.network)
        if runtime.tiling:
            tile(backbone.autoencoder)
        if runtime.physical_batch_size == "auto":
            cost = pass_cost(self.network, self.trainable, plan, made_up_losses(backbone, config, plan))
            device = next(self.network.parameters()).device
            latents = plan.records * plan.images_per_unit * bytes_of_latents(config) if device.type == "cpu" else 0
            beside = 2 * bytes_of(self._parameters) + latents
            self.rows_at_once = rows_that_fit(cost, beside, free_memory(device), plan.expected_batch_size)

    def start_from(self, portraits: Portraits, scheduler: DDPMScheduler, on_progress: OnProgress = unseen) -> None:
        """Learn what noised answers say of the classes, before the first update."""
        warm_start(self.network, self.trainable, scheduler, portraits, self.settings, on_progress)
        self.average = averaged(self.settings.average, self._parameters, self.settings.ema_decay)
