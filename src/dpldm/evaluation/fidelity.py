"""Distances between a real and a synthetic image set: KID and the Fréchet distance.

KID (Bińkowski et al. 2018, arXiv 1801.01401) is an unbiased estimate of a squared maximum mean
discrepancy and may be used at any number of images. The Fréchet distance (Heusel et al. 2017, arXiv
1706.08500) is biased upwards, the more so the fewer images there are, so it has a floor on their number.

INTERNAL: a distance to private images is computed without noise and is itself private.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpldm.errors import UserError
from dpldm.evaluation.features import FeatureExtractor, Images

FRECHET_MINIMUM = 5_000
"""Images needed on each side for a Fréchet distance: well above the 1,280 or 2,048 features, so that the
covariance matrices have full rank."""

Matrix = NDArray[Any]


@dataclass(frozen=True)
class Distance:
    """One distance between `n_real` real and `n_fake` synthetic images, seen through `extractor`.

    `name` is "KID" or "FD"; `error` is a standard error, or None where none is estimated. As text the
    distance always names its extractor, and "FID" is reserved for the Inception network.
    """

    name: str
    value: float
    error: float | None
    extractor: str
    n_real: int
    n_fake: int

    @property
    def label(self) -> str:
        if (self.name, self.extractor) == ("FD", "inception-v3"):
            return "FID (inception-v3)"
        return f"{self.name}-{self.extractor}"

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.2g}"
        return f"{self.label} = {self.value:.4g}{error} ({self.n_real:,} real, {self.n_fake:,} synthetic images)"


def measure(real: Images, fake: Images, extractor: FeatureExtractor, *, seed: int = 0) -> list[Distance]:
    """KID, and the Fréchet distance as well when both sets have at least 5,000 images.

    `real` and `fake` are uint8 (N, H, W, C). Raises UserError when a set has fewer than 4 images.
    """
    real_features, fake_features = extractor(real), extractor(fake)
    value, error = kid(real_features, fake_features, seed=seed)
    counts = extractor.name, len(real), len(fake)
    distances = [Distance("KID", value, error, *counts)]
    if min(len(real), len(fake)) >= FRECHET_MINIMUM:
        distances.append(Distance("FD", frechet_distance(real_features, fake_features), None, *counts))
    return distances


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
