"""Two looks at who lies near to whom: do synthetic images keep closer to the images that were trained on than to images
that were not?

Both are tests against images from the same source that took no part in training, and both are INTERNAL: a nearest
neighbour is private, and distances alone have been enough to rebuild records (Ganev and De Cristofaro, arXiv
2312.05114). Finding nothing proves nothing (Yao et al., arXiv 2505.01524).

All features are rows of norm 1 (`scaled`), so that distances are those of directions: two pale images are not alike for
being pale.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, hypergeom
from torch import Tensor

NEIGHBOURS = 50
"""To whose mean distance the nearest one's is compared (Carlini et al., arXiv 2301.13188)."""
RARE = 1e-3
"""Share of held-out images whose copy score counts as that of a copy."""
SHUFFLES = 9_999
ROWS = 1024
"""Queries whose distances are held at a time."""


@dataclass(frozen=True)
class Nearness:
    """Whether training images are nearer than held-out ones."""

    share: float  # of synthetic images whose nearest real one was trained on; 1/2 if training made no difference
    ratio: float  # median over synthetic images: distance to training images over that to held-out ones
    real: int  # images on each side
    p_value: float  # of a share as large, if training made no difference


@dataclass(frozen=True)
class Copies:
    """How many synthetic images are as close to one training image as held-out images hardly ever are."""

    found: int
    synthetic: int
    trained: int  # images that might have been copied: all that were trained on
    threshold: float  # copy score below which an image counts
    share_at_most: float  # upper 95 % bound (Clopper-Pearson) of the share that counts
    p_value: float  # of as many, if synthetic images were like held-out ones
    closest: tuple[tuple[int, int], ...]  # (synthetic, trained) rows, the closest first


def nearness(trained: Tensor, held_out: Tensor, synthetic: Tensor, random: np.random.Generator) -> Nearness:
    """Compare distances to as many training images as held-out ones.

    If training made no difference, which real images were trained on is like the toss of a coin, whatever the synthetic
    ones look like. So the test shuffles that and nothing else; it stays exact when many synthetic images have the same
    neighbour, where counting each as a toss of its own (a binomial test) would see too much.

    Args:
        trained, held_out, synthetic: features (N, d), (M, d), (S, d).
        random: chooses among more images than are needed, and shuffles.
    """
    real = min(len(trained), len(held_out))
    sides = [side[torch.from_numpy(random.permutation(len(side))[:real])] for side in (trained, held_out)]
    near = [nearest(synthetic, side, 1) for side in sides]
    (to_trained, first), (to_held_out, second) = ((d[:, 0], place[:, 0]) for d, place in near)
    tie_goes_to_trained = random.integers(0, 2, len(synthetic)).astype(bool)
    trained_wins = (to_trained < to_held_out) | ((to_trained == to_held_out) & tie_goes_to_trained)
    times_nearest = np.bincount(np.where(trained_wins, first, real + second), minlength=2 * real)
    seen = times_nearest[:real].sum()
    as_many = sum(random.permutation(times_nearest)[:real].sum() >= seen for _ in range(SHUFFLES))
    ratio = np.median(to_trained / np.maximum(to_held_out, np.finfo(np.float32).tiny))
    return Nearness(float(trained_wins.mean()), float(ratio), real, (1 + int(as_many)) / (1 + SHUFFLES))


def copies(trained: Tensor, held_out: Tensor, synthetic: Tensor, shown: int = 20) -> Copies:
    """Count the synthetic images with a copy score as low as that of one held-out image in a thousand.

    The score is the distance to the nearest training image over the mean distance to the nearest 50, so an ordinary
    image, to which everything is rather near, is none.

    Args:
        trained, held_out, synthetic: features (N, d), (M, d), (S, d).
        shown: how many pairs are kept to look at.
    """
    usual = np.sort(copy_scores(held_out, trained)[0])
    scores, places = copy_scores(synthetic, trained)
    rank = max(1, int(RARE * len(usual)))
    threshold = usual[rank - 1]
    found = int((scores < threshold).sum())
    # Of the lowest found + rank - 1 scores of both sets, at most rank - 1 are of held-out images.
    p_value = hypergeom.cdf(rank - 1, len(scores) + len(usual), len(usual), found + rank - 1)
    bound = binomtest(found, len(scores), alternative="less").proportion_ci(0.95, method="exact").high
    order = np.argsort(scores, kind="stable")[:shown]
    closest = tuple((int(row), int(places[row])) for row in order)
    return Copies(found, len(scores), len(trained), float(threshold), float(bound), float(p_value), closest)


def copy_scores(queries: Tensor, references: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(Q,) scores between 0 and 1, 0 for an exact copy, and the row of each query's nearest reference."""
    distances, places = nearest(queries, references, min(NEIGHBOURS, len(references)))
    around = distances.mean(1)
    # Where all neighbours are the same image, it is a copy of none in particular.
    scores = np.divide(distances[:, 0], around, out=np.ones_like(around), where=around > 0)
    return scores, places[:, 0]


def nearest(queries: Tensor, references: Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Distances and rows of the `count` nearest references of each query, (Q, count) each, the nearest first."""
    found = [torch.cdist(part, references).topk(count, largest=False) for part in torch.split(queries, ROWS)]
    return torch.cat([each.values for each in found]).numpy(), torch.cat([each.indices for each in found]).numpy()
