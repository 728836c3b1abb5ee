"""`plan`: what a run will cost in privacy, time and memory, before anything is spent and without opening an image."""

import math
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn

from dpldm.config import RunConfig
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.models.autoencoder import decode, encode, images_at_once, latent_shape
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.models.choices import attention_modules
from dpldm.models.public_classes import adapt
from dpldm.models.trainable import choose_trainable
from dpldm.outlook import Outlook, Start, outlook, outlook_of_portraits
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.queries import CERTAIN
from dpldm.privacy.questions import ClassMeans
from dpldm.privacy.selection import SelectionPlan, trial_of
from dpldm.run import bytes_of_latents, latent_entries, paid_plan, plan_of
from dpldm.sampling import Sampler
from dpldm.train.checks import check_fit, check_images
from dpldm.train.made_up import made_up_losses
from dpldm.train.memory import (
    ALLOCATOR,
    NOISE,
    Memory,
    PassCost,
    bytes_of,
    free_memory,
    free_of_machine,
    memory_of_spreads,
    pass_cost,
    peak_of,
    resident,
    rows_that_fit,
)
from dpldm.train.tuner import Tuner

IMAGES_OF_A_PERSON = (2, 5, 10)
"""For so many images of one person `plan` shows what epsilon for one image is worth."""

FILLED_CELLS = 20
"""Public classes that hold most of a class, a guess. With 6,000 images a class and noise 10, each of ten letters or
animals is surely found in 40 to 50 of grey32's 256."""

ROWS_TO_TIME = 16
"""Images that are drawn to see how long it takes."""

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
    trainable_parameters: int  # 0 if nothing is tuned
    total_parameters: int
    noise_to_signal: float | None
    """sigma * sqrt(P) / L: norm of the noise in a step over the largest norm that the mean gradient could have. None if
    nothing is tuned."""
    noise_in_means: float | None
    """Norm of the noise in the mean latent of a class of average size, in units of R; None if means are not asked."""
    seconds: float | None
    """Fine-tuning on this machine, on average over the number of trials, or encoding and asking where nothing is tuned;
    None if not timed."""
    images_to_draw: int
    seconds_of_drawing: float | None  # all of them, on this machine; None if not timed
    rows_at_once: int  # examples in a pass
    memory_bytes: int | None  # at the peak of fine-tuning, or of encoding and asking; None if not measured
    outlook: Outlook  # whether plans like it learnt
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        paid = self.plan if self.selection is None else self.selection
        apart = ("plan", "selection", "outlook")
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
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
        UserError: a constant is missing or out of range, the backbone does not fit, or nothing is tuned.
    """
    if config.method == "portraits":
        raise UserError("method: portraits tunes nothing, so there is nothing to choose: leave out --choices.")
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
        timed: run passes on random latents: of one and of two examples for the memory, of a whole physical batch, or
            as much of it as fits, for the duration; and draw some images by a few steps.

    Raises:
        UserError: a constant is missing or out of range, or the backbone does not fit.
    """
    if config.method == "portraits":
        return _plan_of_portraits(config, timed)
    paid, before = paid_plan(config), resident()
    constants, selection = trial_of(paid), paid if isinstance(paid, SelectionPlan) else None
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    check_fit(config, backbone)
    tuner = Tuner(backbone, config, constants)
    total = sum(p.numel() for p in tuner.network.parameters())
    tuned = sum(p.numel() for p in tuner.trainable.values())
    ratio, warnings = _noise_to_signal(constants, tuned), _warnings(config, constants)
    per_example, per_drawn, peak = None, None, None
    to_draw = _images_to_draw(config)
    if timed:
        per_drawn = _seconds_of_an_image(config, backbone, tuner.network)  # in float32, as it will be
        tuner.settle(backbone, config, constants)
        memory = predicted_memory(config, constants, backbone, tuner, before)
        peak, free = memory.peak(tuner.rows_at_once), free_memory(next(tuner.network.parameters()).device)
        rows = min(tuner.rows_at_once, rows_that_fit(memory.a_pass, 0, free, constants.expected_batch_size))
        per_example = _seconds_of_an_example(config, constants, backbone, tuner, rows)
        if peak > resident() + free:
            warnings.append(
                f"Fine-tuning is predicted to take {peak / 1e9:.1f} GB, more than is free here: set "
                "runtime.physical_batch_size to auto, or see runtime.frozen_dtype and gradient_checkpointing."
            )
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
        noise_in_means=_noise_in_means(config, constants),
        seconds=None if per_example is None else per_example * examples,
        images_to_draw=to_draw,
        seconds_of_drawing=None if per_drawn is None else per_drawn * to_draw,
        rows_at_once=tuner.rows_at_once,
        memory_bytes=peak,
        outlook=_outlook(config, constants, ratio),
        warnings=warnings,
    )


def _plan_of_portraits(config: RunConfig, timed: bool) -> Forecast:
    """The forecast where nothing is tuned.

    Raises:
        UserError: see `plan`.
    """
    constants, before = plan_of(config), resident()
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    check_images(config, backbone)
    to_draw, per_asked, per_drawn = _images_to_draw(config), None, None
    if timed:
        per_asked, per_drawn = _seconds_of_a_record(config, backbone), _seconds_of_decoding(config, backbone)
    images = constants.records * constants.images_per_unit
    return Forecast(
        plan=constants,
        selection=None,
        epsilon_curve=constants.epsilon_curve(),
        epsilon=constants.stated_epsilon(),
        epsilon_replace_one=constants.stated_epsilon(Adjacency.REPLACE_ONE),
        epsilon_of_person=_of_person(constants),
        epsilon_of_queries=constants.epsilon_after(0),
        trainable_parameters=0,
        total_parameters=sum(p.numel() for p in backbone.denoiser.parameters()),
        noise_to_signal=None,
        noise_in_means=_noise_in_means(config, constants),
        seconds=None if per_asked is None else per_asked * images,
        images_to_draw=to_draw,
        seconds_of_drawing=None if per_drawn is None else per_drawn * to_draw,
        rows_at_once=1,
        memory_bytes=None if not timed else _memory_of_portraits(config, constants, backbone, before),
        outlook=outlook_of_portraits(
            constants.records,
            constants.queries[0].noise_multiplier,
            config.privacy.class_parts,
            len(config.data.labels),
        ),
        warnings=_warnings(config, constants),
    )


def _images_to_draw(config: RunConfig) -> int:
    return math.ceil(sum(config.sampling.label_counts or (config.sampling.count,)) / config.sampling.keep)


def _noise_in_means(config: RunConfig, constants: PrivacyPlan) -> float | None:
    """Of a class that is not in parts: see `Forecast`."""
    asked = (question for question in constants.queries if isinstance(question, ClassMeans))
    noise = next((question.noise_multiplier for question in asked), None)
    per_class = constants.records / max(1, len(config.data.labels))
    return None if noise is None else noise * math.sqrt(latent_entries(config)) / per_class


def _seconds_of_a_record(config: RunConfig, backbone: Backbone) -> float:
    """To encode it and to add its square to a covariance, seen on images of no one; the first pass warms up."""
    size, seconds = config.data.image_size, 0.0
    images = np.zeros((min(ROWS_TO_TIME, images_at_once(size)), size, size, config.data.channels), np.uint8)
    for _ in range(2):
        start = time.perf_counter()
        latents = encode(backbone.autoencoder, images).mean.flatten(1).double()
        latents.T @ latents
        seconds = time.perf_counter() - start
    return seconds / len(images)


def _seconds_of_decoding(config: RunConfig, backbone: Backbone) -> float:
    """An image; the first pass warms up."""
    shape, seconds = latent_shape(backbone.autoencoder, config.data.image_size), 0.0
    for _ in range(2):
        start = time.perf_counter()
        decode(backbone.autoencoder, torch.randn(ROWS_TO_TIME, *shape), config.data.image_size)
        seconds = time.perf_counter() - start
    return seconds / ROWS_TO_TIME


def _of_person(constants: PrivacyPlan) -> list[tuple[int, float]]:
    if constants.unit != "image":
        return []
    found = ((images, constants.epsilon_of_several(images)) for images in IMAGES_OF_A_PERSON)
    return [(images, value) for images, value in found if value is not None]


def _noise_to_signal(constants: PrivacyPlan, tuned: int) -> float:
    return constants.noise_multiplier * math.sqrt(tuned) / constants.expected_batch_size


def predicted_memory(
    config: RunConfig, constants: PrivacyPlan, backbone: Backbone, tuner: Tuner, before: int
) -> Memory:
    """What each phase of fine-tuning takes (see train/memory.py), from two passes and one encoded image.

    Args:
        before: bytes that the process held before the backbone was loaded.
    """
    device, images = next(tuner.network.parameters()).device, constants.records * constants.images_per_unit
    cost = pass_cost(tuner.network, tuner.trainable, constants, made_up_losses(backbone, config, constants))
    network, tuned = (bytes_of(tensors) for tensors in (tuner.network.parameters(), tuner.trainable.values()))
    whole = 4 * sum(parameter.numel() for parameter in tuner.network.parameters())  # before it is made lighter
    weights = network + bytes_of(backbone.autoencoder.parameters())
    largest = max(parameter.numel() for parameter in tuner.trainable.values())
    program = max(before, resident() - weights - tuned) if device.type == "cpu" else 0

    def peak(*parts: int) -> int:
        return program + int(ALLOCATOR * (weights + tuned + sum(parts)))

    latents = images * bytes_of_latents(config)
    return Memory(
        loading=program + 2 * whole if device.type == "cpu" else 0,
        checks=peak(whole - network, 5 * tuned, cost.of(3) * whole // network),  # in float32
        encoding=peak(latents, _bytes_of_encoding(config, constants, backbone)),
        asking=peak(latents, _bytes_of_asking(config, constants)) if device.type == "cpu" else 0,
        update=peak(5 * tuned, NOISE * largest),
        before_a_pass=peak(2 * tuned, latents),
        a_pass=PassCost(int(ALLOCATOR * cost.first), int(ALLOCATOR * cost.further)),
    )


def _memory_of_portraits(config: RunConfig, constants: PrivacyPlan, backbone: Backbone, before: int) -> int:
    """What encoding and asking take at their peak; see `predicted_memory`."""
    weights = bytes_of(backbone.denoiser.parameters()) + bytes_of(backbone.autoencoder.parameters())
    latents = constants.records * constants.images_per_unit * bytes_of_latents(config)
    phase = max(_bytes_of_encoding(config, constants, backbone), _bytes_of_asking(config, constants))
    return max(before, resident() - weights) + int(ALLOCATOR * (weights + latents + phase))


def _bytes_of_asking(config: RunConfig, constants: PrivacyPlan) -> int:
    return memory_of_spreads(constants.queries, constants.noise, len(config.data.labels), latent_entries(config))


def _bytes_of_encoding(config: RunConfig, constants: PrivacyPlan, backbone: Backbone) -> int:
    """The pixels of all records, and what the autoencoder holds of the images that it encodes together."""
    size = config.data.image_size
    image = np.zeros((1, size, size, config.data.channels), np.uint8)
    encoded = peak_of(lambda: encode(backbone.autoencoder, image), chosen_device(config.runtime.device))
    return constants.records * constants.images_per_unit * image.size + encoded * images_at_once(size)


def _seconds_of_an_example(
    config: RunConfig, constants: PrivacyPlan, backbone: Backbone, tuner: Tuner, rows: int
) -> float:
    """In a pass of so many random latents; the first such pass warms up and does not count."""
    losses_of, seconds = made_up_losses(backbone, config, constants), 0.0
    clipping = (constants.max_grad_norm, constants.draws_per_example, constants.clipping)
    with ClippedSum(tuner.network, tuner.trainable, *clipping) as clipped:
        for _ in range(2):
            start = time.perf_counter()
            clipped.accumulate(losses_of(rows))
            clipped.take()  # waits for the device
            seconds = time.perf_counter() - start
    return seconds / rows


def _seconds_of_an_image(config: RunConfig, backbone: Backbone, network: nn.Module) -> float:
    """Drawn from pure noise in a small batch. One solver step and three tell what a step takes and what the decoder
    does; whatever the network is told, and however it was tuned, it takes as long."""
    settings, images = config.sampling, min(config.sampling.batch_size, ROWS_TO_TIME)
    nothing, seconds = torch.full((images,), -1), dict[int, float]()
    for steps in (1, 1, 3):  # the first warms up and does not count
        few = settings.model_copy(update={"steps": steps})
        draw = Sampler(backbone, network, few, config.data.image_size)
        start = time.perf_counter()
        draw(nothing, torch.Generator())  # comes back from the device
        seconds[steps] = time.perf_counter() - start
    per_step = max(0.0, seconds[3] - seconds[1]) / 2
    return (seconds[1] + (settings.steps - 1) * per_step) / images


def _outlook(config: RunConfig, constants: PrivacyPlan, noise_to_signal: float) -> Outlook:
    return outlook(
        constants.records,
        noise_to_signal,
        start_of(config),
        len(config.data.labels),
        public_classes=config.privacy.public_classes_noise is not None,
    )


def start_of(config: RunConfig) -> Start:
    """What tuning starts from, and what images are drawn from where nothing is tuned."""
    if config.method == "portraits":
        return Start.PORTRAITS
    if config.optimizer.warm_start_steps == 0:
        return Start.NOTHING
    return Start.CLASS_MEANS if config.privacy.class_spreads_noise is None else Start.PORTRAITS


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
    error = _noise_in_means(config, constants)
    if error is not None and error > MEANS_TOO_FAR_OFF:
        found.append(
            f"The noise on class means puts the mean latent of a class of {per_class:.0f} records off by about "
            f"{error:.1f} of the norm they are cut to: classes are hardly farther apart."
        )
    asking, free = _bytes_of_asking(config, constants), free_of_machine()
    if free is not None and ALLOCATOR * asking > free:
        found.append(
            f"Covariances of the classes take {ALLOCATOR * asking / 1e9:.1f} GB while they are asked for, more than is "
            "free here: the run will be refused."
        )
    if constants.epsilon > 5:
        found.append(f"Epsilon {constants.epsilon:g} is a weak worst-case promise; 1 is strong.")
    if constants.public_benchmark:
        found.append("Declared a public benchmark: nothing is protected, no cap applies, and the release says so.")
    elif config.privacy.cap is None:
        found.append(
            "privacy.cap is blank: the first run's epsilon and delta are then all that may ever be spent on this data "
            "set. Declare a larger cap before that run if another run or a baseline may follow."
        )
    return found
