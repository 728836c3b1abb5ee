"""KID and Fréchet distance against naive formulas, closed forms and repeated sampling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from dpldm.errors import UserError
from dpldm.evaluation.features import Images
from dpldm.evaluation.fidelity import (
    FRECHET_MINIMUM,
    NEIGHBOURS,
    Comparison,
    frechet_distance,
    inception_score,
    kid,
    measure,
    precision_and_recall,
)


def _naive_squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of Gretton et al. 2012, eq. 3, by loops over pairs."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(kernel(a, b) for a in x for b in y) / (n * m)
    return within_x + within_y - 2 * across


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), extra=st.integers(0, 6))
def test_kid_is_the_mean_of_the_naive_estimate(seed: int, extra: int) -> None:
    # The mean over all subsets is the estimate of the whole sample, so many subsets come close to it.
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(20, 5)), random.normal(0.5, 1, size=(20 + extra, 5))
    value, error = kid(x, y, subsets=1500, seed=seed)
    spread = error / np.sqrt(1 / 1500 + 1)  # half of 20 vectors in each subset: m / (n - m) = 1
    assert abs(value - _naive_squared_mmd(x, y)) < 5 * spread / np.sqrt(1500)


def test_kid_is_unbiased_and_finds_a_shift() -> None:
    random = np.random.default_rng(0)
    same = [kid(random.normal(size=(60, 8)), random.normal(size=(60, 8)), subsets=5)[0] for _ in range(200)]
    assert min(same) < 0 < max(same)
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(len(same))
    value, error = kid(random.normal(size=(500, 8)), random.normal(0.7, 1, size=(500, 8)))
    assert value > 5 * error > 0


def test_the_standard_error_of_kid_covers_the_sample() -> None:
    random = np.random.default_rng(1)
    draws = [
        kid(random.normal(size=(120, 4)), random.normal(0.8, 1, size=(120, 4)), subset_size=40, subsets=40)
        for _ in range(150)
    ]
    values, errors = np.array(draws).T
    assert 0.75 < errors.mean() / values.std(ddof=1) < 1.35


def test_kid_is_reproducible_and_does_not_disturb_numpy() -> None:
    x, y = np.random.default_rng(2).normal(size=(2, 50, 4))
    before = str(np.random.get_state(legacy=False))
    assert kid(x, y, seed=3) == kid(x, y, seed=3) != kid(x, y, seed=4)
    assert before == str(np.random.get_state(legacy=False))


def test_kid_of_single_precision_features_is_computed_in_double() -> None:
    x, y = np.random.default_rng(3).normal(30, 1, size=(2, 200, 16)).astype(np.float32)
    assert kid(x, y)[0] == kid(x.astype(np.float64), y.astype(np.float64))[0]


def _with_moments(random: np.random.Generator, mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """5,000 vectors whose sample mean and unbiased covariance are exactly those given."""
    z = random.normal(size=(FRECHET_MINIMUM, len(mean)))
    z -= z.mean(axis=0)
    white = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T).reshape(len(mean), -1))).T
    result: np.ndarray = white @ np.linalg.cholesky(cov).T + mean
    return result


@settings(max_examples=15, deadline=None)
@given(
    means=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    deviations=st.lists(st.floats(0.1, 4), min_size=6, max_size=6),
)
def test_frechet_of_gaussians_with_diagonal_covariance(means: list[float], deviations: list[float]) -> None:
    random = np.random.default_rng(0)
    s, t, shift = np.array(deviations[:3]), np.array(deviations[3:]), np.array(means)
    real = _with_moments(random, np.zeros(3), np.diag(s**2))
    fake = _with_moments(random, shift, np.diag(t**2))
    expected = shift @ shift + ((s - t) ** 2).sum()
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_frechet_agrees_with_the_matrix_square_root() -> None:
    random = np.random.default_rng(4)
    real = (random.normal(size=(5000, 24)) @ random.normal(size=(24, 24)) + 3).astype(np.float32)
    fake = random.normal(size=(6000, 24)) @ random.normal(size=(24, 24))
    c1, c2 = np.cov(real.astype(np.float64).T), np.cov(fake.T)
    shift = real.astype(np.float64).mean(0) - fake.mean(0)
    expected = shift @ shift + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(fake, real) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_a_set_with_itself_is_zero_even_when_degenerate() -> None:
    features = np.repeat(np.random.default_rng(5).normal(size=(5000, 2)), 4, axis=1)  # rank 2 of 8
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)


def test_too_few_images_are_refused() -> None:
    many, few = np.zeros((FRECHET_MINIMUM, 2)), np.zeros((FRECHET_MINIMUM - 1, 2))
    for real, fake in ((many, few), (few, many)):
        with pytest.raises(UserError, match="use KID"):
            frechet_distance(real, fake)
    with pytest.raises(UserError, match="at least 4"):
        kid(many, many[:3])


@pytest.mark.parametrize("distance", [kid, frechet_distance])
def test_features_of_two_extractors_are_refused(distance: object) -> None:
    assert callable(distance)
    with pytest.raises(UserError, match="one extractor"):
        distance(np.zeros((5000, 3)), np.zeros((5000, 4)))


class _Pixels:
    """An extractor whose features are the pixels."""

    name, dim = "pixels", 4

    def __call__(self, images: Images) -> np.ndarray:
        features: np.ndarray = (images.reshape(len(images), -1) / 255).astype(np.float32)
        return features


def test_measure_names_the_extractor_and_adds_frechet_when_there_are_enough_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dpldm.evaluation.fidelity.NEIGHBOURS_MOST", 400)
    random = np.random.default_rng(6)
    images = random.integers(0, 256, (5001, 2, 2, 1), dtype=np.uint8)
    few = measure(images[:300], images[300:700], _Pixels())
    assert [d.name for d in few] == ["KID", "precision", "recall"]
    assert {(d.extractor, d.n_real, d.n_fake) for d in few} == {("pixels", 300, 400)}
    assert few[0].error is not None
    both = measure(images, images[:5000] // 2, _Pixels())
    assert [d.name for d in both] == ["KID", "FD", "precision", "recall"]
    assert both[1].value > 0.01
    assert str(both[1]).startswith("FD-pixels = ")
    assert str(few[0]).startswith("KID-pixels = ")
    assert "300 real, 400 synthetic" in str(few[0])


def test_only_inception_is_called_fid() -> None:
    assert "FID" in str(Comparison("FD", 12.0, None, "inception-v3", 5000, 5000))
    lite = str(Comparison("FD", 12.0, None, "efficientnet-lite0@64", 5000, 5000))
    assert lite.startswith("FD-efficientnet-lite0@64 = 12")
    assert "FID" not in lite
    assert "FID" not in str(Comparison("KID", 0.01, 0.001, "inception-v3", 100, 100))


# --- precision and recall ---------------------------------------------------------------------------------------------


def _naive_precision(real: np.ndarray, fake: np.ndarray, k: int) -> float:
    """Kynkäänniemi et al. 2019, eq. 1 and 2, by loops over pairs."""

    def radius(index: int) -> float:
        return sorted(float(np.linalg.norm(real[index] - other)) for other in real)[k]  # place 0 is itself

    radii = [radius(index) for index in range(len(real))]
    inside = [any(np.linalg.norm(x - y) <= r for y, r in zip(real, radii, strict=True)) for x in fake]
    return sum(inside) / len(inside)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 4), shift=st.floats(0, 3))
def test_precision_and_recall_are_the_naive_ones(seed: int, k: int, shift: float) -> None:
    random = np.random.default_rng(seed)
    real, fake = random.normal(size=(25, 3)), random.normal(shift, 0.5, size=(18, 3))
    precision, recall = precision_and_recall(real, fake, k)
    assert precision == _naive_precision(real, fake, k)
    assert recall == _naive_precision(fake, real, k)


def test_precision_and_recall_in_closed_form() -> None:
    """Real ones at 0, 1, ..., 9: each ball reaches to its k-th other, so up to 3 beyond the ends for k = 3."""
    real = np.arange(10.0)[:, None]
    fake = np.array([[-3.0], [-3.001], [4.5], [12.0], [12.001], [100.0]])
    precision, recall = precision_and_recall(real, fake, NEIGHBOURS)
    assert precision == 3 / 6
    assert recall == 1, "the ball of 100 reaches to 4.5, and that of 4.5 to -3"
    one_place = np.full((6, 1), 5.0)
    assert precision_and_recall(real, one_place) == (1.0, 0.1)


def test_precision_is_fidelity_and_recall_variety() -> None:
    random = np.random.default_rng(0)
    real = random.normal(size=(400, 4))
    collapsed, scattered = 0.05 * random.normal(size=(400, 4)), 4 * random.normal(size=(400, 4))
    precise, forgetful = precision_and_recall(real, collapsed)
    assert precise > 0.95
    assert forgetful < 0.05
    vague, complete = precision_and_recall(real, scattered)
    assert vague < 0.4
    assert complete > 0.8


def test_pieces_do_not_matter() -> None:
    random = np.random.default_rng(1)
    real, fake = random.normal(size=(1500, 3)).astype(np.float32), random.normal(size=(1100, 3)).astype(np.float32)
    order = random.permutation(1500)
    assert precision_and_recall(real[order], fake) == precision_and_recall(real, fake)
    with pytest.raises(UserError, match="more than 3 images"):
        precision_and_recall(real[:3], fake)


# --- Inception Score --------------------------------------------------------------------------------------------------


def test_the_score_in_closed_form() -> None:
    """All images alike: 1. Sure of one of K classes, equally often: K. Between: exp(log K - H(p))."""
    assert inception_score(np.ones((50, 7)), splits=5) == pytest.approx((1, 0))
    sure = np.repeat(np.eye(4) * 1000, 25, axis=0)
    assert inception_score(sure, splits=1)[0] == pytest.approx(4)
    shares = np.array([0.7, 0.1, 0.1, 0.1])
    turned = np.stack([np.roll(np.log(shares), place) for place in range(4)] * 5)
    entropy = -(shares * np.log(shares)).sum()
    assert inception_score(turned, splits=1)[0] == pytest.approx(np.exp(np.log(4) - entropy))


def test_the_score_is_that_of_torch_fidelity_on_fixed_logits() -> None:
    """metric_isc: shuffled, split into ten, exp of the mean over a part of the sum of p (log p - log mean p); mean and
    deviation (of the population) over parts."""
    logits = np.random.default_rng(0).normal(size=(200, 30)) * 2
    parts = []
    for part in np.array_split(logits[np.random.default_rng(3).permutation(200)], 10):
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        parts.append(np.exp((p * (np.log(p) - np.log(p.mean(0, keepdims=True)))).sum(1).mean()))
    assert inception_score(logits, seed=3) == pytest.approx((np.mean(parts), np.std(parts)))


def test_a_set_that_lies_class_by_class_is_not_scored_lower() -> None:
    ordered = np.repeat(np.eye(10) * 20, 50, axis=0)
    assert inception_score(ordered)[0] > 9


def test_only_an_extractor_of_classes_gives_a_score() -> None:
    class Classes(_Pixels):
        def logits(self, features: np.ndarray) -> np.ndarray:
            return 20 * features

    images = np.random.default_rng(7).integers(0, 256, (60, 2, 2, 1), dtype=np.uint8)
    found = {each.name: each for each in measure(images[:30], images[30:], Classes())}
    assert set(found) == {"KID", "precision", "recall", "IS"}
    assert (found["IS"].n_real, found["IS"].n_fake) == (0, 30)
    assert str(found["IS"]).startswith("IS-pixels = ")
    assert "IS" not in {each.name for each in measure(images[:30], images[30:], _Pixels())}
    assert Comparison("IS", 9.0, 0.1, "inception-v3", 0, 60).label == "Inception Score (inception-v3)"


def test_of_many_images_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpldm.evaluation.fidelity.NEIGHBOURS_MOST", 20)
    images = np.random.default_rng(8).integers(0, 256, (60, 2, 2, 1), dtype=np.uint8)
    found = {each.name: each for each in measure(images[:35], images[35:], _Pixels())}
    assert (found["precision"].n_real, found["recall"].n_fake) == (20, 20)
    assert found["KID"].n_real == 35
