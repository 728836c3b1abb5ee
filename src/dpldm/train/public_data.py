"""Batches of public images for stages 1 and 2: seeded, resumable at any step, jittered on the fly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


def load_public_images(paths: Sequence[Path], image_size: int, channels: int) -> PublicImages:
    """All images of several public sets (folders or .npz).

    Raises:
        UserError: a set is missing or its images do not have the size and channels of the backbone.
    """
    from dpldm.data.public.collection import PublicSet

    pixels, labels, classes = list[np.ndarray](), list[np.ndarray](), 0
    for path in paths:
        public = PublicSet.load(path)
        if public.images.shape[1:] != (image_size, image_size, channels):
            raise UserError(
                f"The public set {path} holds images of {public.images.shape[1:]}, the backbone needs "
                f"{(image_size, image_size, channels)}: make it again with that --image-size and --channels."
            )
        pixels.append(public.images)
        labels.append(public.labels + classes)
        classes += len(public.label_names)
    return PublicImages(np.concatenate(pixels), np.concatenate(labels), classes)


def step_generator(seed: int, step: int) -> torch.Generator:
    """A generator for one step, so that a resumed run draws what the uninterrupted one would have drawn."""
    key = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key) >> 1)


def batch_of(images: np.ndarray, size: int, generator: torch.Generator) -> Tensor:
    """Uniform random batch with replacement, float32 (size, C, S, S) in [-1, 1], from uint8 (N, S, S, C)."""
    rows = torch.randint(len(images), (size,), generator=generator)
    return torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def jitter(images: Tensor, generator: torch.Generator, margin: int = 2) -> Tensor:
    """Contrast, brightness, polarity, mirror, and a framing like that of 28-pixel images; (B, C, S, S) in [-1, 1].

    The framing shrinks half of the images by `margin` pixels a side and repeats their edge, which is how
    smaller private images will reach the network (models/autoencoder.py).
    """
    batch = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand((batch, 1, 1, 1), generator=generator) * (high - low) + low

    level = (images + 1) / 2
    level = level * uniform(0.5, 1.0) + uniform(0.0, 0.15) * (uniform(0, 1) < 0.3)
    level = level.clamp(0, 1) ** torch.exp(uniform(-0.5, 0.5))
    level = torch.where(uniform(0, 1) < 0.1, 1 - level, level)
    level = torch.where(uniform(0, 1) < 0.5, level.flip(-1), level)
    size = images.shape[-1]
    small = F.interpolate(level, size=size - 2 * margin, mode="bilinear", antialias=True, align_corners=False)
    framed = F.pad(small, (margin,) * 4, mode="replicate")
    level = torch.where(uniform(0, 1) < 0.5, framed, level)
    return level * 2 - 1
