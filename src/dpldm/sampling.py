"""Synthetic images from the tuned model, or from portraits: post-processing, no privacy cost.

The network that is sampled is exactly the one that was trained: the averaged weights where it was tuned
(embedder included), the public weights everywhere else. Nothing here reads a private image.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from dpldm.config import RunConfig, SamplingConfig
from dpldm.data.prompts import prompts_of
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.filtering import most_consistent
from dpldm.models.autoencoder import decode, latent_shape, tile
from dpldm.models.backbone import Backbone, load_backbone, sha256_of
from dpldm.models.families import family_of
from dpldm.privacy.durable import replace_file
from dpldm.privacy.queries import class_shares, counts_by_share
from dpldm.run import Run
from dpldm.scanning.kinds import SHARES
from dpldm.train.portraits import Portraits
from dpldm.train.public_data import step_generator
from dpldm.tuned import finished, noised_histogram, portraits_of, public_class_shares, tuned_network


@dataclass(frozen=True)
class SampleStep:
    """Progress of sampling."""

    done: int
    count: int


@dataclass(frozen=True)
class SyntheticSet:
    """Drawn images in a fixed order."""

    images: NDArray[np.uint8]  # (N, S, S, C)
    labels: NDArray[np.int64]  # (N,) class, or number of the prompt; -1 if unconditional


def sample(config: RunConfig) -> Iterator[SampleStep]:
    """Draw images into the run's `synthetic/` folder, batch by batch, and choose which to keep. The same call resumes.

    Raises:
        UserError: the run has not been fine-tuned to its end.
    """
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    if config.runtime.tiling:
        tile(backbone.autoencoder)
    if config.method == "portraits":
        yield from draw_portraits(config, backbone, portraits_of(config))
        return
    shares = public_class_shares(config)
    yield from draw_all(config, backbone, tuned_network(config, backbone), settings_of_sampling(config), shares)


def draw_all(
    config: RunConfig, backbone: Backbone, network: nn.Module, settings: SamplingConfig, shares: Tensor | None
) -> Iterator[SampleStep]:
    """`sample` with a given network, whose checkpoint is the run's.

    Args:
        shares: (K, C) of the public classes within each class, for a network that is told both.
    """
    texts = texts_of(config)
    labels = planned_labels(settings, len(config.data.labels) or len(texts))
    told = labels if shares is None else with_public_classes(labels, shares, settings.seed)
    draw = Sampler(backbone, network, settings, config.data.image_size, texts)
    yield from draw_batches(config, settings, labels, lambda rows, generator: draw(told[rows], generator))


def draw_portraits(config: RunConfig, backbone: Backbone, known: Portraits) -> Iterator[SampleStep]:
    """`sample` by latents drawn from portraits of the classes, without any network but the decoder."""
    labels = planned_labels(config.sampling, len(config.data.labels))

    def draw(rows: slice, generator: torch.Generator) -> NDArray[np.uint8]:
        return decode(backbone.autoencoder, known.draw(labels[rows], generator), config.data.image_size)

    yield from draw_batches(config, config.sampling, labels, draw)


def draw_batches(
    config: RunConfig,
    settings: SamplingConfig,
    labels: Tensor,
    draw: Callable[[slice, torch.Generator], NDArray[np.uint8]],
) -> Iterator[SampleStep]:
    """Images for labels (N,), batch by batch, into `synthetic/` of a run with a checkpoint. The same call resumes.

    Args:
        draw: images (B, S, S, C) of those places of `labels`, by a generator of their own.
    """
    run = Run(config)
    run.synthetic.mkdir(parents=True, exist_ok=True)
    run.note_settings()
    key = _settings_key(run, settings)
    starts = range(0, len(labels), settings.batch_size)
    for number, start in enumerate(starts):
        path = run.synthetic / f"batch-{number:05d}-{key}.npz"
        rows = slice(start, min(start + settings.batch_size, len(labels)))
        if not path.exists():
            images = draw(rows, step_generator(settings.seed, number))
            _write_npz(path, x=images, y=labels[rows].numpy())
        yield SampleStep(rows.stop, len(labels))
    if settings.keep < 1 and not _kept(run, key).exists():
        drawn = _drawn(run, key)
        counts = np.array(kept_counts(settings, len(config.data.labels)))
        _write_npz(_kept(run, key), rows=most_consistent(drawn.images, drawn.labels, counts, settings.seed))


def load_synthetic(config: RunConfig) -> SyntheticSet:
    """All drawn images of a finished `sample`.

    Raises:
        UserError: some are missing, or the run was trained with other settings.
    """
    finished(config)
    return all_drawn(config, settings_of_sampling(config))


def all_drawn(config: RunConfig, settings: SamplingConfig) -> SyntheticSet:
    """What a finished `draw_all` drew and kept.

    Raises:
        UserError: some images are missing.
    """
    run = Run(config)
    key = _settings_key(run, settings)
    drawn = _drawn(run, key)
    kinds = len(config.data.labels) or len(texts_of(config))
    complete = len(drawn.labels) == len(planned_labels(settings, kinds))
    if not complete or (settings.keep < 1 and not _kept(run, key).exists()):
        raise UserError(f"The run {config.name!r} has not been sampled to its end: run `dpldm sample` first.")
    if settings.keep == 1:
        return drawn
    with np.load(_kept(run, key), allow_pickle=False) as arrays:
        rows = arrays["rows"]
    return SyntheticSet(drawn.images[rows], drawn.labels[rows])


def _drawn(run: Run, key: str) -> SyntheticSet:
    """All images drawn so far, kept or not."""
    images, labels = [np.empty((0, 0, 0, 0), np.uint8)], [np.empty(0, np.int64)]
    for path in sorted(run.synthetic.glob(f"batch-*-{key}.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            images.append(arrays["x"])
            labels.append(arrays["y"])
    found = images[1:] or images
    return SyntheticSet(np.concatenate(found), np.concatenate(labels))


def settings_of_sampling(config: RunConfig) -> SamplingConfig:
    """The settings, with label counts from the run's noised histogram if it has one and the user gave none.

    That is all that the histogram is used for.
    """
    settings = config.sampling
    return settings if settings.label_counts is not None else steered(settings, noised_histogram(config))


def steered(settings: SamplingConfig, noised: Tensor | None) -> SamplingConfig:
    """The settings with the shares of a noised histogram, (K,), where there is one and no counts are given."""
    if noised is None or settings.label_counts is not None:
        return settings
    return settings.model_copy(update={"label_counts": counts_by_share(class_shares(noised), settings.count)})


def kept_counts(settings: SamplingConfig, classes: int) -> list[int]:
    """How many images of each class there will be, (K,): the user's counts, or equal shares. Uses no exact count."""
    if settings.label_counts is not None:
        return list(settings.label_counts)
    return torch.bincount(torch.arange(settings.count) % classes, minlength=classes).tolist()


def planned_labels(settings: SamplingConfig, classes: int) -> Tensor:
    """The label of every image to draw, (N,), classes interleaved; -1 when unconditional."""
    if classes == 0:
        return torch.full((settings.count,), -1)
    if settings.label_counts is None and settings.keep == 1:
        return torch.arange(settings.count) % classes
    drawn = [math.ceil(count / settings.keep) for count in kept_counts(settings, classes)]
    labels = torch.repeat_interleave(torch.arange(classes), torch.tensor(drawn))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(settings.seed))]


def with_public_classes(labels: Tensor, shares: Tensor, seed: int) -> Tensor:
    """Ids (N, 2) of the class and the public class of every image to draw, the latter at random by `shares` (K, C)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(shares[labels], 1, generator=generator)[:, 0]
    return torch.stack([labels, len(shares) + drawn], 1)


def released_shares(model: str | Path) -> Tensor | None:
    """Shares (K, C) of the public classes that a released model is told beside its own; None if it is told none.

    Args:
        model: the folder `model` of a release that `verify` accepts.
    """
    path = Path(model) / SHARES
    if not path.is_file():
        return None
    return torch.tensor(json.loads(path.read_text(encoding="utf-8"))["shares"], dtype=torch.float64)


def texts_of(config: RunConfig) -> list[str]:
    """What there is to tell a backbone that is told captions: prompts, or a text for each class. All of it public.

    Raises:
        UserError: there are captions and no prompts, or they cannot be used.
    """
    data = config.data
    if data.labels:
        return [data.caption_of(label) for label in data.labels]
    if data.caption_column is not None and config.sampling.prompts is None:
        raise UserError(
            "The model was told captions, which are private: give sampling.prompts, a file of public prompts, one a "
            "line."
        )
    return prompts_of(config)


class Sampler:
    """Labels and a generator to images.

    Args:
        texts: what label 0, 1, ... stands for, where the network is told captions.
    """

    def __init__(
        self,
        backbone: Backbone,
        network: nn.Module,
        settings: SamplingConfig,
        image_size: int,
        texts: Sequence[str] = (),
    ) -> None:
        self.autoencoder, self.network = backbone.autoencoder, network
        self.family = family_of(network)
        captions = self.family.told == "captions" and texts
        self.tokens = self.family.tokens(network, texts) if captions else None
        self.settings, self.image_size = settings, image_size
        self.scheduler = build_solver(backbone.scheduler, settings)
        self.shape = latent_shape(backbone.autoencoder, image_size)

    def __call__(self, labels: Tensor, generator: torch.Generator) -> NDArray[np.uint8]:
        """Images (N, S, S, C) for labels (N,), -1 meaning none, or for pairs of ids (N, 2)."""
        return decode(self.autoencoder, self.latents(labels, generator), self.image_size)

    @torch.no_grad()
    def latents(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The reverse process from fresh Gaussian noise to latents (N, c, h, w), for what `__call__` takes."""
        self.scheduler.set_timesteps(self.settings.steps)
        noise = torch.randn((len(labels), *self.shape), generator=generator)  # the same on every device
        return self._denoised(noise, self.scheduler.timesteps, labels, generator)

    @torch.no_grad()
    def varied(self, latents: Tensor, labels: Tensor, degree: float, generator: torch.Generator) -> Tensor:
        """Latents (N, c, h, w) noised part of the way and denoised again (Meng et al. 2022, SDEdit).

        Args:
            labels: as for `latents`.
            degree: share of the solver's steps that are gone back, in (0, 1]; at least one step.
        """
        self.scheduler.set_timesteps(self.settings.steps)
        timesteps = self.scheduler.timesteps[-max(1, round(degree * self.settings.steps)) :]
        noise = torch.randn(latents.shape, generator=generator)
        noisy = self.scheduler.add_noise(latents, noise, timesteps[:1].expand(len(latents)))
        return self._denoised(noisy, timesteps, labels, generator)

    def _denoised(self, x: Tensor, timesteps: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The reverse process through these timesteps."""
        device = next(self.network.parameters()).device
        wanted, unlabelled = self._told(labels).to(device), self._told(torch.full_like(labels, -1)).to(device)
        x, extra = x.to(device), {"eta": self.settings.eta} if self.settings.sampler == "ddim" else {}
        for t in timesteps:
            prediction = self._guided(x, t, wanted, unlabelled)
            x = self.scheduler.step(prediction, t, x, generator=generator, **extra).prev_sample
        return x

    def _guided(self, x: Tensor, t: Tensor, wanted: Tensor, unlabelled: Tensor) -> Tensor:
        """Classifier-free guidance (Ho and Salimans 2022, eq. 6, with weight 1 meaning none)."""
        prediction = self.family.predict(self.network, x, t, wanted)
        if self.settings.guidance == 1.0:
            return prediction
        free = self.family.predict(self.network, x, t, unlabelled)
        return free + self.settings.guidance * (prediction - free)

    def _told(self, labels: Tensor) -> Tensor:
        """The family's condition for labels (N,) or ids (N, 2), where -1 is none."""
        null = self.family.null(self.network)
        if null.dim():  # tokens
            table = null[None] if self.tokens is None else torch.cat([self.tokens, null[None]])
            return self.family.condition(self.network, table[labels])  # -1 is the last row
        return self.family.condition(self.network, torch.where(labels < 0, null, labels))


def build_solver(scheduler: DDPMScheduler, settings: SamplingConfig) -> Any:
    """The chosen solver over the schedule the network was trained with."""
    if settings.sampler == "ddim":
        return DDIMScheduler.from_config(scheduler.config, clip_sample=False, timestep_spacing="trailing")
    return DPMSolverMultistepScheduler.from_config(
        scheduler.config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing"
    )


def _settings_key(run: Run, settings: SamplingConfig) -> str:
    """Eight digits that change with anything the images depend on, so that old batches are never mixed in."""
    prompts = settings.prompts
    text = settings.model_dump_json(exclude={"prompts"}) + sha256_of(run.checkpoint)
    text += "" if prompts is None else sha256_of(prompts)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _kept(run: Run, key: str) -> Path:
    """Which of the drawn images to keep."""
    return run.synthetic / f"kept-{key}.npz"


def _write_npz(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    replace_file(path, buffer.getvalue(), mode=0o644)
