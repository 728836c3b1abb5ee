"""The residual networks with which the field measures synthetic sets: ResNet, wide ResNet, ResNeXt, ResNet-9.

For small images, as their papers have them for CIFAR: a 3x3 convolution at full size, then three stages, of which the
last two halve the image. Float images (N, C, H, W) to logits (N, K).
"""

from torch import Tensor, nn


def resnet(depth: int, channels: int, classes: int) -> nn.Module:
    """ResNet of 6n + 2 layers (He et al. 2016, arXiv 1512.03385, 4.2), with 1x1 convolutions where widths change."""
    widths, blocks = (16, 32, 64), (depth - 2) // 6
    layers: list[nn.Module] = [_conv(channels, 16), nn.BatchNorm2d(16), nn.ReLU()]
    for before, width, stride in _blocks(16, widths, blocks):
        body = nn.Sequential(
            _conv(before, width, stride=stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _conv(width, width),
            nn.BatchNorm2d(width),
        )
        layers += [_Residual(body, _projection(before, width, stride)), nn.ReLU()]
    return _initialised(nn.Sequential(*layers, *_head(64, classes)))


def wide_resnet(depth: int, widen: int, channels: int, classes: int, dropout: float = 0.3) -> nn.Module:
    """Wide ResNet of 6n + 4 layers (Zagoruyko and Komodakis 2016, arXiv 1605.07146): normalised before convolutions."""
    widths, blocks = (16 * widen, 32 * widen, 64 * widen), (depth - 4) // 6
    layers: list[nn.Module] = [_conv(channels, 16)]
    layers += [_PreActivated(before, width, stride, dropout) for before, width, stride in _blocks(16, widths, blocks)]
    layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU()]
    return _initialised(nn.Sequential(*layers, *_head(widths[-1], classes)))


def resnext(depth: int, cardinality: int, widen: int, channels: int, classes: int) -> nn.Module:
    """ResNeXt of 9n + 2 layers (Xie et al. 2017, arXiv 1611.05431, 5.3): bottlenecks with 3x3 convolutions in groups.

    Args:
        widen: stages have 64, 128 and 256 times so many channels; a group of the first has 64, whatever it is.
    """
    widths, blocks = (64 * widen, 128 * widen, 256 * widen), (depth - 2) // 9
    layers: list[nn.Module] = [_conv(channels, 64), nn.BatchNorm2d(64), nn.ReLU()]
    for before, width, stride in _blocks(64, widths, blocks):
        inner = cardinality * width // widen
        body = nn.Sequential(
            _conv(before, inner, kernel=1),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            _conv(inner, inner, stride=stride, groups=cardinality),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            _conv(inner, width, kernel=1),
            nn.BatchNorm2d(width),
        )
        layers += [_Residual(body, _projection(before, width, stride)), nn.ReLU()]
    return _initialised(nn.Sequential(*layers, *_head(widths[-1], classes)))


def resnet9(channels: int, classes: int) -> nn.Module:
    """The nine layers of Page (2018, "How to train your ResNet"): for images of at least 16 pixels a side."""

    def step(before: int, width: int) -> list[nn.Module]:
        return [_conv(before, width), nn.BatchNorm2d(width), nn.ReLU()]

    def residual(width: int) -> nn.Module:
        return _Residual(nn.Sequential(*step(width, width), *step(width, width)), nn.Identity())

    return nn.Sequential(
        *step(channels, 64),
        *step(64, 128),
        nn.MaxPool2d(2),
        residual(128),
        *step(128, 256),
        nn.MaxPool2d(2),
        *step(256, 512),
        nn.MaxPool2d(2),
        residual(512),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes, bias=False),
        _Scale(0.125),
    )


class _Residual(nn.Module):
    """f(x) + g(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.body(x) + self.shortcut(x)
        return total


class _PreActivated(nn.Module):
    """A block of a wide ResNet. Where the width changes, the shortcut starts behind the first activation."""

    def __init__(self, before: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.body = nn.Sequential(
            _conv(before, width, stride=stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            _conv(width, width),
        )
        self.shortcut = None if before == width else _conv(before, width, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation(x)
        total: Tensor = self.body(activated) + (x if self.shortcut is None else self.shortcut(activated))
        return total


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _blocks(before: int, widths: tuple[int, ...], blocks: int) -> list[tuple[int, int, int]]:
    """(channels before, channels, stride) of every block of all stages."""
    found = []
    for stage, width in enumerate(widths):
        for block in range(blocks):
            found.append((before, width, 2 if stage and not block else 1))
            before = width
    return found


def _conv(before: int, width: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, width, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


def _projection(before: int, width: int, stride: int) -> nn.Module:
    if before == width and stride == 1:
        return nn.Identity()
    return nn.Sequential(_conv(before, width, kernel=1, stride=stride), nn.BatchNorm2d(width))


def _head(width: int, classes: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)


def _initialised(network: nn.Module) -> nn.Module:
    """Convolutions by He et al. 2015 (arXiv 1502.01852), from the number of outputs."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
