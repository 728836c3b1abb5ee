"""Stage 3: Algorithm 1 of DP-LDM (arXiv 2305.15759). The only place where private images meet a gradient."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from dpldm.config import OptimizerConfig, RunConfig
from dpldm.data.fingerprints import note_fingerprint
from dpldm.data.latents import PrivateLatents, private_latents, private_source
from dpldm.data.prompts import prompts_of
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.models.autoencoder import Posterior, downsampling, latent_shape, tile
from dpldm.models.backbone import Backbone, load_backbone, public_classes_of
from dpldm.models.denoiser import denoising_losses
from dpldm.models.families import family_of
from dpldm.models.lightening import halve_frozen, recompute_activations
from dpldm.models.public_classes import adapt, class_guesses, nearest
from dpldm.models.trainable import choose_trainable
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.entropy import Entropy, SystemEntropy, random_units
from dpldm.privacy.independence import ExamplesMeet, check_example_gradients, check_independence
from dpldm.privacy.layers import UnsupportedModel
from dpldm.privacy.ledger import Budgeted, BudgetExhausted, Head, Ledger, LedgerError, open_ledger
from dpldm.privacy.mechanism import PrivateGradient
from dpldm.privacy.noise import standard_gaussian
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.queries import class_means
from dpldm.privacy.questions import ClassMeans
from dpldm.run import Run, bytes_of_latents, ledger_cap, plan_of, require_same_backbone
from dpldm.train.asking import answered, ask_all
from dpldm.train.checkpoint import load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from dpldm.train.memory import bytes_of, free_memory, pass_cost, rows_that_fit
from dpldm.train.optimizer import CorrectedAdam, averaged
from dpldm.train.schedule import rate
from dpldm.train.timesteps import Timesteps
from dpldm.train.warm_start import warm_start


@dataclass(frozen=True)
class FinetuneStep:
    """What a step shows: functions of the plan and of the number of attempts, nothing else."""

    number: int  # updates done
    steps: int  # T
    attempts: int  # charged so far
    epsilon_spent: float  # upper bound of epsilon after these attempts
    ended_early: bool = False  # the reserve is used up before T updates


def finetune(config: RunConfig) -> Iterator[FinetuneStep]:
    """Tune the backbone on private images under the run's plan. The same call resumes an interrupted run.

    Raises:
        UserError: the settings, the data, the ledger or the checkpoint do not allow the run; nothing was charged.
    """
    if config.selection.learning_rates:
        raise UserError("This config declares a selection: use `dpldm.select`, or leave selection.learning_rates out.")
    run, plan = Run(config), plan_of(config)
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    tuner, latents = prepared(config, plan, backbone)
    cap, declared = ledger_cap(config), config.privacy.cap
    try:
        with open_ledger(run.ledger, plan.dataset_id, cap, declared_cap=declared) as ledger:
            resume(tuner, run, plan, ledger)
            register(plan, ledger, config)
            ask_and_start(tuner, backbone.scheduler, run, plan, ledger, latents, SystemEntropy())
            yield from algorithm_1(tuner, backbone.scheduler, latents, plan, ledger, run, SystemEntropy())
    except LedgerError as error:
        raise UserError(str(error)) from None


def prepared(config: RunConfig, plan: PrivacyPlan, backbone: Backbone) -> tuple["Tuner", PrivateLatents]:
    """Refuse all that can be refused, make the run's folder, read and encode the private images; nothing is charged.

    Raises:
        UserError: the backbone, the settings or the data do not allow the run.
    """
    run = Run(config)
    check_fit(config, backbone)
    run.create()
    tuner = Tuner(backbone, config, plan)
    require_examples_apart(tuner, backbone, config)
    guesses = guesses_of_public_classes(backbone, config)
    tuner.settle(backbone, config, plan)
    latents = private_latents(
        *(config.data, backbone.autoencoder, config.backbone, run.latents),
        tokenize=tokenizer_of(backbone),
        images_per_group=plan.images_per_unit if plan.unit == "group" else None,
        keep=run.started,
    )
    if guesses is not None:
        latents = replace(latents, publics=len(config.data.labels) + nearest(latents.posterior.mean, guesses))
    if plan.most_records is not None and latents.units > plan.most_records:
        raise UserError("There are more records than privacy.most_records declares: raise it.")
    return tuner, latents


def ask_and_start(
    tuner: "Tuner",
    scheduler: DDPMScheduler,
    run: Run,
    plan: PrivacyPlan,
    ledger: Ledger,
    latents: PrivateLatents,
    entropy: Entropy,
) -> None:
    """Ask the plan's questions, and start a tuner that has no update yet from the noised class means, if that is set.

    Raises:
        UserError: see `ask_all`.
    """
    ask_all(run, plan, ledger, latents, len(run.config.data.labels), tuner.backbone_digest, entropy)
    if run.config.optimizer.warm_start_steps and tuner.updates == 0:
        known = answered(ClassMeans, run, plan, ledger, tuner.backbone_digest)
        if known is None:
            raise ValueError("A start from class means, and the plan does not ask for them.")
        means, _ = class_means(*known)
        tuner.start_from(means.float().view(-1, *latents.posterior.mean.shape[1:]), scheduler)


def register(plan: Budgeted, ledger: Ledger, config: RunConfig) -> None:
    """Reserve the plan's budget, and note beside the ledger which state of the data it is spent on."""
    if not ledger.holds(plan):
        note_fingerprint(ledger.path, plan.digest(), private_source(config.data))
        ledger.register(plan)


def algorithm_1(
    tuner: "Tuner",
    scheduler: DDPMScheduler,
    latents: PrivateLatents,
    plan: PrivacyPlan,
    ledger: Ledger,
    run: Run,
    entropy: Entropy,
) -> Iterator[FinetuneStep]:
    """Algorithm 1: T times draw, clip, sum, noise, divide, update."""
    curve = plan.epsilon_curve()
    settings = run.config.optimizer
    shape, timesteps = latents.posterior.mean.shape[1:], timestep_law(scheduler, settings)
    constants = (plan.max_grad_norm, plan.draws_per_example, plan.clipping)
    with ClippedSum(tuner.network, tuner.trainable, *constants) as clipped:
        mechanism = PrivateGradient(plan, ledger, clipped, latents.units, entropy)
        while tuner.updates < plan.steps:
            try:
                batch = mechanism.draw()  # charge the ledger, then sample each unit with probability q
            except BudgetExhausted:
                yield shown(tuner, plan, ledger, curve, ended_early=True)
                return
            for records, weights in latents.passes(batch, tuner.rows_at_once):  # none if empty
                of_batch = (records.numel(), plan.draws_per_example, shape)
                draws = fresh_draws(*of_batch, timesteps, settings.label_dropout, entropy)
                losses = example_losses(
                    tuner.network, scheduler, latents, records.flatten(), draws, min_snr=settings.min_snr
                )
                weights = weights.to(losses.device)
                of_units = (losses.view_as(weights) * weights).sum(1)  # one gradient per unit: the mean over its images
                mechanism.accumulate(of_units, weights.any(1), records.shape[1])  # clip each unit's to C, add
            tuner.update(mechanism.release())  # add N(0, sigma^2 C^2 I), divide by L C; Adam, average
            tuner.save(run, plan, ledger.head)
            yield shown(tuner, plan, ledger, curve)


@dataclass(frozen=True)
class Draws:
    """The randomness of B records with K draws each; example-major, so the K rows of a record are neighbours."""

    latent: Tensor  # (B K, c, h, w) standard Gaussian: which latent of its posterior a record shows
    noise: Tensor  # (B K, c, h, w) standard Gaussian: what the network must find
    timestep: Tensor  # (B K,) int64 in [0, timesteps)
    null: Tensor  # (B,) bool: the label is hidden, for guidance; the same for all draws of a record


def timestep_law(scheduler: DDPMScheduler, settings: OptimizerConfig) -> Timesteps:
    """Which timesteps of the backbone's noise schedule are trained on, and how often."""
    return Timesteps(int(scheduler.config.num_train_timesteps), settings.timesteps)


def fresh_draws(
    records: int, draws: int, shape: torch.Size, timesteps: Timesteps, label_dropout: float, entropy: Entropy
) -> Draws:
    """Draws for one physical pass, every value from entropy of its own.

    A seeded generator would not do: its few possible streams are shared by all records of a pass, so one record more
    would change everybody's draws, and the clipped sum by far more than C (docs/privacy.md, step 2).
    """
    rows = records * draws

    def gaussian() -> Tensor:
        return standard_gaussian(rows * shape.numel(), entropy).float().view(rows, *shape)

    return Draws(
        latent=gaussian(),
        noise=gaussian(),
        timestep=timesteps.at(random_units(rows, entropy)),
        null=random_units(records, entropy) < label_dropout,
    )


def example_losses(
    network: nn.Module,
    scheduler: DDPMScheduler,
    latents: PrivateLatents,
    rows: Tensor,
    draws: Draws,
    *,
    min_snr: float | None = None,
) -> Tensor:
    """Loss of each record of `rows`, (B,): the mean over its K draws of (latent, timestep, noise).

    Latents and draws are on the CPU; the rows of this pass are moved to the network's device.
    """
    device, each = next(network.parameters()).device, len(draws.timestep) // max(1, len(rows))
    repeated = rows.repeat_interleave(each)
    samples = Posterior(latents.posterior.mean[repeated], latents.posterior.log_variance[repeated]).at(draws.latent)
    context = told(network, latents, rows, draws.null).repeat_interleave(each, 0)
    inputs = [tensor.to(device) for tensor in (samples, context, draws.timestep, draws.noise)]
    losses = denoising_losses(network, scheduler, *inputs, min_snr=min_snr)
    return losses.view(-1, each).mean(1)


def told(network: nn.Module, latents: PrivateLatents, rows: Tensor, hidden: Tensor) -> Tensor:
    """What the network is told about each record, as its family's condition: the label, perhaps with a public class, or
    the caption; or that there is none, where it is `hidden` (B,) or the record has no label."""
    family, labels = family_of(network), latents.labels[rows]
    null = family.null(network)
    if latents.publics is not None:
        publics = latents.publics[rows]
        pairs = torch.stack([torch.where(labels < 0, publics, labels), publics], 1)
        return family.condition(network, torch.where(hidden[:, None], null, pairs))
    if latents.tokens is None:
        return family.condition(network, torch.where(hidden | (labels < 0), null, labels))
    return family.condition(network, torch.where(hidden[:, None], null, latents.tokens[rows]))


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
            cost = pass_cost(self.network, self.trainable, plan, made_up_losses(self, backbone, config, plan))
            device = next(self.network.parameters()).device
            latents = plan.records * plan.images_per_unit * bytes_of_latents(config) if device.type == "cpu" else 0
            beside = 2 * bytes_of(self._parameters) + latents
            self.rows_at_once = rows_that_fit(cost, beside, free_memory(device), plan.expected_batch_size)

    def start_from(self, means: Tensor, scheduler: DDPMScheduler) -> None:
        """Tell classes apart by their noised mean latents, (K, c, h, w), before the first update."""
        warm_start(self.network, self.trainable, scheduler, means, self.settings.warm_start_steps)


def resume(tuner: Learner, run: Run, plan: PrivacyPlan, ledger: Ledger) -> None:
    """Continue from the run's checkpoint, if there is one and the ledger vouches for it.

    Raises:
        UserError: the checkpoint belongs to another plan, to other public weights, or to a ledger that is not this one;
            or it is gone.
    """
    if not run.checkpoint.exists():
        require_nothing_lost(run, plan, ledger)
        return
    groups, facts = load_checkpoint(run.checkpoint, paid_for=True)
    if facts["plan"] != plan.digest():
        raise UserError(
            f"The run {run.config.name!r} was started under another privacy plan: give this run a new name, or "
            "restore the privacy settings it was started with."
        )
    require_same_backbone(tuner.backbone_digest, facts, run)
    if not ledger.contains(Head(*facts["head"])):
        raise UserError(
            f"The ledger {run.ledger.name} does not contain the attempts of this run's checkpoint (it was cut, "
            "replaced or forked): restore the ledger from a copy."
        )
    tuner.load(groups, facts["updates"], facts["average_step"])


def require_nothing_lost(run: Run, plan: PrivacyPlan, ledger: Ledger) -> None:
    """Refuse to start anew when too few attempts are left for T updates: the run's folder must be somewhere.

    Raises:
        UserError: more attempts than the reserve are charged, and the run has no checkpoint.
    """
    charged = ledger.attempts(plan)
    if charged > plan.reserve_steps:
        raise UserError(
            f"The ledger holds {charged} attempts of the run {run.config.name!r}, but {run.directory} has no "
            "checkpoint of them: put the run's folder back, correct runtime.output, or give this run a new name and "
            "pay for it again."
        )


def check_fit(config: RunConfig, backbone: Backbone) -> None:
    """Refuse a backbone that is not public, that cannot hold the images, or cannot be told what they are told by.

    Raises:
        UserError: see `check_images`; or it is told something else, or nothing.
    """
    check_images(config, backbone)
    require_condition(config, backbone)


def check_images(config: RunConfig, backbone: Backbone) -> None:
    """Refuse a backbone that is not public, and images that it cannot hold.

    Raises:
        UserError: it was itself tuned on private images, or channels or size do not fit.
    """
    data = config.data
    if "tuned" in backbone.provenance:
        raise UserError(
            f"The backbone {backbone.name} was itself tuned on private images, and this run's guarantee would not "
            "count what that has cost: use a public backbone."
        )
    if data.channels != backbone.channels:
        raise UserError(
            f"data.channels is {data.channels}, the backbone {backbone.name} has {backbone.channels}: change one."
        )
    require_size(data.image_size, backbone)


def require_size(size: int, backbone: Backbone) -> None:
    """Refuse an image size that the backbone cannot draw.

    Raises:
        UserError: it cannot; says which it can.
    """
    factor, family = downsampling(backbone.autoencoder), backbone.family
    made_for = family.latent_side(backbone.denoiser) * factor
    if family.side == "free":
        if size % factor:
            raise UserError(
                f"data.image_size is {size}, and the autoencoder of {backbone.name} needs a multiple of {factor}: "
                f"choose {size - size % factor} or {size - size % factor + factor} (it was made for {made_for})."
            )
        return
    smallest = made_for - factor + 1 if family.side == "padded" else made_for
    if not smallest <= size <= made_for:
        sizes = f"{smallest} to {made_for}" if smallest < made_for else f"exactly {made_for}"
        raise UserError(
            f"data.image_size is {size}, the backbone {backbone.name} takes {sizes} pixels: "
            "change data.image_size (images are resized to it) or use another backbone."
        )


def require_condition(config: RunConfig, backbone: Backbone) -> None:
    """Refuse labels, captions and prompts that the backbone cannot be told.

    Raises:
        UserError: it is told something else, or nothing.
    """
    family, data = backbone.family, config.data
    if data.caption_column is not None and family.told != "captions":
        raise UserError(
            f"data.caption_column is set, and the backbone {backbone.name} is told {family.told}: leave it out, or use "
            "a backbone that is told captions, such as a Stable Diffusion."
        )
    if data.labels and family.told == "nothing":
        raise UserError(
            f"data.labels is set, and the backbone {backbone.name} is told nothing: leave it out, or use a backbone "
            "that is told classes or captions."
        )
    if config.optimizer.warm_start_steps and family.told != "classes":
        raise UserError(
            "optimizer.warm_start_steps trains the rows of a class embedder, and the backbone "
            f"{backbone.name} has none: leave it out."
        )
    prompts_of(config)


def tokenizer_of(backbone: Backbone) -> Callable[[Sequence[str]], Tensor] | None:
    """Captions to ids (N, T), for a backbone that is told captions."""
    family = backbone.family
    return partial(family.tokens, backbone.denoiser) if family.told == "captions" else None


def guesses_of_public_classes(backbone: Backbone, config: RunConfig) -> Tensor | None:
    """The public network's guess of each public class, (C, c, h, w), if it is told them; else None.

    Args:
        backbone: adapted to the config, not tuned yet, and in float32: what is nearest must not depend on `runtime`.
    """
    if config.privacy.public_classes_noise is None:
        return None
    first = len(config.data.labels)
    ids = torch.arange(first, first + public_classes_of(config.backbone))
    shape = torch.Size(latent_shape(backbone.autoencoder, config.data.image_size))
    return class_guesses(backbone.denoiser, backbone.scheduler, ids, shape)


def stand_ins(posterior: Posterior, labels: Tensor, usable: Tensor, network: nn.Module) -> PrivateLatents:
    """Made-up records for checks and timing; where captions are told, all have the empty one."""
    family = family_of(network)
    tokens = family.null(network).expand(len(labels), -1) if family.told == "captions" else None
    return PrivateLatents(posterior, labels, usable, tokens=tokens)


def made_up_losses(
    tuner: Tuner, backbone: Backbone, config: RunConfig, plan: PrivacyPlan, entropy: Entropy | None = None
) -> Callable[[int], Tensor]:
    """Losses (B,) of B made-up records: what a pass takes is seen on them."""
    shape = torch.Size(latent_shape(backbone.autoencoder, config.data.image_size))
    timesteps, source = timestep_law(backbone.scheduler, config.optimizer), entropy or SystemEntropy()

    def losses(records: int) -> Tensor:
        labels = torch.zeros(records, dtype=torch.int64) - (0 if config.data.labels else 1)
        mean = torch.randn(records, *shape)
        made_up = stand_ins(Posterior(mean, torch.zeros_like(mean)), labels, labels >= -1, tuner.network)
        draws = fresh_draws(records, plan.draws_per_example, shape, timesteps, 0.1, source)
        return example_losses(tuner.network, backbone.scheduler, made_up, torch.arange(records), draws)

    return losses


def require_examples_apart(tuner: Tuner, backbone: Backbone, config: RunConfig) -> None:
    """Try random examples: what the clipping bounds is only an example's own gradient.

    Raises:
        UserError: the network lets examples of a batch meet, or has layers whose gradients cannot be clipped.
    """
    shape = torch.Size(latent_shape(backbone.autoencoder, config.data.image_size))
    draws = fresh_draws(3, 1, shape, timestep_law(backbone.scheduler, config.optimizer), 0.0, SystemEntropy())
    labels = torch.zeros(3, dtype=torch.int64) - (0 if config.data.labels else 1)

    def losses_of(means: Tensor) -> Tensor:
        posterior, some = Posterior(means, torch.zeros_like(means)), labels[: len(means)]
        made_up = stand_ins(posterior, some, some >= -1, tuner.network)
        fixed = Draws(**{name: value[: len(means)] for name, value in vars(draws).items()})
        return example_losses(tuner.network, backbone.scheduler, made_up, torch.arange(len(means)), fixed)

    examples, others = torch.randn(3, *shape), torch.randn(2, *shape)
    try:
        check_independence(losses_of, examples[:2], others, list(tuner.trainable.values()))
        check_example_gradients(tuner.network, tuner.trainable, losses_of, examples)
    except (ExamplesMeet, UnsupportedModel) as error:
        raise UserError(f"The backbone {backbone.name} cannot be tuned privately. {error}") from None


def shown(
    tuner: Learner, plan: PrivacyPlan, ledger: Ledger, curve: list[tuple[int, float]], ended_early: bool = False
) -> FinetuneStep:
    """What an update lets out. `curve` is the plan's `epsilon_curve`."""
    attempts = ledger.attempts(plan)
    spent = next(value for number, value in curve if number >= attempts)  # the next point above: never too small
    return FinetuneStep(tuner.updates, plan.steps, attempts, spent, ended_early)
