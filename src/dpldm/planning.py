"""`plan`: what a run will cost in privacy, time and memory, before anything is spent and without opening an image."""

import math
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from typing import Any

import torch

from dpldm.config import RunConfig
from dpldm.device import chosen_device
from dpldm.models.autoencoder import Posterior, latent_shape
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.models.choices import attention_modules
from dpldm.models.public_classes import adapt
from dpldm.models.trainable import choose_trainable
from dpldm.outlook import Outlook, outlook
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.entropy import SystemEntropy
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.queries import CERTAIN
from dpldm.privacy.selection import SelectionPlan, trial_of
from dpldm.run import latent_entries, paid_plan, plan_of
from dpldm.train.finetune import Tuner, check_fit, example_losses, fresh_draws, stand_ins, timestep_law

IMAGES_OF_A_PERSON = (2, 5, 10)
"""For so many images of one person `plan` shows what epsilon for one image is worth."""

FILLED_CELLS = 20
"""Public classes that hold most of a class, a guess. With 6,000 images a class and noise 10, each of ten letters or
animals is surely found in 40 to 50 of grey32's 256."""

MEANS_TOO_FAR_OFF = 0.25
"""Error of a class's mean latent, in units of its clip norm, above which `plan` warns. For scale: the first ten classes
of the bundled letters, encoded by grey32, have means 0.29 root d apart on average."""


@dataclass(frozen=True)
class Forecast:
    """Everything `plan` shows. Functions of the config and the public backbone."""

    plan: PrivacyPlan  # of a selection, that of each trial
    selection: SelectionPlan | None
    epsilon_curve: list[tuple[int, float]]  # (attempts, epsilon); of a trial alone for a selection
    epsilon: float
    epsilon_replace_one: float
    epsilon_of_person: list[tuple[int, float]]
    """(images, epsilon for all of them together) where the unit is one image and no selection is made."""
    epsilon_of_queries: float  # what the plan's questions alone would cost; part of epsilon
    trainable_parameters: int
    total_parameters: int
    noise_to_signal: float
    """sigma * sqrt(P) / L: norm of the noise in a step over the largest norm that the mean gradient could have."""
    seconds: float | None  # fine-tuning, on this machine, on average over the number of trials; None if not timed
    memory_bytes: int  # weights, gradients, Adam, average and one physical pass, roughly
    outlook: Outlook  # whether plans like it learnt
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        paid = self.plan if self.selection is None else self.selection
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("plan", "selection", "outlook")}
        return {"constants": paid.constants(), **shown, "outlook": asdict(self.outlook)}


@dataclass(frozen=True)
class Choice:
    """What one value of `trainable` would tune."""

    trainable: str
    parameters: int
    share: float  # of all parameters of the denoiser
    noise_to_signal: float  # as `Forecast.noise_to_signal`


def choices(config: RunConfig) -> list[Choice]:
    """Every named choice of `trainable` under the run's plan, with the embedder if `tune_embedder`; opens no image.

    Raises:
        UserError: a constant is missing or out of range, or the backbone does not fit.
    """
    constants, backbone = plan_of(config), load_backbone(config.backbone)
    check_fit(config, backbone)
    network, called = backbone.denoiser, backbone.family.names
    adapt(network, config)
    modules = attention_modules((name for name, _ in network.named_parameters()), called)
    later = [f"attention-from-{number}" for number in range(2, len(modules) + 1)]
    adapters = ["lora-8"] if find_spec("peft") else []
    names = [name for name in (*called.presets, *later, *adapters) if config.tune_embedder or name != "condition"]
    total, found = sum(p.numel() for p in network.parameters()), []
    for name in names:
        chosen = choose_trainable(deepcopy(network), name, embedder=config.tune_embedder)
        tuned = sum(p.numel() for p in chosen.values())
        found.append(Choice(name, tuned, tuned / total, _noise_to_signal(constants, tuned)))
    return found


def plan(config: RunConfig, *, timed: bool = True) -> Forecast:
    """The forecast of a run; opens no image.

    Args:
        timed: run two physical passes on random latents to estimate the duration.

    Raises:
        UserError: a constant is missing or out of range, or the backbone does not fit.
    """
    paid = paid_plan(config)
    constants, selection = trial_of(paid), paid if isinstance(paid, SelectionPlan) else None
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    check_fit(config, backbone)
    tuner = Tuner(backbone, config, constants)
    total = sum(p.numel() for p in tuner.network.parameters())
    tuned = sum(p.numel() for p in tuner.trainable.values())
    ratio = _noise_to_signal(constants, tuned)
    per_example, activations = _measure(config, constants, backbone, tuner) if timed else (None, 0)
    examples = constants.steps * constants.expected_batch_size * (selection.mean_trials if selection else 1)
    return Forecast(
        plan=constants,
        selection=selection,
        epsilon_curve=constants.epsilon_curve(8),
        epsilon=paid.stated_epsilon(),
        epsilon_replace_one=paid.stated_epsilon(Adjacency.REPLACE_ONE),
        epsilon_of_person=_of_person(constants) if selection is None else [],
        epsilon_of_queries=constants.epsilon_after(0),
        trainable_parameters=tuned,
        total_parameters=total,
        noise_to_signal=ratio,
        seconds=None if per_example is None else per_example * examples,
        memory_bytes=4 * (total + 6 * tuned) + activations,
        outlook=_outlook(config, constants, ratio),
        warnings=_warnings(config, constants),
    )


def _of_person(constants: PrivacyPlan) -> list[tuple[int, float]]:
    if constants.unit != "image":
        return []
    found = ((images, constants.epsilon_of_several(images)) for images in IMAGES_OF_A_PERSON)
    return [(images, value) for images, value in found if value is not None]


def _noise_to_signal(constants: PrivacyPlan, tuned: int) -> float:
    return constants.noise_multiplier * math.sqrt(tuned) / constants.expected_batch_size


def _measure(config: RunConfig, constants: PrivacyPlan, backbone: Backbone, tuner: Tuner) -> tuple[float, int]:
    """(seconds per example, bytes of a pass) of a physical batch of random latents."""
    size = min(config.runtime.physical_batch_size, constants.expected_batch_size)
    shape = (size, *latent_shape(backbone.autoencoder, config.data.image_size))
    labels = torch.zeros(size, dtype=torch.int64) - (0 if config.data.labels else 1)
    posterior, usable = Posterior(torch.randn(shape), torch.zeros(shape)), torch.ones(size, dtype=torch.bool)
    stand_in = stand_ins(posterior, labels, usable, tuner.network)
    rows, entropy = torch.arange(size), SystemEntropy()
    bytes_saved = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal bytes_saved
        bytes_saved += tensor.numel() * tensor.element_size()
        return tensor

    clipping = (constants.max_grad_norm, constants.draws_per_example, constants.clipping)
    with ClippedSum(tuner.network, tuner.trainable, *clipping) as clipped:

        def step() -> None:
            timesteps = timestep_law(backbone.scheduler, config.optimizer)
            draws = fresh_draws(size, constants.draws_per_example, torch.Size(shape[1:]), timesteps, 0.1, entropy)
            clipped.accumulate(example_losses(tuner.network, backbone.scheduler, stand_in, rows, draws))
            clipped.take()  # waits for the device

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            step()
        start = time.perf_counter()
        step()
        return (time.perf_counter() - start) / size, bytes_saved


def _outlook(config: RunConfig, constants: PrivacyPlan, noise_to_signal: float) -> Outlook:
    return outlook(
        constants.records,
        noise_to_signal,
        starts_from_means(config),
        len(config.data.labels),
        public_classes=config.privacy.public_classes_noise is not None,
    )


def starts_from_means(config: RunConfig) -> bool:
    """Whether tuning starts from noised class means."""
    return config.optimizer.warm_start_steps > 0


def _warnings(config: RunConfig, constants: PrivacyPlan) -> list[str]:
    found = []
    if config.data.group_column and constants.unit == "image":
        found.append(
            "The guarantee is per image: a person with several images is protected much less than epsilon says. "
            "Set privacy.unit: group to protect all images of a group together."
        )
    per_class = constants.records / max(1, len(config.data.labels))
    if (noise := config.privacy.histogram_noise) is not None:
        if noise > per_class / 4:
            found.append(
                f"privacy.histogram_noise {noise:g} is large beside {per_class:.0f} records per class: the frequencies "
                "of the classes will be mostly noise."
            )
        if config.sampling.label_counts is not None:
            found.append("privacy.histogram_noise is paid for, and sampling.label_counts is used in its place.")
    if (noise := config.privacy.public_classes_noise) is not None and CERTAIN * noise > per_class / FILLED_CELLS:
        found.append(
            f"privacy.public_classes_noise {noise:g} hides what fewer than {CERTAIN * noise:.0f} images resemble, and "
            f"there are {per_class:.0f} to a class: most of its variety will not be drawn."
        )
    if (noise := config.privacy.class_means_noise) is not None:
        error = noise * math.sqrt(latent_entries(config)) / per_class  # norm of the noise in a mean, in units of R
        if error > MEANS_TOO_FAR_OFF:
            found.append(
                f"privacy.class_means_noise {noise:g} puts the mean latent of a class of {per_class:.0f} records off "
                f"by about {error:.1f} of the norm they are cut to: classes are hardly farther apart."
            )
    if constants.epsilon > 5:
        found.append(f"Epsilon {constants.epsilon:g} is a weak worst-case promise; 1 is strong.")
    if constants.public_benchmark:
        found.append("Declared a public benchmark: nothing is protected, no cap applies, and the release says so.")
    return found
