"""Centres: means and shares of parts from a noised answer, with what noise alone adds taken away."""

import math

import pytest
import torch
from torch import Tensor

from dpldm.privacy.questions import ClassMeans
from dpldm.train.centres import centres_of, shrunk

K, PARTS, D = 3, 4, 20
QUESTION = ClassMeans(noise_multiplier=5.0, clip_norm=10.0, parts=PARTS)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truth() -> tuple[Tensor, Tensor]:
    """Means (K, parts, d) in a plane and a counts (K, parts), of which some are 0."""
    plane = torch.randn(2, D, generator=generator(0), dtype=torch.float64)
    means = torch.randn(K, PARTS, 2, generator=generator(1), dtype=torch.float64) @ plane
    counts = torch.tensor([[900.0, 600.0, 0.0, 500.0], [2000.0, 0.0, 0.0, 0.0], [400.0, 700.0, 800.0, 0.0]]).double()
    return means, counts


def answer(question: ClassMeans, means: Tensor, counts: Tensor, noise: float, seed: int = 2) -> Tensor:
    """What a query about images that all lie at their part's mean gives."""
    sums = (means * counts[:, :, None]).flatten(0, 1) / question.clip_norm
    plain = torch.cat([sums, question.count_weight * counts.view(-1, 1)], 1) / math.hypot(1, question.count_weight)
    return plain + noise * torch.randn(plain.shape, generator=generator(seed), dtype=torch.float64)


def test_with_hardly_any_noise_means_shares_and_counts_come_back() -> None:
    means, counts = truth()
    quiet = ClassMeans(noise_multiplier=0.3, clip_norm=10.0, parts=PARTS)
    found = centres_of(quiet, answer(quiet, means, counts, 1e-6), K)
    filled = counts > 0
    assert torch.equal(found.shares > 0, filled)
    assert torch.allclose(found.shares, counts / counts.sum(1, keepdim=True), atol=1e-6)
    assert torch.allclose(found.counts, counts.sum(1), atol=1e-3)
    assert float((found.means[filled] - means[filled]).norm()) < 0.01 * float(means[filled].norm())
    whole = (found.shares[:, :, None] * found.means).sum(1)
    assert torch.allclose(found.means[0, 2], whole[0]), "an empty part has the mean of its class"


def test_means_are_nearer_to_the_truth_than_the_plain_quotient() -> None:
    means, counts = truth()
    means = 0.3 * means  # beside larger ones the noise of the sums is lost in that of the counts
    noised = answer(QUESTION, means, counts, QUESTION.noise_multiplier)
    found, filled = centres_of(QUESTION, noised, K), counts > 0
    sums = noised[:, :-1] * math.hypot(1, QUESTION.count_weight) * QUESTION.clip_norm
    plain = sums.view(K, PARTS, D)[filled] / counts[filled][:, None]
    assert float((found.means[filled] - means[filled]).norm()) < 0.8 * float((plain - means[filled]).norm())


def test_a_class_that_looks_empty_keeps_its_largest_part() -> None:
    means, counts = truth()
    counts[1] = 0
    found = centres_of(QUESTION, answer(QUESTION, means, counts, 1e-6), K)
    assert sorted(found.shares[1].tolist()) == [0.0, 0.0, 0.0, 1.0]
    assert torch.isfinite(found.means).all()
    assert float(found.counts.min()) >= 1


def test_one_part_is_kept_whatever_its_count() -> None:
    question = ClassMeans(noise_multiplier=5.0, clip_norm=10.0)
    found = centres_of(question, answer(question, torch.zeros(2, 1, D).double(), torch.tensor([[3.0], [0.0]]), 1e-6), 2)
    assert found.shares.tolist() == [[1.0], [1.0]]
    assert found.means.shape == (2, 1, D)


def test_singular_values_are_shrunk_to_the_formula() -> None:
    """A matrix of rank one and size y among no noise at all: y to sqrt((y^2 - m - d)^2 - 4 m d) / y."""
    m, d, y = 3, 5, 8.0
    left, right = torch.zeros(m).double(), torch.zeros(d).double()
    left[0] = right[1] = 1.0
    expected = math.sqrt((y * y - m - d) ** 2 - 4 * m * d) / y
    found = shrunk(2.0 * y * torch.outer(left, right), 2.0)
    assert torch.allclose(found, 2.0 * expected * torch.outer(left, right), atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_leaves_next_to_nothing(seed: int) -> None:
    noise = 3.0 * torch.randn(40, 60, generator=generator(seed), dtype=torch.float64)
    assert float(shrunk(noise, 3.0).norm()) < 0.15 * float(noise.norm())
