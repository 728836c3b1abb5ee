"""The critic of an autoencoder: does a patch of an image look like one of a real image?"""

import itertools

from torch import nn


class PatchCritic(nn.Sequential):
    """PatchGAN (Isola et al. 2017, arXiv 1611.07004): images (N, C, H, W) to a map of real-or-not, (N, 1, h, w).

    Strided 4 x 4 convolutions that double their channels up to eightfold, batch normalisation behind all but the first,
    then two that keep the resolution.
    """

    def __init__(self, channels: int, width: int = 64, layers: int = 3) -> None:
        widths = [width * min(2**layer, 8) for layer in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer, (inside, outside) in enumerate(itertools.pairwise(widths)):
            stride = 2 if layer < layers - 1 else 1
            parts += [nn.Conv2d(inside, outside, 4, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.LeakyReLU(0.2)]
        super().__init__(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
