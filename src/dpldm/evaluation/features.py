"""From images to feature vectors: the one seam through which every distance sees an image.

A distance between image sets is only defined together with the network that embeds them, so an
extractor carries a name, and results are labelled with it (see fidelity.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dpldm.errors import UserError
from dpldm.evaluation.inception import load_inception
from dpldm.models.autoencoder import encode, latent_shape
from dpldm.models.backbone import Backbone
from dpldm.models.efficientnet import load_efficientnet_lite, to_efficientnet

Images = NDArray[np.uint8]
Features = NDArray[np.float32]


class FeatureExtractor(Protocol):
    """Embeds images. `name` identifies network and resolution, `dim` is the length of a vector."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def __call__(self, images: Images) -> Features:
        """Images uint8 (N, H, W, C), C in {1, 3}, to features float32 (N, dim), in the same order."""
        ...


@runtime_checkable
class Classifying(Protocol):
    """An extractor whose network also tells classes apart, which the Inception Score asks of it."""

    def logits(self, features: Features) -> Features:
        """Features (N, dim) to class logits (N, K)."""
        ...


class EfficientNetLite:
    """EfficientNet-Lite trained on ImageNet, 1,280 pooled features; installable, no download at run time.

    `resolution` is the side in pixels to which images are resized (bilinear); it is part of the name
    because distances at two resolutions are not comparable. Raises MissingExtra when the extra "features" is not
    installed and UserError when `resolution` is not a positive multiple of 32, the stride of the network.
    """

    dim = 1280
    version: ClassVar[int]

    def __init__(self, resolution: int = 64, device: str | torch.device = "cpu") -> None:
        if resolution < 32 or resolution % 32:
            raise UserError(f"The feature resolution must be a multiple of 32 pixels, not {resolution}.")
        self.name = f"efficientnet-lite{self.version}@{resolution}"
        self.resolution, self.device = resolution, torch.device(device)
        self.network: Any = load_efficientnet_lite(self.version).to(self.device)

    def __call__(self, images: Images) -> Features:
        return _extract(self._embed, images, self.dim, self.device, batch_size=128)

    def logits(self, features: Features) -> Features:
        """Of ImageNet's 1,000 classes."""
        return _linear(features, self.network._fc.weight, self.network._fc.bias)

    def _embed(self, x: Tensor) -> Tensor:
        size = (self.resolution, self.resolution)
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        features: Tensor = self.network.extract_features(to_efficientnet(x)).mean(dim=(2, 3))
        return features


class EfficientNetLite0(EfficientNetLite):
    """The extractor of distances and baselines."""

    version = 0


class EfficientNetLite2(EfficientNetLite):
    """A network that trains nothing here, to judge what the other one helped to train (`tools/reconstruction.py`)."""

    version = 2


class EncoderMeans:
    """What a backbone's encoder makes of an image: the mean of its posterior, flattened. No extra is needed.

    Args:
        backbone: public.
        image_size: pixels a side of the images to come.
    """

    def __init__(self, backbone: Backbone, image_size: int) -> None:
        self.name = f"{backbone.name}-encoder:{backbone.digest[:12]}"
        self.dim = math.prod(latent_shape(backbone.autoencoder, image_size))
        self.autoencoder = backbone.autoencoder

    def __call__(self, images: Images) -> Features:
        return encode(self.autoencoder, images).mean.flatten(1).numpy()


class InceptionV3:
    """The 2,048 features of the Fréchet Inception Distance, from a local weights file.

    Raises UserError as `load_inception` does.
    """

    name = "inception-v3"
    dim = 2048

    def __init__(self, weights: Path, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.network = load_inception(weights).to(self.device)

    def __call__(self, images: Images) -> Features:
        return _extract(self._embed, images, self.dim, self.device, batch_size=32)

    def logits(self, features: Features) -> Features:
        """Of the 2015 graph's 1,008 classes, without the bias: the score's first code left it out, and all since."""
        return _linear(features, self.network.fc.weight, None)

    def _embed(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(x / 127.5 - 1)
        return features


def _linear(features: Features, weight: Tensor, bias: Tensor | None) -> Features:
    with torch.inference_mode():
        return F.linear(torch.from_numpy(features).to(weight.device), weight, bias).cpu().numpy()


def _extract(
    embed: Callable[[Tensor], Tensor], images: Images, dim: int, device: torch.device, batch_size: int
) -> Features:
    """Runs `embed` over batches of float images (B, 3, H, W) in [0, 255]; grey images are repeated."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError("Features are computed from uint8 images of shape (N, H, W, C) with C 1 or 3.")
    features = np.empty((len(images), dim), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.tensor(images[start : start + batch_size], device=device)
            x = batch.permute(0, 3, 1, 2).float().expand(-1, 3, -1, -1)
            features[start : start + batch_size] = embed(x).cpu().numpy()
    return features


def scaled(features: Features) -> Tensor:
    """Feature vectors (N, d), each less its own mean and at norm 1: no number here comes from another image."""
    rows = torch.from_numpy(features)
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)
