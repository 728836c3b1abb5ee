"""Portraits: what is drawn has the moments that were asked for, and what noise alone shows is not drawn."""

import math

import pytest
import torch
from torch import Tensor

from dpldm.privacy.queries import packed, unpacked
from dpldm.train.portraits import Portraits, factors, shrunk

D, K, PER_CLASS = 24, 4, 500


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariances() -> Tensor:
    """Of low rank, alike but for one direction of each class's own."""
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator(0), dtype=torch.float64))[0]
    common = directions[:, :5] @ torch.diag(torch.tensor([16.0, 9.0, 6.0, 4.0, 2.0]).double()) @ directions[:, :5].T
    own = [5 * torch.outer(directions[:, k], directions[:, k]) for k in range(K)]
    return torch.stack([common + each for each in own])


def noised(matrices: Tensor, deviation: float, seed: int = 1) -> Tensor:
    """With the noise of a query: independent entries of the packed vector."""
    flat = packed(matrices)
    return unpacked(flat + math.sqrt(2) * deviation * torch.randn(flat.shape, generator=generator(seed)).double(), D)


def of(made: Tensor) -> Tensor:
    return made @ made.mT


def test_without_noise_the_covariances_come_back() -> None:
    counts = torch.tensor([100.0, 200.0, 300.0, 400.0]).double()
    found = factors(covariances() * counts[:, None, None], counts, 0.0)
    assert torch.allclose(of(found), covariances(), atol=1e-9)


def test_what_is_drawn_has_these_moments() -> None:
    made = factors(covariances() * PER_CLASS, torch.full((K,), float(PER_CLASS)), 0.0).float()
    means = torch.randn(K, 1, 6, 2, 2, generator=generator(2))
    labels = torch.full((40_000,), 2)
    drawn = Portraits(means, torch.ones(K, 1), made).draw(labels, generator(3))
    assert drawn.shape == (40_000, 6, 2, 2)
    flat = drawn.flatten(1).double()
    assert torch.allclose(flat.mean(0), means[2, 0].flatten().double(), atol=0.15)  # deviation at most 5 / 200
    error = torch.cov(flat.T) - covariances()[2]
    assert float(torch.linalg.matrix_norm(error)) < 0.05 * float(torch.linalg.matrix_norm(covariances()[2]))


def test_noise_alone_draws_nothing_but_the_means() -> None:
    """Beyond the edge of its spectrum noise has an eigenvalue now and then, and a small one."""
    made = factors(noised(torch.zeros(K, D, D).double(), 30.0), torch.full((K,), float(PER_CLASS)), 30.0)
    raw = noised(torch.zeros(K, D, D).double(), 30.0).sum(0) / (K * PER_CLASS)
    assert float(of(made).norm(dim=(1, 2)).max()) < 0.3 * float(torch.linalg.eigvalsh(raw).abs().max())


@pytest.mark.parametrize("deviation", [20.0, 60.0])
def test_a_covariance_is_nearer_to_the_truth_than_the_noised_one(deviation: float) -> None:
    truth = covariances()
    answer = noised(truth * PER_CLASS, deviation)
    found = of(factors(answer, torch.full((K,), float(PER_CLASS)), deviation))
    plain = answer / PER_CLASS
    assert float((found - truth).norm()) < 0.75 * float((plain - truth).norm())
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-9


def test_a_class_without_images_takes_what_all_have_in_common() -> None:
    counts = torch.tensor([PER_CLASS, PER_CLASS, PER_CLASS, 1.0]).double()
    sums = covariances() * PER_CLASS
    sums[3] = 0
    found = of(factors(noised(sums, 5.0), counts, 5.0))
    common = of(factors(noised(sums[:3], 5.0), counts[:3], 5.0)).mean(0)
    assert torch.isfinite(found).all()
    assert float((found[3] - common).norm()) < 0.5 * float(common.norm())


def test_eigenvalues_are_shrunk_to_the_formula() -> None:
    values = torch.tensor([5.0, 3.0, 2.9, -5.0, 0.0]).double()
    assert shrunk(values, 3.0).tolist() == pytest.approx([4.0, 0.0, 0.0, -4.0, 0.0])


def test_means_alone_are_drawn_as_they_are() -> None:
    means = torch.randn(3, 1, 2, 2, 2, generator=generator(4))
    labels = torch.tensor([2, 0, 2])
    drawn = Portraits(means, torch.ones(3, 1), torch.zeros(3, 8, 0)).draw(labels, generator(5))
    assert torch.equal(drawn, means[labels, 0])


def test_parts_are_drawn_by_their_shares() -> None:
    means = torch.arange(4.0).view(2, 2, 1, 1, 1)
    shares = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    labels = torch.arange(8000) % 2
    drawn = Portraits(means, shares, torch.zeros(2, 1, 0)).draw(labels, generator(6)).flatten()
    assert set(drawn[labels == 1].tolist()) == {2.0}
    assert float(drawn[labels == 0].mean()) == pytest.approx(0.75, abs=0.035)  # five standard errors
