"""Portraits of the classes: Gaussians in latent space for each, from noised answers, that latents can be drawn from.

A diffusion that is tuned by noised gradients learns slowly; a mean and a covariance are one query each, and say much of
what images of a class look like. What is drawn from a portrait is post-processing and may be trained on without end.

Noise on a covariance is a symmetric matrix whose eigenvalues fill [-r, r], r = 2 s sqrt(d) with s the deviation of an
entry off the diagonal (Wigner 1955). An eigenvalue y of the noised matrix is put to sqrt(y^2 - r^2), with y's sign, and
to 0 inside that interval: asymptotically the least error in Frobenius norm for a matrix of low rank (Gavish and Donoho
2017). Counts add up over classes, so their common covariance is known best: it says in which directions there is
anything to see, and a class's own covariance is corrected within these directions alone, where noise has less room.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Portraits:
    """A mixture of Gaussians for each of K classes over latents of shape (c, h, w). A function of DP outputs."""

    means: Tensor  # (K, parts, c, h, w) float32
    shares: Tensor  # (K, parts) how often each part is drawn
    factors: Tensor  # (K, d, r) float32: covariance F F^T of all parts of a class; r = 0 if only means are known

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """A latent for each of the labels (B,): (B, c, h, w)."""
        part = torch.multinomial(self.shares[labels], 1, generator=generator)[:, 0]
        normal = torch.randn((len(labels), self.factors.shape[2], 1), generator=generator)
        spread = (self.factors[labels] @ normal)[:, :, 0]
        return self.means[labels, part] + spread.view(-1, *self.means.shape[2:])


def factors(sums: Tensor, counts: Tensor, deviation: float) -> Tensor:
    """Factors of the classes' covariances, (K, d, r) float64, from noised sums of outer products.

    Args:
        sums: (K, d, d) symmetric; `deviation` is that of the noise on an entry off the diagonal.
        counts: (K,) noised counts, at least 1.
    """
    classes, d, _ = sums.shape
    whole = float(counts.sum())
    values, vectors = torch.linalg.eigh(sums.sum(0) / whole)
    values = shrunk(values, _edge(deviation * math.sqrt(classes) / whole, d))
    seen = values > 0
    values, vectors = values[seen], vectors[:, seen]
    made = []
    for total, count in zip(sums, counts.tolist(), strict=True):
        own = vectors.T @ (total / count) @ vectors - torch.diag(values)
        corrected = torch.diag(values) + _shrunk_matrix(own, _edge(deviation / count, len(values)))
        variances, directions = torch.linalg.eigh(corrected)
        made.append(vectors @ (directions * variances.clamp(min=0.0).sqrt()))
    return torch.stack(made)


def shrunk(values: Tensor, edge: float) -> Tensor:
    """Eigenvalues of a noised symmetric matrix without what noise adds to them."""
    return torch.sign(values) * torch.sqrt((values.square() - edge**2).clamp(min=0.0))


def _shrunk_matrix(matrix: Tensor, edge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    rebuilt: Tensor = (vectors * shrunk(values, edge)) @ vectors.T
    return rebuilt


def _edge(deviation: float, d: int) -> float:
    """r: where the eigenvalues of d x d noise end."""
    return 2 * deviation * math.sqrt(d)
