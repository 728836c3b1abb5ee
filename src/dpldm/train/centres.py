"""Centres of the classes, or of their parts, in latent space: what a noised answer about class means says of them.

All entries of the sums have the same noise, so the singular values of their matrix, a row for each part, tell signal
from noise: those of noise of deviation s alone end at s (sqrt m + sqrt d), for m rows. A value y s beyond it is put to
s sqrt((y^2 - m - d)^2 - 4 m d) / y, the least error in Frobenius norm for a matrix of low rank (Gavish and Donoho
2017).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dpldm.privacy.queries import CERTAIN, class_means, deviations_of_means
from dpldm.privacy.questions import ClassMeans


@dataclass(frozen=True)
class Centres:
    """A function of DP outputs. A part that noise alone could have filled has its class's mean, and a share of 0."""

    means: Tensor  # (K, parts, d) float64
    shares: Tensor  # (K, parts) float64: how much of its class a part is
    counts: Tensor  # (K,) float64, images of each class, at least 1


def centres_of(question: ClassMeans, noised: Tensor, classes: int) -> Centres:
    """Means of the parts of each class from the answer. A class whose parts all look empty keeps its largest."""
    sums, counts = class_means(question, noised)
    of_entry, of_count = deviations_of_means(question)
    by_class = counts.view(classes, -1)
    filled = by_class > (CERTAIN * of_count if question.parts > 1 else -torch.inf)
    filled[torch.arange(classes), by_class.argmax(1)] = True
    rows, weights = filled.flatten(), torch.where(filled, by_class.clamp(min=1.0), 0.0)
    means = torch.zeros_like(sums)
    means[rows] = shrunk(sums[rows], of_entry) / counts[rows].clamp(min=1.0)[:, None]
    means, shares = means.view(classes, question.parts, -1), weights / weights.sum(1, keepdim=True)
    whole = (shares[:, :, None] * means).sum(1, keepdim=True)
    return Centres(torch.where(filled[:, :, None], means, whole), shares, weights.sum(1))


def shrunk(matrix: Tensor, deviation: float) -> Tensor:
    """A matrix (m, d) without what independent noise of that deviation adds to its singular values."""
    if deviation == 0:
        return matrix
    m, d = matrix.shape
    left, values, right = torch.linalg.svd(matrix / deviation, full_matrices=False)
    signal = (values.square() - m - d).square() - 4 * m * d
    kept = torch.where(values > m**0.5 + d**0.5, signal.clamp(min=0.0).sqrt() / values, 0.0)
    rebuilt: Tensor = (left * kept) @ right * deviation
    return rebuilt
