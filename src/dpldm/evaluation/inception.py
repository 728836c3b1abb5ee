"""The Inception network of the Fréchet Inception Distance, in plain torch.

FID is defined by one particular set of weights: the Inception v3 graph published on 2015-12-05, whose
port to torch is the file `pt_inception-2015-12-05-*.pth` (Heusel et al. 2017, arXiv 1706.08500; Szegedy
et al. 2015, arXiv 1512.00567). Parameter names below are those of that file, so it loads strictly. Two
oddities of the 2015 graph are kept because the numbers depend on them: average pooling leaves the
padding out of the mean, and the last block pools by maximum where the paper has an average.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dpldm.errors import UserError

SIDE = 299
"""Height and width in pixels of the images the network was trained on."""

_SOURCE = (
    "The file is the torch port of the 2015-12-05 Inception graph, commonly got as "
    "pt_inception-2015-12-05-6726825d.pth from the releases of the pytorch-fid project; "
    "dpldm never downloads it"
)

Pool = Literal["average", "maximum", "halve"]


class Layer(NamedTuple):
    """A convolution of a branch: its parameter name, output channels, (height, width) and stride."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Branch = tuple[Layer | tuple[Layer, Layer], ...]
"""Layers in sequence; a pair stands for two layers side by side whose outputs are concatenated."""

_ROW, _COLUMN = (1, 7), (7, 1)


class ConvBN(nn.Module):
    """Convolution without bias, batch norm (eps 0.001) and ReLU."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """An inception block: parallel branches and a pooled one, concatenated over channels.

    `pool` is "average" or "maximum" (3x3, stride 1, then a 1x1 convolution to `pool_width` channels) or
    "halve" (3x3 maximum, stride 2, no convolution). Stride-1 layers keep the size, stride-2 ones do not pad.
    `out_channels` is the number of channels of the result.
    """

    def __init__(self, channels: int, branches: tuple[Branch, ...], pool: Pool, pool_width: int = 0) -> None:
        super().__init__()
        self.branches, self.pool = branches, pool
        self.out_channels = pool_width or channels
        for branch in branches:
            self.out_channels += self._add_branch(channels, branch)
        if pool != "halve":
            self.branch_pool = ConvBN(channels, pool_width, (1, 1))

    def _add_branch(self, channels: int, branch: Branch) -> int:
        for step in branch:
            layers = (step,) if isinstance(step, Layer) else step
            for name, width, kernel, stride in layers:
                padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
                self.add_module(name, ConvBN(channels, width, kernel, stride, padding))
            channels = sum(layer.width for layer in layers)
        return channels

    def _run_branch(self, x: Tensor, branch: Branch) -> Tensor:
        for step in branch:
            layers = (step,) if isinstance(step, Layer) else step
            x = torch.cat([self.get_submodule(layer.name)(x) for layer in layers], dim=1)
        return x

    def _run_pool(self, x: Tensor) -> Tensor:
        if self.pool == "halve":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "maximum":
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return self.branch_pool(pooled)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(self._run_branch(x, branch) for branch in self.branches), self._run_pool(x)], dim=1)


def _block_5(channels: int, pool_width: int) -> Mixed:
    double = (
        Layer("branch3x3dbl_1", 64),
        Layer("branch3x3dbl_2", 96, (3, 3)),
        Layer("branch3x3dbl_3", 96, (3, 3)),
    )
    five = Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))
    return Mixed(channels, ((Layer("branch1x1", 64),), five, double), "average", pool_width)


def _block_6a(channels: int) -> Mixed:
    double = (
        Layer("branch3x3dbl_1", 64),
        Layer("branch3x3dbl_2", 96, (3, 3)),
        Layer("branch3x3dbl_3", 96, (3, 3), 2),
    )
    return Mixed(channels, ((Layer("branch3x3", 384, (3, 3), 2),), double), "halve")


def _block_6(channels: int, inner: int) -> Mixed:
    single = (
        Layer("branch7x7_1", inner),
        Layer("branch7x7_2", inner, _ROW),
        Layer("branch7x7_3", 192, _COLUMN),
    )
    double = (
        Layer("branch7x7dbl_1", inner),
        Layer("branch7x7dbl_2", inner, _COLUMN),
        Layer("branch7x7dbl_3", inner, _ROW),
        Layer("branch7x7dbl_4", inner, _COLUMN),
        Layer("branch7x7dbl_5", 192, _ROW),
    )
    return Mixed(channels, ((Layer("branch1x1", 192),), single, double), "average", 192)


def _block_7a(channels: int) -> Mixed:
    three = Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2)
    seven = (
        Layer("branch7x7x3_1", 192),
        Layer("branch7x7x3_2", 192, _ROW),
        Layer("branch7x7x3_3", 192, _COLUMN),
        Layer("branch7x7x3_4", 192, (3, 3), 2),
    )
    return Mixed(channels, (three, seven), "halve")


def _block_7(channels: int, pool: Pool) -> Mixed:
    def fork(name: str) -> tuple[Layer, Layer]:
        return Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))

    three = Layer("branch3x3_1", 384), fork("branch3x3_2")
    double = Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")
    return Mixed(channels, ((Layer("branch1x1", 320),), three, double), pool, 192)


class InceptionNetwork(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] to the 2,048 features of the last average pool, shape (N, 2048).

    Images of another size than 299 are resized bilinearly without antialiasing, as the reference does.
    `fc` takes no part in the features; it is there so that the public file loads strictly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBN(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = ConvBN(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = ConvBN(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = ConvBN(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvBN(80, 192, (3, 3))
        self.Mixed_5b = _block_5(192, 32)
        self.Mixed_5c = _block_5(256, 64)
        self.Mixed_5d = _block_5(288, 64)
        self.Mixed_6a = _block_6a(288)
        self.Mixed_6b = _block_6(768, 128)
        self.Mixed_6c = _block_6(768, 160)
        self.Mixed_6d = _block_6(768, 160)
        self.Mixed_6e = _block_6(768, 192)
        self.Mixed_7a = _block_7a(768)
        self.Mixed_7b = _block_7(1280, "average")
        self.Mixed_7c = _block_7(2048, "maximum")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed_"):
                x = block(x)
        return x.mean(dim=(2, 3))


def load_inception(weights: Path) -> InceptionNetwork:
    """The network with the weights of a local state-dict file (.safetensors, or .pth / .pt).

    A .pth file is read with `weights_only=True`, so it cannot run code. Raises UserError when the file is
    missing, cannot be read, or does not hold exactly the parameters of the FID network.
    """
    if not weights.is_file():
        raise UserError(f"There is no Inception weights file at {weights}. {_SOURCE}.")
    network = InceptionNetwork()
    try:
        network.load_state_dict(_read_state(weights))
    except Exception as error:
        raise UserError(f"{weights} does not hold the parameters of the FID Inception network. {_SOURCE}.") from error
    return network.eval().requires_grad_(False)


def _read_state(weights: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor]
    if weights.suffix == ".safetensors":
        state = load_file(weights)
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    return state
