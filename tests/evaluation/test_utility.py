"""Train on synthetic, test on real: the protocols, the scores, the interval."""

import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from dpldm.config import EvaluationConfig
from dpldm.errors import UserError
from dpldm.evaluation.recipes import Recipe
from dpldm.evaluation.utility import (
    DPIMAGEBENCH,
    DPIMAGEBENCH_CIFAR,
    FULL,
    PAPER_COLOUR_PROTOCOL,
    PROTOCOLS,
    SCREEN,
    Protocol,
    UtilityResult,
    accuracy_interval,
    quick,
    train_on_synthetic,
)

TINY = Protocol("tiny", train=300, validation=60, epochs=8, kinds=("mlp", "logreg"))


def halves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose left (class 0) or right (class 1) half is bright; sorted by class."""
    random = np.random.default_rng(seed)
    labels = np.sort(random.integers(0, 2, n))
    images = random.integers(0, 100, (n, 8, 8, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * label : 4 * label + 4] += 150
    return images, labels


def _evaluate(n: int = 400, classes: int = 2, **options: object) -> UtilityResult:
    settings = {"protocol": TINY, **options}
    return train_on_synthetic(*halves(n, 0), *halves(200, 1), classes=classes, **settings)  # type: ignore[arg-type]


def test_a_separable_problem_is_solved_even_when_sorted_by_class() -> None:
    result = _evaluate(n=1000, seeds=(0, 1))  # the first 360 are all of one class
    assert set(result.scores) == {"mlp", "logreg"}
    for score in result.scores.values():
        assert score.mean >= 0.95
        assert len(score.accuracies) == len(score.epochs) == 2
        assert score.mean == pytest.approx(np.mean(score.accuracies))
        assert score.deviation == pytest.approx(np.std(score.accuracies, ddof=1))
        assert score.interval == pytest.approx(accuracy_interval(score.mean * 200, 200))
    assert (result.protocol, result.train, result.validation, result.test) == ("tiny", 300, 60, 200)


def test_per_class_accuracies_average_to_the_mean_and_absent_classes_have_none() -> None:
    result = _evaluate(classes=3, kinds=("mlp",), protocol=Protocol("short", 60, 10, 1))
    (score,) = result.scores.values()
    counts = np.bincount(halves(200, 1)[1])
    assert score.per_class[2] is None
    weighted = sum(n * a for n, a in zip(counts, score.per_class, strict=False) if a is not None)
    assert weighted / 200 == pytest.approx(score.mean)
    assert score.deviation is None


def test_one_answer_for_everything_is_not_taken_for_learning() -> None:
    images, labels = halves(400, 0)
    test_images, test_labels = halves(400, 1)
    kept = np.flatnonzero((test_labels == 0) | (np.arange(400) % 10 == 0))  # some nine in ten are of class 0
    blind = np.full_like(images, 127)  # nothing can be learnt from these
    constant = train_on_synthetic(
        blind, np.zeros_like(labels), test_images[kept], test_labels[kept], classes=2, protocol=TINY, kinds=("mlp",)
    )
    found = constant.scores["mlp"]
    assert found.mean == pytest.approx(constant.guessing)
    assert constant.guessing == pytest.approx((test_labels[kept] == 0).mean())
    assert found.balanced == pytest.approx(0.5)


def test_results_are_reproducible_and_seeds_draw_other_images() -> None:
    once, twice = (_evaluate(kinds=("mlp",), seeds=(3,)) for _ in range(2))
    assert once == twice
    short = Protocol("short", train=40, validation=10, epochs=1)
    scores = _evaluate(protocol=short, kinds=("logreg",), seeds=range(4)).scores["logreg"]
    assert len(set(scores.accuracies)) > 1


def test_results_are_internal_unless_the_test_set_is_a_public_benchmark() -> None:
    assert _evaluate(kinds=("logreg",)).internal
    assert not _evaluate(kinds=("logreg",), public_benchmark=True).internal


def test_the_result_is_plain_json() -> None:
    result = _evaluate(classes=3, kinds=("logreg",), seeds=(0, 1))
    back = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert back["scores"]["logreg"]["mean"] == result.scores["logreg"].mean
    assert back["internal"] is True
    assert back["seeds"] == [0, 1]


def test_progress_names_the_classifier_and_seed() -> None:
    calls: list[tuple[object, ...]] = []
    short = Protocol("short", train=40, validation=10, epochs=2)
    _evaluate(protocol=short, kinds=("logreg", "mlp"), seeds=(0, 7), on_epoch=lambda *call: calls.append(call))
    assert calls == [(kind, seed, done, 2) for kind in ("logreg", "mlp") for seed in (0, 7) for done in (1, 2)]


def test_the_protocols_have_the_stated_sizes() -> None:
    assert (FULL.train, FULL.validation, FULL.epochs, FULL.images) == (50_000, 10_000, 50, 60_000)
    assert FULL.kinds == ("cnn", "mlp", "logreg")
    assert (SCREEN.images, SCREEN.epochs, SCREEN.kinds) == (10_000, 10, ("cnn",))
    assert SCREEN.validation == 10_000 // 6
    assert (PAPER_COLOUR_PROTOCOL.images, PAPER_COLOUR_PROTOCOL.kinds) == (60_000, ("resnet9", "wrn-40-4"))
    for protocol, epochs in ((DPIMAGEBENCH, 50), (DPIMAGEBENCH_CIFAR, 200)):
        assert (protocol.train, protocol.validation, protocol.epochs) == (55_000, 5_000, epochs)
        assert [kind.split("-")[0] for kind in protocol.kinds] == ["resnet", "wrn", "resnext"]


def test_every_protocol_can_be_asked_for() -> None:
    choices = get_args(EvaluationConfig.model_fields["protocol"].annotation)
    assert {*PROTOCOLS, "quick"} == set(choices)


def test_mean_and_best_of_several_classifiers_are_two_numbers() -> None:
    result = _evaluate(seeds=(0, 1), protocol=Protocol("short", 60, 10, 1, kinds=("mlp", "logreg")))
    means = {kind: score.mean for kind, score in result.scores.items()}
    assert result.summary.mean == pytest.approx(sum(means.values()) / 2)
    assert result.summary.best == max(means.values())
    assert means[result.summary.best_kind] == result.summary.best
    assert result.to_json()["summary"]["best_kind"] == result.summary.best_kind


def test_a_protocols_recipe_is_used() -> None:
    still = Protocol("still", 60, 10, 3, kinds=("mlp",), recipe=Recipe(learning_rate=1e-12))
    moved = Protocol("moved", 60, 10, 3, kinds=("mlp",), recipe=Recipe(learning_rate=1e-2))
    assert _evaluate(protocol=still).scores["mlp"].epochs == (1,)
    assert _evaluate(protocol=moved).scores["mlp"].mean > 0.9


@given(n=st.integers(6, 100_000))
def test_quick_uses_all_images_and_a_sixth_to_choose(n: int) -> None:
    protocol = quick(n, epochs=3)
    assert protocol.images == n
    assert protocol.validation == n // 6 >= 1
    assert protocol.epochs == 3


@given(images=st.integers(6, 60_000), epochs=st.integers(1, 50))
def test_a_reduction_has_a_name_of_its_own_and_splits_alike(images: int, epochs: int) -> None:
    reduced = FULL.reduced(images, epochs)
    assert (reduced.images, reduced.epochs, reduced.kinds) == (images, epochs, FULL.kinds)
    assert (reduced.name == "full") == (reduced == FULL) == ((images, epochs) == (60_000, 50))
    assert 0 <= reduced.validation - images / 6 + 1 <= 1 or reduced.validation == 1


def test_what_is_no_reduction_is_refused() -> None:
    assert FULL.reduced(None, None) is FULL
    for images, epochs in ((60_001, None), (None, 51), (5, 1)):
        with pytest.raises(UserError, match="can only be fewer"):
            FULL.reduced(images, epochs)


def test_too_few_synthetic_images_say_how_many_to_sample() -> None:
    with pytest.raises(UserError, match=r"needs 360 synthetic images and there are 350: sample at least 10 more"):
        _evaluate(n=350)
    with pytest.raises(UserError, match="at least 6"):
        quick(5)


def test_data_that_does_not_fit_is_refused() -> None:
    images, labels = halves(400, 0)
    wide = np.zeros((5, 8, 9, 1), np.uint8)
    cases = [
        ((images, labels[:-1], images, labels), "each synthetic image"),
        ((images, labels, images[:0], labels[:0]), "at least one test image"),
        ((images, labels, images, labels[:-1]), "at least one test image"),
        ((images, labels, wide, labels[:5]), "same size"),
        ((images, labels, images, labels + 1), "among the classes"),
    ]
    for data, message in cases:
        with pytest.raises(UserError, match=message):
            train_on_synthetic(*data, protocol=TINY, classes=2)
    with pytest.raises(UserError, match="one seed"):
        _evaluate(seeds=())


@given(data=st.data(), n=st.integers(1, 20_000))
def test_the_interval_is_wilsons(data: st.DataObject, n: int) -> None:
    correct = data.draw(st.integers(0, n))
    reference = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert accuracy_interval(correct, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_an_impossible_proportion_is_refused(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        accuracy_interval(correct, n)
