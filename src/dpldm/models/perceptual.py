"""How different two images look to a network: the Learned Perceptual Image Patch Similarity (LPIPS).

Zhang et al. 2018 (arXiv 1801.03924), eq. 1: feature maps of several layers, each place scaled to unit length over its
channels; squared differences, weighed by channel, averaged over places, added over layers.

Two networks: VGG-16 with the published weights of its channels, which have to be had as files; and EfficientNet-Lite0,
which is installable, with equal weights (the paper's baseline without learning). One that trains an autoencoder must
not also judge it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dpldm.errors import UserError
from dpldm.models.efficientnet import load_efficientnet_lite, maps_of, to_efficientnet


class Perceptual(ABC):
    """A distance of images through a frozen network, which follows them to their device."""

    name: str

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps (N, c, h, w) of colour images (N, 3, H, W) in [-1, 1], layer by layer."""

    @abstractmethod
    def weights(self, layer: int, channels: int) -> Tensor:
        """Weights of the channels of a layer, (c,), not negative."""

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances (N,) of images (N, C, H, W) in [-1, 1], C 1 or 3; grey ones are repeated."""
        colour = (images.expand(-1, 3, -1, -1) for images in (first, second))
        total = torch.zeros(len(first), device=first.device)
        for layer, (one, other) in enumerate(zip(*map(self.maps, colour), strict=True)):
            difference = (unit(one) - unit(other)).square()
            weighed = difference * self.weights(layer, difference.shape[1]).to(first.device)[:, None, None]
            total = total + weighed.sum(1).mean((1, 2))
        return total


def unit(features: Tensor) -> Tensor:
    """Each place of (N, c, h, w) scaled to length 1 over its channels; a place without any feature stays zero."""
    return features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()


class EfficientNetDistance(Perceptual):
    """Through EfficientNet-Lite0 at 64 pixels, all channels of a layer weighed alike.

    Raises:
        MissingExtra: the extra `features` is not installed.
    """

    name = "efficientnet-lite0"
    side = 64

    def __init__(self, version: int = 0) -> None:
        self.name = f"efficientnet-lite{version}"
        self.network = load_efficientnet_lite(version)

    def maps(self, images: Tensor) -> list[Tensor]:
        """See `Perceptual`."""
        resized = F.interpolate(images, size=(self.side, self.side), mode="bilinear", align_corners=False)
        return maps_of(self.network.to(images.device), to_efficientnet((resized + 1) * 127.5))

    def weights(self, layer: int, channels: int) -> Tensor:
        """See `Perceptual`."""
        return torch.full((channels,), 1 / channels)


CONVOLUTIONS = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)
"""Of VGG-16, stage by stage: number in torchvision's `features`, channels in, channels out."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of LPIPS' input layer, for images in [-1, 1]."""


class VggDistance(Perceptual):
    """LPIPS proper, through VGG-16.

    Args:
        files: they hold together torchvision's `features.N.weight|bias` and LPIPS' `linK.model.1.weight`.

    Raises:
        UserError: a file cannot be read, or a tensor is missing or has another shape.
    """

    name = "vgg-lpips"

    def __init__(self, files: Sequence[Path]) -> None:
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors |= _tensors(file)
        wanted = {
            name: shape
            for number, inside, outside in (convolution for stage in CONVOLUTIONS for convolution in stage)
            for name, shape in (
                (f"features.{number}.weight", (outside, inside, 3, 3)),
                (f"features.{number}.bias", (outside,)),
            )
        } | {f"lin{layer}.model.1.weight": (1, stage[-1][2], 1, 1) for layer, stage in enumerate(CONVOLUTIONS)}
        for name, shape in wanted.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise UserError(
                    f"The perceptual weights lack {name} of shape {shape}: give torchvision's VGG-16 and LPIPS' heads "
                    "for it in perceptual_weights."
                )
        self.tensors = {name: tensors[name].float() for name in wanted}

    def maps(self, images: Tensor) -> list[Tensor]:
        """See `Perceptual`: after the last ReLU of each stage."""
        shift, scale = (torch.tensor(values, device=images.device)[:, None, None] for values in (SHIFT, SCALE))
        maps, x = list[Tensor](), (images - shift) / scale
        for stage in CONVOLUTIONS:
            if maps:
                x = F.max_pool2d(x, 2)
            for number, _, _ in stage:
                weight, bias = (self.tensors[f"features.{number}.{part}"].to(x.device) for part in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            maps.append(x)
        return maps

    def weights(self, layer: int, channels: int) -> Tensor:
        """See `Perceptual`."""
        return self.tensors[f"lin{layer}.model.1.weight"].flatten()


def build_perceptual(kind: str, files: Sequence[Path]) -> Perceptual:
    """The distance that a recipe names: `efficientnet-lite0` or `vgg-lpips`.

    Raises:
        UserError: see both.
    """
    return VggDistance(files) if kind == VggDistance.name else EfficientNetDistance()


def _tensors(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            found: Mapping[str, Tensor] = load_file(file)
            return found
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        return {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}
    except (OSError, SafetensorError, RuntimeError, ValueError, AttributeError, EOFError) as error:
        raise UserError(f"The perceptual weights {file} cannot be read: give a .safetensors or .pth file.") from error
    except Exception as error:  # what unpickling refuses has no common class
        raise UserError(f"{file} holds more than tensors and is not read: give a file of weights alone.") from error
