"""How a synthetic image set compares with a real one: KID, Fréchet distance, precision and recall, Inception Score.

KID (Bińkowski et al. 2018, arXiv 1801.01401) is an unbiased estimate of a squared maximum mean
discrepancy and may be used at any number of images. The Fréchet distance (Heusel et al. 2017, arXiv
1706.08500) is biased upwards, the more so the fewer images there are, so it has a floor on their number. Precision
and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991) tell fidelity from variety. The Inception Score (Salimans et
al. 2016, arXiv 1606.03498) looks at synthetic images alone.

INTERNAL: what compares with private images is computed without noise and is itself private.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpldm.errors import UserError
from dpldm.evaluation.features import Classifying, FeatureExtractor, Images

FRECHET_MINIMUM = 5_000
"""Images needed on each side for a Fréchet distance: well above the 1,280 or 2,048 features, so that the
covariance matrices have full rank."""
NEIGHBOURS = 3
"""k of precision and recall, as in their paper; DPImageBench's 4 counts an image as its own neighbour."""
NEIGHBOURS_MOST = 10_000
"""Images of each side that precision and recall look at, since their work is the product of both."""
SCORE_SPLITS = 10
"""Parts of the set that the Inception Score is averaged over, as in its paper."""

Matrix = NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """`n_fake` synthetic images compared with `n_real` real ones (0: not at all), seen through `extractor`.

    `name` is "KID", "FD", "precision", "recall" or "IS"; `error` is a standard error (of IS the deviation over its
    splits), or None where none is estimated. As text it always names its extractor; "FID" and "Inception Score" are
    reserved for the Inception network.
    """

    name: str
    value: float
    error: float | None
    extractor: str
    n_real: int
    n_fake: int

    @property
    def label(self) -> str:
        if self.extractor == "inception-v3" and self.name in ("FD", "IS"):
            return {"FD": "FID (inception-v3)", "IS": "Inception Score (inception-v3)"}[self.name]
        return f"{self.name}-{self.extractor}"

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.2g}"
        return f"{self.label} = {self.value:.4g}{error} ({self.counts} images)"

    @property
    def counts(self) -> str:
        """How many images were compared."""
        return f"{self.n_real:,} real, {self.n_fake:,} synthetic" if self.n_real else f"{self.n_fake:,} synthetic"


def measure(real: Images, fake: Images, extractor: FeatureExtractor, *, seed: int = 0) -> list[Comparison]:
    """KID, precision and recall; the Fréchet distance when both sets have at least 5,000 images; the Inception Score
    when the extractor tells classes apart.

    `real` and `fake` are uint8 (N, H, W, C). Raises UserError when a set has fewer than 4 images.
    """
    real_features, fake_features = extractor(real), extractor(fake)
    value, error = kid(real_features, fake_features, seed=seed)
    counts = extractor.name, len(real), len(fake)
    found = [Comparison("KID", value, error, *counts)]
    if min(len(real), len(fake)) >= FRECHET_MINIMUM:
        found.append(Comparison("FD", frechet_distance(real_features, fake_features), None, *counts))
    some_real, some_fake = _some(real_features, seed), _some(fake_features, seed)
    shares = precision_and_recall(some_real, some_fake)
    for name, share in zip(("precision", "recall"), shares, strict=True):
        found.append(Comparison(name, share, None, extractor.name, len(some_real), len(some_fake)))
    if isinstance(extractor, Classifying) and len(fake) >= SCORE_SPLITS:
        value, error = inception_score(extractor.logits(fake_features), seed=seed)
        found.append(Comparison("IS", value, error, extractor.name, 0, len(fake)))
    return found


def kid(
    real: Matrix, fake: Matrix, *, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Kernel inception distance of features (N, d) and (M, d): the estimate and its standard error.

    The estimate is the mean over random subsets of the unbiased squared MMD with kernel (x.y / d + 1)^3.
    A subset takes `subset_size` vectors from each side, at most half of the smaller side. Subsets of one
    sample overlap, so their spread alone understates the error. With n vectors a side and subsets of m,
    the spread s within the sample gives the variance s^2 (1 / subsets + m / (n - m)): the first term is
    the choice of subsets, the second the sample itself, for an estimate whose variance falls as 1 / n.
    Raises UserError when a side has fewer than 4 vectors or the dimensions differ.
    """
    _check_dimensions(real, fake)
    n = min(len(real), len(fake))
    m = min(subset_size, n // 2)
    if m < 2:
        raise UserError("KID needs at least 4 images on each side.")
    random = np.random.default_rng(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        x = real[random.choice(len(real), m, replace=False)].astype(np.float64)
        y = fake[random.choice(len(fake), m, replace=False)].astype(np.float64)
        values[i] = _squared_mmd(x, y)
    variance = values.var(ddof=1) if subsets > 1 else 0.0
    return float(values.mean()), sqrt(variance * (1 / subsets + m / (n - m)))


def frechet_distance(real: Matrix, fake: Matrix) -> float:
    """Squared Wasserstein-2 distance of the Gaussians fitted to features (N, d) and (M, d).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). With R = C1^(1/2), C1 C2 has the eigenvalues of the
    symmetric R C2 R, so the trace of the root needs no matrix square root of a non-symmetric product.
    Raises UserError when a side has fewer than 5,000 vectors or the dimensions differ.
    """
    _check_dimensions(real, fake)
    if min(len(real), len(fake)) < FRECHET_MINIMUM:
        raise UserError(
            f"A Fréchet distance needs at least {FRECHET_MINIMUM:,} images on each side: "
            "use KID, which is unbiased at any number, or more images."
        )
    mean_real, cov_real = _moments(real)
    mean_fake, cov_fake = _moments(fake)
    values, vectors = np.linalg.eigh(cov_real)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_fake @ root).clip(min=0)
    shift = mean_real - mean_fake
    return float(shift @ shift + np.trace(cov_real) + np.trace(cov_fake) - 2 * np.sqrt(product).sum())


def precision_and_recall(real: Matrix, fake: Matrix, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Shares of features (M, d) of synthetic images that lie where (N, d) real ones do, and the other way round.

    A set is where the balls are around its vectors that reach to the k-th nearest other vector of the set. So precision
    is low for images that look like none, recall for real images that are never drawn. Raises UserError when a side has
    no k + 1 vectors or the dimensions differ.
    """
    _check_dimensions(real, fake)
    if min(len(real), len(fake)) <= neighbours:
        raise UserError(f"Precision and recall need more than {neighbours} images on each side.")
    return _share_within(fake, real, neighbours), _share_within(real, fake, neighbours)


def inception_score(logits: Matrix, *, splits: int = SCORE_SPLITS, seed: int = 0) -> tuple[float, float]:
    """exp of the mean divergence KL(p(y|x) || p(y)) of class logits (N, K): mean and deviation over parts of the set.

    p(y) is that of the part. 1 at least, K at most. Images are shuffled first: sets often lie class by class.
    """
    order = np.random.default_rng(seed).permutation(len(logits))
    scores = []
    for part in np.array_split(logits[order].astype(np.float64), splits):
        shifted = part - part.max(axis=1, keepdims=True)
        log_shares = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        shares = np.exp(log_shares)
        marginal = shares.mean(axis=0)
        log_marginal = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
        scores.append(np.exp((shares * (log_shares - log_marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def _share_within(tested: Matrix, where: Matrix, neighbours: int) -> float:
    """The share of `tested` that lies in one of the balls of `where`."""
    # An image is its own nearest neighbour, at distance 0, so the k-th other one is at place k.
    radii = np.concatenate([np.partition(part, neighbours, axis=1)[:, neighbours] for part in _distances(where, where)])
    inside = sum(int((part <= radii).any(axis=1).sum()) for part in _distances(tested, where))
    return inside / len(tested)


def _distances(x: Matrix, y: Matrix) -> Iterator[Matrix]:
    """Squared Euclidean distances (some rows of x, all of y), in pieces, in float64."""
    y = y.astype(np.float64)
    squares = (y * y).sum(axis=1)
    for start in range(0, len(x), 1024):
        part = x[start : start + 1024].astype(np.float64)
        yield ((part * part).sum(axis=1)[:, None] + squares - 2 * part @ y.T).clip(min=0)


def _some(features: Matrix, seed: int) -> Matrix:
    """All, or a random choice of as many as precision and recall look at."""
    if len(features) <= NEIGHBOURS_MOST:
        return features
    chosen: Matrix = features[np.random.default_rng(seed).permutation(len(features))[:NEIGHBOURS_MOST]]
    return chosen


def _squared_mmd(x: Matrix, y: Matrix) -> float:
    """Unbiased squared MMD of two sets of m vectors each, float64 (m, d); can be negative."""
    m = len(x)
    within = 0.0
    for z in (x, y):
        kernel = _kernel(z, z)
        within += (kernel.sum() - np.trace(kernel)) / (m * (m - 1))
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: Matrix, y: Matrix) -> Matrix:
    base = x @ y.T / x.shape[1] + 1
    cube: Matrix = base * base * base  # many times faster than base**3
    return cube


def _moments(features: Matrix) -> tuple[Matrix, Matrix]:
    """Mean (d,) and unbiased covariance (d, d) in float64, in pieces so that no float64 copy is made."""
    mean = features.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), 4096):
        centred = features[start : start + 4096] - mean
        scatter += centred.T @ centred
    return mean, scatter / (len(features) - 1)


def _check_dimensions(real: Matrix, fake: Matrix) -> None:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise UserError("Both feature sets must have shape (N, d) with the same d: use one extractor for both.")
