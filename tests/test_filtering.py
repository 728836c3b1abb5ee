"""Which drawn images are kept: the ones that look like their class, as many as were asked for, alike every time."""

import numpy as np
import pytest

from dpldm.filtering import most_consistent

CLASSES, EACH = 3, 800


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stripes of three directions with some noise, of which a quarter has a wrong label: images, labels, wrong."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    patterns = [np.sin(angle) * 100 + 128 for angle in (rows, columns, (rows + columns) / 1.4)]
    truth = np.repeat(np.arange(CLASSES), EACH)
    images = np.stack([patterns[k] for k in truth]) + rng.normal(0, 20, (len(truth), 16, 16))
    wrong = rng.random(len(truth)) < 0.25
    labels = np.where(wrong, (truth + 1) % CLASSES, truth)
    order = rng.permutation(len(truth))
    return images.clip(0, 255).astype(np.uint8)[order, ..., None], labels[order], wrong[order]


def test_wrongly_labelled_images_go_first() -> None:
    images, labels, wrong = drawn()
    counts = np.array([400, 400, 400])
    kept = most_consistent(images, labels, counts, seed=0)
    assert np.bincount(labels[kept]).tolist() == [400, 400, 400]
    assert wrong[kept].mean() < 0.3 * wrong.mean()


@pytest.mark.parametrize("counts", [[10, 0, 25], [1, 1, 1]])
def test_every_class_keeps_its_count_once_and_in_order(counts: list[int]) -> None:
    images, labels, _ = drawn()
    kept = most_consistent(images, labels, np.array(counts), seed=1)
    assert np.bincount(labels[kept], minlength=CLASSES).tolist() == counts
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert kept.tolist() == most_consistent(images, labels, np.array(counts), seed=1).tolist()
