"""The residual networks: their papers' sizes, the recipes, the averages."""

import numpy as np
import pytest
import torch
from torch import nn

from dpldm.errors import UserError
from dpldm.evaluation import recipes
from dpldm.evaluation.classifiers import Kind, build_network, train_classifier
from dpldm.evaluation.recipes import BENCHMARK, BENCHMARK_CIFAR, PAPER_COLOUR, Recipe
from dpldm.evaluation.residual import resnet, resnext, wide_resnet

RESIDUAL: tuple[Kind, ...] = (
    "resnet9",
    "resnet-110",
    "resnet-164",
    "wrn-40-4",
    "wrn-28-10",
    "resnext-29",
    "resnext-28",
)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def cifar(kind: Kind) -> nn.Module:
    return build_network(kind, (32, 32, 3), 10)


@pytest.mark.parametrize(
    ("kind", "millions"),
    [
        ("wrn-40-4", 8.9),  # Zagoruyko and Komodakis 2016, table 4
        ("wrn-28-10", 36.5),  # the same
        ("resnext-29", 34.4),  # Xie et al. 2017, table 7: 8x64d
        ("resnet-110", 1.7),  # He et al. 2016, table 6
        ("resnet9", 6.57),  # Page 2018: 6,573,120
    ],
)
def test_networks_have_the_sizes_of_their_papers(kind: Kind, millions: float) -> None:
    digits = 2 if kind == "resnet9" else 1
    assert round(size(cifar(kind)) / 1e6, digits) == millions


def test_other_sizes_of_the_papers() -> None:
    """The same functions at other depths: He et al. table 6 (0.27, 0.46, 0.66, 0.85), table 4 of wide ResNets, and
    ResNeXt's 16x64d."""
    for depth, millions in ((20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)):
        assert abs(size(resnet(depth, 3, 10)) / 1e6 - millions) < 0.0075  # shortcuts of 1x1 add 0.0027
    for (depth, widen), millions in {(40, 1): 0.6, (40, 2): 2.2, (16, 8): 11.0, (22, 8): 17.2}.items():
        assert round(size(wide_resnet(depth, widen, 3, 10)) / 1e6, 1) == millions
    assert abs(size(resnext(29, 16, 4, 3, 10)) / 1e6 - 68.1) < 0.1


def test_the_smaller_resnext_of_the_benchmark_by_hand() -> None:
    """Depth 28 gives two blocks a stage; widths are 640, 1280, 2560, inner ones 512, 1024, 2048 in 8 groups."""

    def block(before: int, inner: int, width: int) -> int:
        convolutions = before * inner + 9 * inner * inner // 8 + inner * width
        shortcut = 0 if before == width else before * width + 2 * width
        return convolutions + 2 * (inner + inner + width) + shortcut

    stages = ((64, 512, 640), (640, 1024, 1280), (1280, 2048, 2560))
    blocks = sum(block(before, inner, width) + block(width, inner, width) for before, inner, width in stages)
    assert size(cifar("resnext-28")) == 27 * 64 + 128 + blocks + 2560 * 10 + 10
    assert size(cifar("resnet-164")) > size(cifar("resnet-110"))


@pytest.mark.parametrize("kind", RESIDUAL)
@pytest.mark.parametrize("shape", [(28, 28, 1), (17, 20, 3)])
def test_any_size_gives_one_logit_a_class(kind: Kind, shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    with torch.device("meta"):  # shapes alone: the large ones take seconds on a processor
        network = build_network(kind, shape, 7).eval()
        assert network(torch.zeros(2, channels, height, width)).shape == (2, 7)


def test_stages_halve_the_image_twice() -> None:
    network = wide_resnet(10, 1, 3, 10)
    sizes = []
    for module in network:
        module.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[2:])))
    network(torch.zeros(1, 3, 32, 32))
    assert sizes[:4] == [(32, 32), (32, 32), (16, 16), (8, 8)]


@pytest.mark.parametrize(
    "make", [lambda: resnet(8, 1, 4), lambda: wide_resnet(10, 1, 1, 4), lambda: resnext(11, 2, 1, 1, 4)]
)
def test_small_ones_learn(make: object) -> None:
    """Which quarter is bright: the networks are wired so that they can be trained."""
    assert callable(make)
    torch.manual_seed(0)
    network = make()
    labels = torch.arange(64) % 4
    x = torch.randn(64, 1, 8, 8) * 0.3
    for image, label in zip(x, labels, strict=True):
        image[:, int(label) * 2 : int(label) * 2 + 2] += 1
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


def test_resnet9_needs_sixteen_pixels() -> None:
    build_network("resnet9", (16, 16, 1), 2)
    with pytest.raises(UserError, match="at least 16 pixels"):
        build_network("resnet9", (15, 16, 1), 2)


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_recipes_are_those_of_their_sources() -> None:
    assert (recipes.PAPERS.optimizer, recipes.PAPERS.learning_rate) == ("adam", 3e-4)
    assert [BENCHMARK.learning_rate_after(epochs) for epochs in (0, 19, 20, 40)] == pytest.approx(
        [0.01, 0.01, 2e-3, 4e-4]
    )
    assert BENCHMARK_CIFAR.learning_rate_after(179) == pytest.approx(0.1 * 0.04)
    optimizer = PAPER_COLOUR.optimizer_of(nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.1, 0.9, True, 5e-4)


def images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    pixels = random.integers(0, 120, (n, 8, 8, 1)).astype(np.uint8)
    pixels[labels == 1, :, 4:] += 120
    return pixels, labels


def test_the_learning_rate_falls_between_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: object) -> object:
        used.append(self.param_groups[0]["lr"])
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    recipe = Recipe("sgd", 0.1, 40, decay_epochs=2)
    train_classifier("logreg", *images(80, 0), classes=2, epochs=5, seed=0, validation=images(20, 1), recipe=recipe)
    assert used == pytest.approx([0.1] * 4 + [0.02] * 4 + [0.004] * 2)


def test_what_is_kept_is_the_average() -> None:
    """The average by hand, from the weights after every step of the same training."""
    seen: list[torch.Tensor] = []
    recipe = Recipe("sgd", 0.1, 20, average=0.6)
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: object) -> None:
        step(self, *arguments)  # type: ignore[arg-type]
        seen.append(self.param_groups[0]["params"][0].detach().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        trained = train_classifier(
            "logreg", *images(200, 0), classes=2, epochs=1, seed=0, validation=images(20, 1), recipe=recipe
        )
    average = seen[0]
    for number, weights in enumerate(seen[1:], start=1):
        decay = min(0.6, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weights
    assert len(seen) == 10
    torch.testing.assert_close(next(trained.network.parameters()), average)
    assert not torch.allclose(average, seen[-1])


def test_the_average_has_the_statistics_of_the_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    average = Recipe(average=0.9).averaged(network)
    assert average is not None
    for _ in range(3):
        network(torch.randn(8, 3) * 5)
        average.update_parameters(network)
    torch.testing.assert_close(average.module[1].running_mean, network[1].running_mean)
    assert float(network[1].running_mean.abs().max()) > 0.01
    assert Recipe().averaged(network) is None


def test_smoothed_labels_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    loss = nn.functional.cross_entropy

    def spy(*arguments: torch.Tensor, **options: float) -> torch.Tensor:
        asked.append(options["label_smoothing"])
        return loss(*arguments, **options)

    monkeypatch.setattr("dpldm.evaluation.classifiers.F.cross_entropy", spy)
    train_classifier(
        "logreg", *images(40, 0), classes=2, epochs=1, seed=0, validation=images(20, 1), recipe=PAPER_COLOUR
    )
    assert asked == [0.1]
