"""The papers' classifiers on problems with a known answer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpldm.errors import UserError
from dpldm.evaluation import classifiers
from dpldm.evaluation.classifiers import Kind, TrainedClassifier, build_network, train_classifier
from dpldm.evaluation.recipes import Recipe

KINDS: tuple[Kind, ...] = ("cnn", "mlp", "logreg")
QUICK = Recipe(learning_rate=1e-3, batch_size=32)


def blobs(n: int, seed: int, *, side: int = 12, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright blob in one of the four corners, which is the label."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, n)
    images = random.integers(0, 80, (n, side, side, channels)).astype(np.uint8)
    half = side // 2
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[row * half + 1 : row * half + 5, column * half + 1 : column * half + 5] += 150
    return images, labels


def _train(kind: Kind, seed: int = 0, epochs: int = 6, **settings: object) -> TrainedClassifier:
    recipe = Recipe(learning_rate=float(settings.pop("learning_rate", 1e-3)), batch_size=32)  # type: ignore[arg-type]
    options = {"validation": blobs(150, 1), "recipe": recipe, **settings}
    return train_classifier(kind, *blobs(600, 0), classes=4, epochs=epochs, seed=seed, **options)  # type: ignore[arg-type]


def _same_parameters(first: TrainedClassifier, second: TrainedClassifier) -> bool:
    pairs = zip(first.network.parameters(), second.network.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_blobs_are_learnt(kind: Kind) -> None:
    trained = _train(kind)
    images, labels = blobs(400, 2)
    predicted = trained.predict(images)
    assert predicted.shape == (400,)
    assert predicted.dtype == np.int64
    assert trained.accuracy(images, labels) == (predicted == labels).mean()
    assert trained.accuracy(images, labels) >= 0.95


def test_colour_images_are_learnt() -> None:
    train, held_out = blobs(400, 0, side=8, channels=3), blobs(100, 1, side=8, channels=3)
    trained = train_classifier("mlp", *train, classes=4, epochs=8, seed=0, validation=held_out, recipe=QUICK)
    assert trained.accuracy(*blobs(200, 2, side=8, channels=3)) >= 0.95


def test_shuffled_labels_give_chance() -> None:
    images, labels = blobs(600, 0)
    shuffled = np.random.default_rng(9).permutation(labels)
    trained = train_classifier("mlp", images, shuffled, classes=4, epochs=4, seed=0, validation=blobs(100, 1))
    assert trained.accuracy(*blobs(1000, 2)) < 0.55
    shown = np.random.default_rng(3).permutation(blobs(1000, 2)[1])
    assert abs(_train("mlp").accuracy(blobs(1000, 2)[0], shown) - 0.25) < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_and_the_global_state_stays(kind: Kind) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _train(kind, epochs=2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again, other = _train(kind, epochs=2, on_epoch=lambda *_: torch.rand(3)), _train(kind, seed=1, epochs=2)
    assert _same_parameters(first, again)
    assert first.validation_accuracies == again.validation_accuracies
    assert not _same_parameters(first, other)


def test_the_first_best_epoch_on_validation_is_kept() -> None:
    # Labels without any relation to the images: accuracy wanders, and the best epoch is any of them.
    images, labels = blobs(150, 1)[0], np.random.default_rng(0).integers(0, 4, 150)
    chosen = []
    for seed in range(4):
        trained = _train("mlp", seed=seed, validation=(images, labels), learning_rate=3e-5)
        accuracies = trained.validation_accuracies
        chosen.append(trained.epoch)
        assert len(accuracies) == 6
        assert trained.epoch == accuracies.index(max(accuracies)) + 1
        assert trained.accuracy(images, labels) == pytest.approx(max(accuracies))
        # Training that stops there ends with the same parameters.
        short = _train("mlp", seed, trained.epoch, validation=(images, labels), learning_rate=3e-5)
        assert _same_parameters(trained, short)
    assert len(set(chosen)) > 1
    assert min(chosen) < 6


def test_among_equally_good_epochs_the_first_is_kept() -> None:
    trained = _train("logreg", learning_rate=3e-3)
    best = max(trained.validation_accuracies)
    assert trained.validation_accuracies.count(best) > 1
    assert _same_parameters(trained, _train("logreg", epochs=trained.epoch, learning_rate=3e-3))


def test_bfloat16_agrees_with_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies, predictions = [], []
    for half in (False, True):
        monkeypatch.setattr(classifiers, "_bfloat16_pays", lambda half=half: half)
        train, held_out = blobs(256, 0, side=10), blobs(100, 1, side=10)
        trained = train_classifier("cnn", *train, classes=4, epochs=4, seed=0, validation=held_out, recipe=QUICK)
        images, labels = blobs(200, 2, side=10)
        accuracies.append(trained.accuracy(images, labels))
        predictions.append(trained.predict(images))
        assert all(p.dtype == torch.float32 for p in trained.network.parameters())
    assert min(accuracies) > 0.9
    assert (predictions[0] == predictions[1]).mean() > 0.9


def test_bfloat16_is_used_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (
        ({"avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert classifiers._bfloat16_pays() is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert classifiers._bfloat16_pays() is False


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    channels=st.sampled_from([1, 3]),
    classes=st.integers(2, 12),
)
def test_any_size_gives_one_logit_a_class(kind: Kind, height: int, width: int, channels: int, classes: int) -> None:
    network = build_network(kind, (height, width, channels), classes).eval()
    assert network(torch.zeros(2, channels, height, width)).shape == (2, classes)


def test_networks_are_those_of_the_papers() -> None:
    def size(kind: Kind, side: int) -> int:
        return sum(p.numel() for p in build_network(kind, (side, side, 1), 10).parameters())

    convolutions = (9 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 128 + 128)
    assert size("cnn", 32) == convolutions + (2048 * 128 + 128) + 1290  # 2,048 inputs: the authors' number
    assert size("cnn", 28) == convolutions + (9 * 128 * 128 + 128) + 1290
    assert size("mlp", 32) == 1024 * 100 + 100 + 1010
    assert size("logreg", 32) == 10250


class _Mean(nn.Module):
    """Says class 1 where the mean input is positive, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        mean = x.mean((1, 2, 3))
        return torch.stack([-mean, mean], dim=1)


def test_inputs_are_scaled_to_plus_minus_one_in_channel_order() -> None:
    images = np.zeros((2, 8, 9, 3), dtype=np.uint8)
    images[1] = 255
    images[0, 2, 3, 1] = 255
    network = _Mean()
    trained = TrainedClassifier("logreg", network, 1, (1.0,))
    assert trained.predict(images).tolist() == [0, 1]
    (seen,) = network.seen
    assert seen.shape == (2, 3, 8, 9)
    assert seen[0, 1, 2, 3] == 1
    assert seen[0].sum() == -3 * 8 * 9 + 2
    assert seen[1].min() == 1


def test_progress_is_reported_each_epoch() -> None:
    calls: list[tuple[int, int]] = []
    _train("logreg", epochs=3, on_epoch=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 7, 8, 1), np.uint8), np.zeros(2, np.int64), "at least 8"),
        (np.zeros((2, 8, 8, 2), np.uint8), np.zeros(2, np.int64), "C 1 or 3"),
        (np.zeros((2, 8, 8, 1)), np.zeros(2, np.int64), "uint8"),
        (np.zeros((2, 8, 8, 1), np.uint8), np.zeros(3, np.int64), "one label"),
        (np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int64), "one label"),
        (np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 2]), "between 0 and 1"),
        (np.zeros((2, 9, 8, 1), np.uint8), np.array([0, 1]), "Validation images"),
    ],
)
def test_data_that_does_not_fit_is_refused(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    good = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 0, 1])
    with pytest.raises(UserError, match=message):
        train_classifier("mlp", *good, classes=2, epochs=1, seed=0, validation=(images, labels))


def test_an_unknown_kind_and_no_epoch_are_refused() -> None:
    with pytest.raises(UserError, match="cnn, mlp, logreg"):
        build_network("forest", (8, 8, 1), 2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one epoch"):
        _train("mlp", epochs=0)


def test_probabilities_agree_with_predictions_and_add_up_to_one() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8), rng.integers(0, 3, 60)
    trained = train_classifier(
        "cnn", images, labels, classes=3, epochs=1, seed=0, validation=(images[:10], labels[:10])
    )
    probabilities = trained.probabilities(images)
    assert probabilities.shape == (60, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert probabilities.argmax(1).tolist() == trained.predict(images).tolist()
