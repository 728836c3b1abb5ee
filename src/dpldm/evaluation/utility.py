"""Train on synthetic, test on real: what a synthetic set is good for.

A `Protocol` fixes how many synthetic images train the classifiers, how many choose the epoch, and for how
long. Nothing about the real test images influences training or selection, so when they are a public
benchmark the result may be published; when they are private it is INTERNAL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpldm.errors import UserError
from dpldm.evaluation.classifiers import Images, Kind, Labels, TrainedClassifier, train_classifier
from dpldm.evaluation.recipes import BENCHMARK, BENCHMARK_CIFAR, PAPER_COLOUR, PAPERS, Recipe


@dataclass(frozen=True)
class Protocol:
    """`train` synthetic images to learn from, `validation` others to choose the epoch, `epochs` passes."""

    name: str
    train: int
    validation: int
    epochs: int
    kinds: tuple[Kind, ...] = ("cnn", "mlp", "logreg")
    recipe: Recipe = PAPERS

    @property
    def images(self) -> int:
        """Synthetic images needed in all."""
        return self.train + self.validation

    def reduced(self, images: int | None, epochs: int | None) -> Protocol:
        """With fewer images, split alike, or fewer epochs, under a name of its own: its numbers are not this one's.

        Raises UserError when either is more than the protocol's, or the images are fewer than 6.
        """
        images, epochs = images or self.images, epochs or self.epochs
        if images > self.images or epochs > self.epochs or images < 6:
            raise UserError(
                f"The protocol {self.name} has {self.images:,} images and {self.epochs} epochs: evaluation.images and "
                "evaluation.epochs can only be fewer, and at least 6 images."
            )
        if (images, epochs) == (self.images, self.epochs):
            return self
        held_out = max(1, self.validation * images // self.images)
        return replace(self, name=f"{self.name}-reduced", train=images - held_out, validation=held_out, epochs=epochs)


FULL = Protocol("full", train=50_000, validation=10_000, epochs=50)
"""The protocol of the papers' tables (DPDM, DP-LDM)."""

SCREEN = Protocol("screen", train=8_334, validation=1_666, epochs=10, kinds=("cnn",))
"""Minutes instead of hours, to compare runs with one another; its numbers lie below those of `FULL`."""

PAPER_COLOUR_PROTOCOL = Protocol(
    "paper-colour", train=50_000, validation=10_000, epochs=10, kinds=("resnet9", "wrn-40-4"), recipe=PAPER_COLOUR
)
"""The networks of DP-LDM's table for CIFAR-10, trained as its script trains WRN-40-4."""

DPIMAGEBENCH = Protocol(
    "dpimagebench",
    train=55_000,
    validation=5_000,
    epochs=50,
    kinds=("resnet-110", "wrn-40-4", "resnext-29"),
    recipe=BENCHMARK,
)
"""DPImageBench's three networks for images of up to 32 pixels, with its choice of the epoch on synthetic images.

Its tables choose the epoch on real ones and show the best of the three, so they are not the mean that is printed here.
"""

DPIMAGEBENCH_LARGEST_SIDE = 32
"""Above it the benchmark leaves ResNeXt out."""

DPIMAGEBENCH_CIFAR = Protocol(
    "dpimagebench-cifar",
    train=55_000,
    validation=5_000,
    epochs=200,
    kinds=("resnet-164", "wrn-28-10", "resnext-28"),
    recipe=BENCHMARK_CIFAR,
)
"""The same for CIFAR-10 and CIFAR-100: days without a GPU."""

PROTOCOLS = {each.name: each for each in (FULL, SCREEN, PAPER_COLOUR_PROTOCOL, DPIMAGEBENCH, DPIMAGEBENCH_CIFAR)}
"""All but `quick`, whose size is that of the set."""


def quick(images: int, epochs: int = 5) -> Protocol:
    """A protocol for a first look with `images` synthetic images, one in six of which chooses the epoch.

    Raises UserError for fewer than 6 images.
    """
    if images < 6:
        raise UserError(f"A quick evaluation needs at least 6 synthetic images, not {images}.")
    return Protocol("quick", train=images - images // 6, validation=images // 6, epochs=epochs, kinds=("cnn",))


@dataclass(frozen=True)
class Score:
    """Test accuracy of one kind of classifier, all values in [0, 1].

    `accuracies` and `epochs` (the chosen ones) have one entry a seed. `deviation` is the sample standard
    deviation over seeds, None for a single seed. `interval` is the 95 % Wilson interval of `mean` for the
    number of test images: it covers the choice of test images, not of seeds. `per_class[k]` is the mean
    accuracy on the test images of class k, None when there is none; `balanced` is the mean of those that
    there are, which always naming one class leaves at 1 over their number.
    """

    accuracies: tuple[float, ...]
    epochs: tuple[int, ...]
    mean: float
    deviation: float | None
    interval: tuple[float, float]
    per_class: tuple[float | None, ...]
    balanced: float


@dataclass(frozen=True)
class Summary:
    """Of several kinds of classifiers: the mean of their means, and the best of these. Tables of the field show the one
    or the other; they must not be compared with each other."""

    mean: float
    best: float
    best_kind: str


@dataclass(frozen=True)
class UtilityResult:
    """Accuracies on real images of classifiers that saw only synthetic ones.

    `guessing` is the accuracy of always naming the class with the most test images. `internal` is True
    unless the test images are a public benchmark: the numbers then are a function of private images and
    must not be released.
    """

    protocol: str
    train: int
    validation: int
    test: int
    epochs: int
    seeds: tuple[int, ...]
    scores: dict[str, Score]
    guessing: float
    internal: bool

    @property
    def summary(self) -> Summary:
        """The scores in two numbers."""
        means = {kind: score.mean for kind, score in self.scores.items()}
        best = max(means, key=means.__getitem__)
        return Summary(fmean(means.values()), means[best], best)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries."""
        return asdict(self) | {"summary": asdict(self.summary)}


def train_on_synthetic(
    images: Images,
    labels: Labels,
    test_images: Images,
    test_labels: Labels,
    *,
    protocol: Protocol,
    classes: int,
    kinds: Sequence[Kind] | None = None,
    seeds: Sequence[int] = (0,),
    public_benchmark: bool = False,
    device: str = "cpu",
    on_epoch: Callable[[Kind, int, int, int], None] | None = None,
) -> UtilityResult:
    """Trains each kind of classifier on synthetic images, once a seed, and tests it on real ones. INTERNAL.

    `images` (N, H, W, C) uint8 and `labels` (N,) int64 are synthetic; a random `protocol.images` of them
    are used, drawn anew for each seed, so their order does not matter. `kinds` replaces the protocol's.
    `on_epoch` is called with (kind, seed, epochs done, epochs). Raises UserError when there are fewer
    synthetic images than the protocol needs, when the sizes of synthetic and test images differ, or when
    there is no test image, kind or seed.
    """
    kinds = protocol.kinds if kinds is None else tuple(kinds)
    _check(images, labels, test_images, test_labels, protocol, classes)
    if not kinds or not seeds:
        raise UserError("An evaluation needs at least one kind of classifier and one seed.")
    scores: dict[str, Score] = {}
    for kind in kinds:
        trained = [_train(kind, images, labels, protocol, classes, seed, device, on_epoch) for seed in seeds]
        hits = np.stack([model.predict(test_images) == test_labels for model in trained])
        scores[kind] = score(hits, [model.epoch for model in trained], test_labels, classes)
    return UtilityResult(
        protocol=protocol.name,
        train=protocol.train,
        validation=protocol.validation,
        test=len(test_images),
        epochs=protocol.epochs,
        seeds=tuple(seeds),
        scores=scores,
        guessing=float(np.bincount(test_labels).max() / len(test_labels)),
        internal=not public_benchmark,
    )


def accuracy_interval(correct: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion of `correct` out of `n` (Wilson 1927), within [0, 1].

    `correct` may be fractional, for a mean over seeds. Raises ValueError unless 0 <= correct <= n, n > 0.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct out of {n} is not a proportion")
    z = 1.959963984540054
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _train(
    kind: Kind,
    images: Images,
    labels: Labels,
    protocol: Protocol,
    classes: int,
    seed: int,
    device: str,
    on_epoch: Callable[[Kind, int, int, int], None] | None,
) -> TrainedClassifier:
    chosen = np.random.default_rng(seed).permutation(len(images))[: protocol.images]
    train, held_out = np.split(chosen, [protocol.train])
    return train_classifier(
        kind,
        images[train],
        labels[train],
        classes=classes,
        epochs=protocol.epochs,
        seed=seed,
        validation=(images[held_out], labels[held_out]),
        recipe=protocol.recipe,
        device=device,
        on_epoch=None if on_epoch is None else lambda done, total: on_epoch(kind, seed, done, total),
    )


def score(hits: NDArray[np.bool_], epochs: list[int], test_labels: Labels, classes: int) -> Score:
    """The score of one kind of classifier. `hits` (seeds, test images): whether each prediction is right."""
    accuracies = tuple(float(row.mean()) for row in hits)
    mean = fmean(accuracies)
    present = (test_labels == k for k in range(classes))
    per_class = tuple(float(hits[:, of_class].mean()) if of_class.any() else None for of_class in present)
    return Score(
        accuracies=accuracies,
        epochs=tuple(epochs),
        mean=mean,
        deviation=stdev(accuracies) if len(accuracies) > 1 else None,
        interval=accuracy_interval(mean * hits.shape[1], hits.shape[1]),
        per_class=per_class,
        balanced=fmean(accuracy for accuracy in per_class if accuracy is not None),
    )


def _check(
    images: Images, labels: Labels, test_images: Images, test_labels: Labels, protocol: Protocol, classes: int
) -> None:
    if len(images) < protocol.images:
        raise UserError(
            f"The {protocol.name} evaluation needs {protocol.images:,} synthetic images and there are "
            f"{len(images):,}: sample at least {protocol.images - len(images):,} more."
        )
    if len(labels) != len(images):
        raise UserError("There must be one label for each synthetic image.")
    if len(test_images) == 0 or len(test_labels) != len(test_images):
        raise UserError("There must be at least one test image, and one label for each.")
    if test_images.shape[1:] != images.shape[1:]:
        raise UserError(
            f"Test images have shape {test_images.shape[1:]} and synthetic ones {images.shape[1:]}: "
            "prepare both with the same size and number of channels."
        )
    if test_labels.min() < 0 or test_labels.max() >= classes:
        raise UserError("The test labels must be among the classes of the synthetic images.")
