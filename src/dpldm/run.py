"""A run on disk: its folders, its resolved config, its plan and its ledger's place.

runs/NAME/  config.resolved.yaml
            private/   0700: latents of the private images, checkpoint, logs, internal metrics
            synthetic/ images as they are drawn
            release/   what may leave
"""

import math
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from platformdirs import user_data_path

from dpldm.config import PrivacyConfig, RunConfig
from dpldm.errors import UserError
from dpldm.models.backbone import bytes_of_network, latent_entries_of, public_classes_of
from dpldm.privacy.durable import replace_file
from dpldm.privacy.plan import PrivacyPlan, asking_alone, calibrated, default_reserve
from dpldm.privacy.questions import (
    CandidateScores,
    ClassHistogram,
    ClassMeans,
    ClassSpreads,
    PublicClassHistogram,
    Question,
)
from dpldm.privacy.selection import Plan, make_selection, trial_of


@dataclass(frozen=True)
class Run:
    """Paths of one run."""

    config: RunConfig

    @property
    def directory(self) -> Path:
        """runs/NAME."""
        return self.config.runtime.output / self.config.name

    @property
    def private(self) -> Path:
        """INTERNAL: nothing in here may be published."""
        return self.directory / "private"

    @property
    def checkpoint(self) -> Path:
        """Tuned weights, averages and optimizer state: functions of noised gradients."""
        return self.private / "finetune.safetensors"

    @property
    def answers(self) -> Path:
        """Folder of the noised answers to the plan's questions."""
        return self.private / "answers"

    @property
    def selection(self) -> Path:
        """Folder of a selection under way: how many trials there are, the best so far, and the current one."""
        return self.private / "selection"

    @property
    def trials(self) -> Path:
        """The drawn trials of a selection, and how far it is."""
        return self.selection / "trials.json"

    @property
    def started(self) -> bool:
        """Whether settings and images are bound: by an answer, an update, or a selection's draw."""
        return self.checkpoint.exists() or self.trials.exists() or any(self.answers.glob("*.safetensors"))

    @property
    def latents(self) -> Path:
        """Encoded private images."""
        return self.private / "latents.safetensors"

    @property
    def pairs(self) -> Path:
        """Picture of synthetic images beside the private ones that they are closest to."""
        return self.private / "memorisation.png"

    @property
    def synthetic(self) -> Path:
        """Drawn images, one file per batch."""
        return self.directory / "synthetic"

    @property
    def release(self) -> Path:
        """What may leave."""
        return self.directory / "release"

    @property
    def ledger(self) -> Path:
        """Ledger of the data set, shared by all its runs.

        By default it lies in the account's own data folder, so that another output folder is not another budget.
        A public benchmark has no budget: its ledger stays with its runs.
        """
        privacy = self.config.privacy
        base = self.config.runtime.output if privacy.public_benchmark else user_data_path("dpldm")
        return privacy.ledger or base / "ledgers" / f"{privacy.dataset_id}.jsonl"

    @property
    def resolved_config(self) -> Path:
        """Every setting the run was last called with."""
        return self.directory / "config.resolved.yaml"

    def create(self) -> None:
        """Make the folders and write the resolved config. Settings bind a run from its first answer or update on.

        Raises:
            UserError: the run was trained with other settings, its folder cannot be written, or its disk is too full.
        """
        if self.started:
            self.require_same_training()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._require_space()
            self.make_private()
            self.note_settings()
        except OSError as error:
            raise UserError(
                f"The run folder {self.directory} cannot be written ({error.strerror}): "
                "free space or choose another runtime.output."
            ) from error

    def make_private(self) -> None:
        """Make the folder for what may not be published, for the account's own eyes.

        Raises:
            OSError: it cannot be made.
        """
        self.private.mkdir(parents=True, exist_ok=True)
        os.chmod(self.private, stat.S_IRWXU)

    def note_settings(self) -> None:
        """Write the resolved config. Every stage does, so that it shows what images were drawn and measured with.

        Settings that are not heeded are left out: defaults of another version must not make it another run's.

        Raises:
            OSError: it cannot be written.
        """
        resolved = yaml.safe_dump(self.config.heeded(), sort_keys=False)
        replace_file(self.resolved_config, resolved.encode(), mode=0o644)

    def require_same_training(self) -> None:
        """Settings of sampling, evaluation and runtime may change between calls; those of training may not.

        Raises:
            UserError: a section of training differs from the one the run was started with.
        """
        try:
            earlier = RunConfig.model_validate(yaml.safe_load(self.resolved_config.read_text()))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(
                f"{self.resolved_config} is missing or damaged: restore it from a copy, or give this run a new name."
            ) from error
        before, now = settings_of_training(earlier), settings_of_training(self.config)
        for section in now:
            if before[section] != now[section]:
                raise UserError(
                    f"The run {self.config.name!r} exists with another section `{section}`: give this run a new "
                    "name, or use the settings it was started with."
                )

    def _require_space(self) -> None:
        needed = disk_space(self.config)
        if shutil.disk_usage(self.directory).free < needed:
            raise UserError(
                f"The disk of {self.directory} is too full, the run needs {needed / 1e6:,.0f} MB: free space or choose "
                "another runtime.output."
            )


def settings_of_training(config: RunConfig) -> dict[str, Any]:
    """The sections that trained weights depend on; test images and the ledger's place are not among them."""
    settings: dict[str, Any] = config.model_dump(
        include={"method", "data", "backbone", "trainable", "tune_embedder", "privacy", "optimizer", "selection"}
    )
    del settings["data"]["test_path"], settings["privacy"]["ledger"], settings["privacy"]["cap"]
    return settings


def require_same_backbone(digest: str, checkpoint: Mapping[str, Any], run: Run) -> None:
    """Refuse to use tuned weights, or answers about latents, with another backbone than the one they belong to.

    Args:
        digest: `Backbone.digest` of the backbone at hand.
        checkpoint: facts of the run's checkpoint, or of an answer.

    Raises:
        UserError: the backbone was made again or replaced since.
    """
    if checkpoint.get("backbone") != digest:
        raise UserError(
            f"The weights of backbone {run.config.backbone!r} are not those that the run {run.config.name!r} was "
            "started with: put the earlier backbone back, or give this run a new name."
        )


def disk_space(config: RunConfig) -> int:
    """Bytes that a run writes at most before sampling: latents of the declared records, and two checkpoints (three in a
    selection, which keeps its best trial's until another one is better), or the answers and portraits.

    A checkpoint holds at most the whole denoiser four times in float32 (weights, average, two moments of Adam). The old
    one stays until the new one is complete.
    """
    latents = (config.privacy.records or 0) * bytes_of_latents(config)
    if config.method == "portraits":  # an answer in float64 and the factors of covariances, each old and new
        return latents + 2 * 2 * 8 * len(config.data.labels) * latent_entries(config) ** 2
    checkpoint = 4 * bytes_of_network(config.backbone)
    checkpoints = 3 if config.selection.learning_rates else 2
    return int(latents + checkpoints * checkpoint)


def bytes_of_latents(config: RunConfig) -> int:
    """What is kept of an image: mean and log-variance of its latent, float32."""
    return 2 * 4 * latent_entries(config)


WITHIN_CLASSES = 0.75
"""How far a latent lies from the mean of its class, in units of the root of the number of its entries: for scale,
half of the animals of `animal-mnist`, encoded by grey32, lie farther."""


def latent_entries(config: RunConfig) -> int:
    """d, the numbers in the latent of an image, from the backbone's settings alone."""
    return latent_entries_of(config.backbone, config.data.image_size)


MOST_ENTRIES_OF_SPREADS = 1024
"""A class's covariance has the square of that many numbers, and noise in each."""
MOST_NUMBERS_OF_SPREADS = 2**28
"""Of all classes together: 6 GB while they are asked for (train/memory.py)."""


def require_portraits(config: RunConfig) -> None:
    """Refuse questions about classes that the backbone's latents or own classes do not allow.

    Raises:
        UserError: latents are too long for covariances, or the backbone has fewer classes than parts are asked for.
    """
    privacy, entries = config.privacy, latent_entries(config)
    spreads = config.method == "portraits" or privacy.class_spreads_noise is not None
    if spreads and entries > MOST_ENTRIES_OF_SPREADS:
        raise UserError(
            "Covariances of classes (method: portraits, privacy.class_spreads_noise) are for latents of at most "
            f"{MOST_ENTRIES_OF_SPREADS:,} numbers, and those of this backbone have {entries:,}: leave them out."
        )
    if spreads and len(config.data.labels) * entries**2 > MOST_NUMBERS_OF_SPREADS:
        raise UserError(
            f"The covariances of {len(config.data.labels)} classes have more than {MOST_NUMBERS_OF_SPREADS:,} numbers "
            "together: leave them out (method: diffusion, without privacy.class_spreads_noise)."
        )
    if privacy.class_parts > 1 and (own := public_classes_of(config.backbone)) < privacy.class_parts:
        raise UserError(
            f"privacy.class_parts is {privacy.class_parts}, and the backbone has {own} classes of its own: lower it."
        )


def default_batch(records: int) -> int:
    """L = records / 8, at most 4,096: large batches are what DP-SGD needs most."""
    return max(1, min(4096, records // 8))


def questions_of(config: RunConfig) -> tuple[Question, ...]:
    """What the config asks beside the gradients: before the first attempt, and a selection's trial after its last.

    Raises:
        ValueError: a constant is out of range.
        UserError: see `require_portraits`.
    """
    require_portraits(config)
    privacy, questions, reserve = config.privacy, list[Question](), config.privacy.query_reserve
    means_noise, spreads_noise = privacy.class_means_noise, privacy.class_spreads_noise
    if config.method == "portraits":
        means_noise = spreads_noise = 1.0  # until they are calibrated
    if privacy.histogram_noise is not None:
        questions.append(ClassHistogram(noise_multiplier=privacy.histogram_noise, reserve=reserve))
    if privacy.public_classes_noise is not None:
        cells = public_classes_of(config.backbone)
        noise = privacy.public_classes_noise
        questions.append(PublicClassHistogram(noise_multiplier=noise, public_classes=cells, reserve=reserve))
    if means_noise is not None:
        # Public latents have deviation 1 in every channel, so this is about their norm.
        clip_norm = privacy.class_means_clip or math.sqrt(latent_entries(config))
        parts = privacy.class_parts
        questions.append(ClassMeans(noise_multiplier=means_noise, clip_norm=clip_norm, parts=parts, reserve=reserve))
    if spreads_noise is not None:
        clip_norm = privacy.class_spreads_clip or WITHIN_CLASSES * math.sqrt(latent_entries(config))
        questions.append(ClassSpreads(noise_multiplier=spreads_noise, clip_norm=clip_norm, reserve=reserve))
    if config.selection.learning_rates:
        questions.append(CandidateScores(noise_multiplier=config.selection.score_noise, candidates=1))
    return tuple(questions)


def plan_of(config: RunConfig) -> PrivacyPlan:
    """The constants of one run; reads no image. For a selection, those of each trial.

    Raises:
        UserError: a constant is missing or out of range.
    """
    return trial_of(paid_plan(config))


def paid_plan(config: RunConfig) -> Plan:
    """What the ledger reserves and a release states, calibrated; reads no image.

    Raises:
        UserError: a constant is missing or out of range.
    """
    constants, candidates = declared_constants(config), len(config.selection.learning_rates)
    try:
        if config.method == "portraits":
            return asking_alone(constants)
        return (
            make_selection(constants, config.selection.mean_trials, candidates) if candidates else calibrated(constants)
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def declared_constants(config: RunConfig) -> PrivacyPlan:
    """The plan of a run before its noise is calibrated: its noise multiplier is 0.

    Raises:
        UserError: a constant is missing or out of range.
    """
    privacy: PrivacyConfig = config.privacy
    if privacy.records is None:
        units = "images" if privacy.unit == "image" else "persons (groups), not of their images"
        raise UserError(
            f"privacy.records is blank: declare the number of {units}, rounded DOWN to a figure that may be public "
            "(the exact count is private)."
        )
    batch, reserve = privacy.expected_batch_size, privacy.reserve_steps
    try:
        return PrivacyPlan(
            dataset_id=privacy.dataset_id,
            run=config.name,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            records=privacy.records,
            expected_batch_size=default_batch(privacy.records) if batch is None else batch,
            steps=privacy.steps,
            reserve_steps=default_reserve(privacy.steps) if reserve is None else reserve,
            max_grad_norm=privacy.max_grad_norm,
            draws_per_example=privacy.draws_per_example,
            noise_multiplier=0.0,
            max_batch_size=privacy.max_batch_size,
            most_records=privacy.most_records,
            clipping=privacy.clipping,
            noise=privacy.noise,
            unit=privacy.unit,
            images_per_unit=privacy.max_images_per_group,
            public_benchmark=privacy.public_benchmark,
            queries=questions_of(config),
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def ledger_cap(config: RunConfig) -> tuple[float, float] | None:
    """(epsilon, delta) that all runs on the data set may spend together, for a new ledger; None is no cap.

    Left to itself, the first run sets the cap to its own budget; a public benchmark has none.
    """
    privacy = config.privacy
    return privacy.cap or (None if privacy.public_benchmark else (privacy.epsilon, privacy.delta))
