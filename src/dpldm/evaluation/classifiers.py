"""The classifiers with which the papers measure a synthetic set.

CNN, multilayer perceptron and logistic regression as in DPDM (Dockhorn et al. 2023, arXiv 2210.09929) and DP-LDM (Liu
et al. 2024, arXiv 2305.15759), and the larger networks of `residual`, trained without augmentation by one of `recipes`.
The epoch is chosen on *synthetic* images: choosing it on real ones would spend privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dpldm.errors import UserError
from dpldm.evaluation import residual
from dpldm.evaluation.recipes import PAPERS, Recipe

Kind = Literal[
    "cnn",
    "mlp",
    "logreg",
    "resnet9",
    "resnet-110",
    "resnet-164",
    "wrn-40-4",
    "wrn-28-10",
    "resnext-29",
    "resnext-28",
]
"""Networks by name; of ResNeXt, 29 is 8x64d of its paper, and 28 what DPImageBench uses for CIFAR."""
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

SMALLEST_SIDE = 8
_SMALLEST_OF_RESNET9 = 16
_UNPADDED_SIDE = 18  # below this the papers' CNN has nothing left after its third convolution


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier at its chosen epoch.

    `epoch` counts from 1; `validation_accuracies[i]` is the accuracy after epoch i + 1 on the images that
    chose it.
    """

    kind: Kind
    network: nn.Module
    epoch: int
    validation_accuracies: tuple[float, ...]

    def predict(self, images: Images) -> Labels:
        """Images uint8 (N, H, W, C) of the size trained on, to class numbers int64 (N,)."""
        return self._logits(images).argmax(1).cpu().numpy()

    def probabilities(self, images: Images) -> NDArray[np.float64]:
        """As `predict`, to the probability of each class, (N, K), rows adding up to 1."""
        return self._logits(images).double().softmax(1).cpu().numpy()

    def _logits(self, images: Images) -> Tensor:
        device = next(self.network.parameters()).device
        return _logits(self.network, _pixels(images, device), _precision(self.kind, device))

    def accuracy(self, images: Images, labels: Labels) -> float:
        """The share of `images` given their label, in [0, 1]."""
        return float((self.predict(images) == labels).mean())


def train_classifier(
    kind: Kind,
    images: Images,
    labels: Labels,
    *,
    classes: int,
    epochs: int,
    seed: int,
    validation: tuple[Images, Labels],
    recipe: Recipe = PAPERS,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[int, int], None] | None = None,
) -> TrainedClassifier:
    """Trains for `epochs` by a recipe and keeps the first epoch with the best accuracy on `validation`.

    Images are uint8 (N, H, W, C) with sides of at least 8 pixels, labels int64 (N,) in [0, classes).
    Everything random follows from `seed`; torch's global random state is left as it was. `on_epoch` is
    called with (epochs done, epochs) after each one. Raises UserError for images or labels that do not
    fit; the data here is synthetic, so its numbers may appear in the message.
    """
    if epochs < 1:
        raise UserError(f"A classifier is trained for at least one epoch, not {epochs}.")
    _check(images, labels, classes)
    _check(*validation, classes)
    if validation[0].shape[1:] != images.shape[1:]:
        raise UserError(f"Validation images are {validation[0].shape[1:]}, training images {images.shape[1:]}.")
    device = torch.device(device)
    with _seeded(seed, 0, device):
        network = build_network(kind, images.shape[1:], classes).to(device)
    optimizer, average = recipe.optimizer_of(network), recipe.averaged(network)
    tested = network if average is None else average.module
    pixels, targets = _pixels(images, device), torch.tensor(labels, device=device)
    held_out, expected = _pixels(validation[0], device), torch.tensor(validation[1], device=device)
    accuracies: list[float] = []
    best = tested.state_dict()
    for epoch in range(1, epochs + 1):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate_after(epoch - 1)
        with _seeded(seed, epoch, device):
            _train_epoch(network, optimizer, average, pixels, targets, recipe, kind)
        predicted = _logits(tested, held_out, _precision(kind, device)).argmax(1)
        accuracies.append(float((predicted == expected).double().mean()))
        if accuracies[-1] > max(accuracies[:-1], default=-1.0):
            best = deepcopy(tested.state_dict())
        if on_epoch is not None:
            on_epoch(epoch, epochs)
    network.load_state_dict(best)
    return TrainedClassifier(kind, network.eval(), int(np.argmax(accuracies)) + 1, tuple(accuracies))


def build_network(kind: Kind, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The papers' network for images of `shape` (H, W, C): float (N, C, H, W) in [-1, 1] to logits.

    The CNN is that of DPDM, without padding, when both sides have at least 18 pixels; smaller images get
    a padding of 1. Raises UserError when `kind` is unknown, or ResNet-9 meets images of less than 16 pixels.
    """
    if kind not in get_args(Kind):
        raise UserError(f"There is no classifier {kind!r}: choose among {', '.join(get_args(Kind))}.")
    height, width, channels = shape
    if kind == "resnet9" and min(height, width) < _SMALLEST_OF_RESNET9:
        raise UserError(
            f"ResNet-9 takes images of at least {_SMALLEST_OF_RESNET9} pixels a side: use another protocol."
        )
    if kind in _RESIDUAL:
        return _RESIDUAL[kind](channels, classes)
    if kind == "logreg":
        return nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, classes))
    if kind == "mlp":
        hidden = nn.Linear(height * width * channels, 100)
        return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(100, classes))
    pad = 0 if min(height, width) >= _UNPADDED_SIDE else 1
    layers: list[nn.Module] = []
    for width_in, width_out in ((channels, 32), (32, 64)):
        convolution = nn.Conv2d(width_in, width_out, 3, padding=pad)
        layers += [convolution, nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(0.5)]
    layers += [nn.Conv2d(64, 128, 3, padding=pad), nn.ReLU(), nn.Flatten()]
    rows, columns = (((side - 2 + 2 * pad) // 2 - 2 + 2 * pad) // 2 - 2 + 2 * pad for side in (height, width))
    layers += [nn.Linear(128 * rows * columns, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, classes)]
    return nn.Sequential(*layers)


_RESIDUAL: dict[Kind, Callable[[int, int], nn.Module]] = {
    "resnet9": residual.resnet9,
    "resnet-110": partial(residual.resnet, 110),
    "resnet-164": partial(residual.resnet, 164),
    "wrn-40-4": partial(residual.wide_resnet, 40, 4),
    "wrn-28-10": partial(residual.wide_resnet, 28, 10),
    "resnext-29": partial(residual.resnext, 29, 8, 4),
    "resnext-28": partial(residual.resnext, 28, 8, 10),
}


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    pixels: Tensor,
    targets: Tensor,
    recipe: Recipe,
    kind: Kind,
) -> None:
    network.train()
    for chosen in torch.split(torch.randperm(len(pixels)).to(pixels.device), recipe.batch_size):
        with _precision(kind, pixels.device):
            logits = network(_scale(pixels[chosen]))
        loss = F.cross_entropy(logits.float(), targets[chosen], label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if average is not None:
            average.update_parameters(network)


@torch.no_grad()
def _logits(network: nn.Module, pixels: Tensor, precision: AbstractContextManager[object]) -> Tensor:
    network.eval()
    with precision:
        return torch.cat([network(_scale(batch)) for batch in torch.split(pixels, 1024)])


def _pixels(images: Images, device: torch.device) -> Tensor:
    """The whole set as bytes (N, C, H, W), laid out channels-last as it already is in memory."""
    return torch.tensor(images, device=device).permute(0, 3, 1, 2)


def _scale(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def _precision(kind: Kind, device: torch.device) -> AbstractContextManager[object]:
    if kind not in ("mlp", "logreg") and device.type == "cpu" and _bfloat16_pays():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


def _bfloat16_pays() -> bool:
    """Whether this processor multiplies bfloat16 in hardware.

    With such units convolutions train half as fast again in bfloat16 as in float32; emulated, ten times slower.
    `get_capabilities` is newer than the oldest torch we support.
    """
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(unit, False) for unit in ("avx512_bf16", "amx_bf16"))


@contextmanager
def _seeded(seed: int, part: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers inside follow from (seed, part); outside they go on as if nothing happened."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence([seed, part]).generate_state(1)[0]))
        yield


def _check(images: Images, labels: Labels, classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError("A classifier takes uint8 images of shape (N, H, W, C) with C 1 or 3.")
    if min(images.shape[1:3]) < SMALLEST_SIDE:
        raise UserError(f"A classifier takes images of at least {SMALLEST_SIDE} pixels a side.")
    if len(images) == 0 or labels.shape != (len(images),):
        raise UserError(f"There must be one label for each image: got {len(images)} images, {labels.size} labels.")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"Labels must lie between 0 and {classes - 1}.")
