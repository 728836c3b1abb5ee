"""Batches of public images for stages 1 and 2: seeded, resumable at any step, jittered on the fly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpldm.errors import UserError


@dataclass(frozen=True)
class PublicImages:
    """The images of one or several public sets."""

    pixels: np.ndarray  # uint8 (N, S, S, C)
    labels: np.ndarray  # int64 (N,), those of later sets counted on
    classes: int
    names: np.ndarray  # (N,) texts: what they show
    sets: tuple[Mapping[str, Any], ...]  # provenance of each set


def load_public_images(paths: Sequence[Path], image_size: int, channels: int) -> PublicImages:
    """All images of several public sets (folders or .npz).

    Raises:
        UserError: a set is missing or its images do not have the size and channels of the backbone.
    """
    from dpldm.data.public.collection import PublicSet

    pixels, labels, names, sets, classes = list[np.ndarray](), list[np.ndarray](), list[np.ndarray](), [], 0
    for path in paths:
        public = PublicSet.load(path)
        if public.images.shape[1:] != (image_size, image_size, channels):
            raise UserError(
                f"The public set {path} holds images of {public.images.shape[1:]}, the backbone needs "
                f"{(image_size, image_size, channels)}: make it again with that --image-size and --channels."
            )
        pixels.append(public.images)
        labels.append(public.labels + classes)
        names.append(public.names)
        sets.append(public.provenance)
        classes += len(public.label_names)
    columns = (np.concatenate(pixels), np.concatenate(labels), classes, np.concatenate(names))
    return PublicImages(*columns, tuple(sets))


def step_generator(seed: int, step: int) -> torch.Generator:
    """A generator for one step, so that a resumed run draws what the uninterrupted one would have drawn."""
    key = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key) >> 1)


def batch_of(images: np.ndarray, size: int, generator: torch.Generator) -> Tensor:
    """Uniform random batch with replacement, float32 (size, C, S, S) in [-1, 1], from uint8 (N, S, S, C)."""
    rows = torch.randint(len(images), (size,), generator=generator)
    return torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def jitter(images: Tensor, generator: torch.Generator, margin: int = 2) -> Tensor:
    """Mirror, a framing like that of 28-pixel images, and for grey images other tones; (B, C, S, S) in [-1, 1].

    The framing shrinks half of the images by `margin` pixels a side and repeats their edge, which is how
    smaller private images will reach the network (models/autoencoder.py). Colours stay: they are part of what an image
    shows, and of what a caption says.
    """
    batch, channels, size = images.shape[:3]
    level = (images + 1) / 2
    if channels == 1:
        level = _other_tones(level, generator)
    level = torch.where(_uniform(batch, 0, 1, generator) < 0.5, level.flip(-1), level)
    small = F.interpolate(level, size=size - 2 * margin, mode="bilinear", antialias=True, align_corners=False)
    framed = F.pad(small, (margin,) * 4, mode="replicate")
    level = torch.where(_uniform(batch, 0, 1, generator) < 0.5, framed, level)
    return level * 2 - 1


def _other_tones(level: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast, brightness and polarity of grey images (B, 1, S, S) in [0, 1]."""
    batch = len(level)
    darker = _uniform(batch, 0.5, 1.0, generator)
    lift = _uniform(batch, 0.0, 0.15, generator) * (_uniform(batch, 0, 1, generator) < 0.3)
    level = (level * darker + lift).clamp(0, 1) ** torch.exp(_uniform(batch, -0.5, 0.5, generator))
    return torch.where(_uniform(batch, 0, 1, generator) < 0.1, 1 - level, level)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand((count, 1, 1, 1), generator=generator) * (high - low) + low
