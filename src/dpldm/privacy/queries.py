"""Queries: noised sums over the whole data set, each charged before a record is touched and released once.

A unit (an image, or the at most m images of a group) contributes one vector of norm at most 1, whatever it holds:
its images have weights that add up to at most 1, and an image whose label is not a declared class, or whose latent is
not finite, contributes nothing. So adding or removing a unit moves a sum by at most 1, and replacing one by at most
`Question.replace_one` (docs/privacy.md, Queries). What becomes of an answer afterwards is post-processing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpldm.privacy.entropy import Entropy
from dpldm.privacy.grid import add_gaussian_on_grid
from dpldm.privacy.ledger import Ledger
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import CandidateScores, ClassMeans, ClassSpreads, PublicClassHistogram, Question

CERTAIN = 2.0
"""Deviations of the noise that a cell must exceed to count: one in 44 empty ones does."""

UNITS_AT_ONCE = 1024
"""Units whose latents are summed together: memory only."""


@dataclass(frozen=True)
class Places:
    """The images of every unit, a row for each, padded to the largest. PRIVATE."""

    records: Tensor  # (U, m) int64, which record
    labels: Tensor  # (U, m) int64, its class; anything outside 0 .. K-1 is unknown
    weights: Tensor  # (U, m) what it counts: not negative, 0 for null records and for places left empty

    def known(self, classes: int) -> Tensor:
        """(U, m) bool, where the class is one of K."""
        return (self.labels >= 0) & (self.labels < classes)

    def shares(self, counted: Tensor) -> Tensor:
        """(U, m) float64 weights where `counted`, (U, m) bool, else 0; no row adds up to more than 1."""
        weights = self.weights.double().clamp(min=0.0) * counted
        return weights / weights.sum(1, keepdim=True).clamp(min=1.0)


def ask(question: Question, total: Callable[[], Tensor], plan: PrivacyPlan, ledger: Ledger, entropy: Entropy) -> Tensor:
    """Charge one attempt at `question`, then add up the contributions and their noise. A DP output, of total's shape.

    Args:
        total: reads the data; a sum of vectors of norm at most 1, one for each unit.

    Raises:
        BudgetExhausted: no attempt is left; nothing was read.
    """
    ledger.charge_query(plan, question)
    summed, sigma = total(), question.noise_multiplier
    if plan.noise == "grid":
        return add_gaussian_on_grid(summed, sigma, 1.0, summed.numel(), entropy)
    return add_gaussian(summed, sigma, entropy)


def class_counts(places: Places, classes: int) -> Tensor:
    """Sum over units of their shares in each class, (K,) float64. PRIVATE until it is noised.

    Any kinds will do for classes that are a function of an image and its label alone.
    """
    shares = places.shares(places.known(classes))
    known = shares > 0
    return torch.zeros(classes, dtype=torch.float64).index_add_(0, places.labels[known], shares[known])


def class_sums(question: ClassMeans, places: Places, latents: Tensor, classes: int) -> Tensor:
    """Sum over units of ([share * z / R], [share * a]) / sqrt(1 + a^2) in each class, (K, d + 1) float64. PRIVATE.

    Args:
        latents: (N, ...) one of d entries for each record; cut to norm R here.
    """
    flat = latents.flatten(1)
    total = torch.zeros(classes, flat.shape[1] + 1, dtype=torch.float64)
    weight = question.count_weight
    for start in range(0, len(places.records), UNITS_AT_ONCE):
        part = slice(start, start + UNITS_AT_ONCE)
        rows = Places(places.records[part], places.labels[part], places.weights[part])
        z = flat[rows.records].double()  # (u, m, d)
        shares = rows.shares(rows.known(classes) & torch.isfinite(z).all(2))
        known = shares > 0
        z = z / z.norm(dim=2, keepdim=True).clamp(min=question.clip_norm)  # norm at most 1, in units of R
        vectors = torch.cat([z, torch.full_like(z[:, :, :1], weight)], 2) / math.hypot(1, weight)
        total.index_add_(0, rows.labels[known], vectors[known] * shares[known][:, None])
    return total


def spread_sums(question: ClassSpreads, places: Places, latents: Tensor, centres: Tensor) -> Tensor:
    """Sum over units of share * r r^T / R^2 in each class, packed: (K, d (d + 1) / 2) float64. PRIVATE.

    Args:
        places: with numbers of parts for labels, those of a class one after another.
        latents: (N, ...) one of d entries for each record; r is its distance from its part's centre, cut to norm R.
        centres: (K, parts, d), not a function of the records but through a noised answer.
    """
    flat, (classes, parts, d), of_part = latents.flatten(1), centres.shape, centres.flatten(0, 1).double()
    total = torch.zeros(classes, d, d, dtype=torch.float64)
    for start in range(0, len(places.records), UNITS_AT_ONCE):
        part = slice(start, start + UNITS_AT_ONCE)
        rows = Places(places.records[part], places.labels[part], places.weights[part])
        z = flat[rows.records].double()  # (u, m, d)
        shares = rows.shares(rows.known(classes * parts) & torch.isfinite(z).all(2))
        for label in range(classes):
            of_class = (shares > 0) & (rows.labels // parts == label)
            r = z[of_class] - of_part[rows.labels[of_class]]
            r = r / r.norm(dim=1, keepdim=True).clamp(min=question.clip_norm)  # norm at most 1, in units of R
            total[label] += (r * shares[of_class][:, None]).T @ r
    return packed(total)


def packed(matrices: Tensor) -> Tensor:
    """Symmetric (..., d, d) as vectors (..., d (d + 1) / 2) of the same norm: entries off the diagonal, sqrt 2 fold."""
    upper, lower = torch.triu_indices(*matrices.shape[-2:])
    return matrices[..., upper, lower] * _weights(upper, lower)


def unpacked(vectors: Tensor, d: int) -> Tensor:
    """The matrices (..., d, d) that `packed` made."""
    upper, lower = torch.triu_indices(d, d)
    matrices = torch.zeros(*vectors.shape[:-1], d, d, dtype=vectors.dtype)
    matrices[..., upper, lower] = matrices[..., lower, upper] = vectors / _weights(upper, lower)
    return matrices


def _weights(rows: Tensor, columns: Tensor) -> Tensor:
    return torch.where(rows == columns, 1.0, 2.0).double().sqrt()


def score_sums(question: CandidateScores, places: Places, scores: Tensor) -> Tensor:
    """Sum over units of the mean scores of their images / sqrt(k), (k,) float64. PRIVATE.

    Args:
        scores: (N, k) for each record; cut to 0 .. 1 here. A record with one that is not finite counts nothing.
    """
    rows = scores[places.records].double()  # (U, m, k)
    shares = places.shares(torch.isfinite(rows).all(2))
    counted = shares > 0
    total = (rows[counted].clamp(0.0, 1.0) * shares[counted][:, None]).sum(0)
    return total / math.sqrt(question.candidates)


# --- what becomes of answers: post-processing ---------------------------------------------------------------------


def class_shares(noised: Tensor) -> Tensor:
    """Shares of the classes from a noised histogram, (K,) float64, not negative, adding up to 1.

    Noise may leave no class a positive count; then all are alike.
    """
    positive = noised.double().clamp(min=0.0)
    total = positive.sum()
    return positive / total if total > 0 else torch.full_like(positive, 1 / len(positive))


def shares_within_classes(question: PublicClassHistogram, noised: Tensor) -> Tensor:
    """Shares of the public classes within each class, (K, C) float64, rows adding up to 1, from the answer (K C,).

    Cells that noise alone could have filled (`CERTAIN` deviations) count as empty; most are. A class that has no other
    takes the shares of all classes together, or equal ones if there are none.
    """
    cells = noised.double().view(-1, question.public_classes)
    sure = torch.where(cells > CERTAIN * question.noise_multiplier, cells, torch.zeros_like(cells))
    whole = class_shares(sure.sum(0))
    return torch.stack([class_shares(row) if row.any() else whole for row in sure])


def counts_by_share(shares: Tensor, count: int) -> tuple[int, ...]:
    """Whole numbers in these proportions that add up to `count`: rounded down, the rest to the largest remainders."""
    exact = shares.double() * count
    counts = exact.floor().long()
    rest = (counts.double() - exact).argsort(stable=True)[: count - int(counts.sum())]
    counts[rest] += 1
    return tuple(counts.tolist())


def class_means(question: ClassMeans, noised: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the clipped latents and counts of each part from the answer, (K * parts, d) and (K * parts,), in units of
    the latent. Their noise has the deviations `deviations_of_means`."""
    noised = noised.double() * math.hypot(1, question.count_weight)
    return noised[:, :-1] * question.clip_norm, noised[:, -1] / question.count_weight


def deviations_of_means(question: ClassMeans) -> tuple[float, float]:
    """Standard deviations of the noise in an entry of a sum and in a count (see `class_means`)."""
    whole = question.noise_multiplier * math.hypot(1, question.count_weight)
    return whole * question.clip_norm, whole / question.count_weight


def class_spreads(question: ClassSpreads, noised: Tensor, d: int) -> Tensor:
    """Sums of r r^T in each class in units of the latent, (K, d, d) float64, from the answer; not divided by counts."""
    return unpacked(noised.double(), d) * question.clip_norm**2
