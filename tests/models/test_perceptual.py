"""The perceptual distance against its formula, and networks against what is known of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dpldm.errors import UserError
from dpldm.models.critic import PatchCritic
from dpldm.models.efficientnet import load_efficientnet_lite, maps_of, to_efficientnet
from dpldm.models.perceptual import (
    CONVOLUTIONS,
    SCALE,
    SHIFT,
    EfficientNetDistance,
    Perceptual,
    VggDistance,
    build_perceptual,
)


class TwoLayers(Perceptual):
    """Feature maps and weights that can be worked out on paper."""

    def maps(self, images: Tensor) -> list[Tensor]:
        return [images, F.avg_pool2d(images, 2) ** 2]

    def weights(self, layer: int, channels: int) -> Tensor:
        return torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, 4.0]][layer])


def test_the_distance_is_its_formula() -> None:
    """Place by place in float64: unit vectors, squared differences, weighed, averaged over places, added."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    distance = TwoLayers()
    expected = np.zeros(2)
    for layer in range(2):
        weights = distance.weights(layer, 3).double().numpy()
        a, b = (distance.maps(images)[layer].double().numpy() for images in (first, second))
        for n in range(2):
            places = [(i, j) for i in range(a.shape[2]) for j in range(a.shape[3])]
            for i, j in places:
                x, y = a[n, :, i, j], b[n, :, i, j]
                gap = x / np.sqrt((x**2).sum()) - y / np.sqrt((y**2).sum())
                expected[n] += (weights * gap**2).sum() / len(places)
    np.testing.assert_allclose(distance(first, second), expected, rtol=1e-5)
    assert distance(first, first).tolist() == [0, 0]
    assert torch.equal(distance(first, second), distance(second, first))


def test_an_image_without_features_has_a_gradient() -> None:
    images = torch.zeros(1, 3, 4, 4, requires_grad=True)
    TwoLayers()(images, torch.ones(1, 3, 4, 4)).sum().backward()
    assert images.grad is not None
    assert bool(torch.isfinite(images.grad).all())


@pytest.mark.parametrize("version", [0, 2])
def test_feature_maps_are_the_networks_own(version: int) -> None:
    """The last is what the library's forward pass has before its head; each is half as wide as the one before."""
    try:
        network = load_efficientnet_lite(version)
    except UserError:
        pytest.skip("the extra features is not installed")
    images = to_efficientnet(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255)
    maps = maps_of(network, images)
    assert [found.shape[-1] for found in maps] == [32, 16, 8, 4, 2]
    head = network._swish(network._bn1(network._conv_head(maps[-1])))  # type: ignore[operator]
    assert torch.allclose(head, network.extract_features(images), atol=1e-5)  # type: ignore[operator]


def test_blurred_images_are_farther_than_shifted_in_brightness() -> None:
    """What a perceptual distance is for; and all of a gradient flows to the images, none to the network."""
    try:
        distance = EfficientNetDistance()
    except UserError:
        pytest.skip("the extra features is not installed")
    rng = np.random.default_rng(0)
    sharp = torch.from_numpy(np.kron(rng.choice([-0.6, 0.6], (4, 1, 8, 8)), np.ones((4, 4)))).float()
    blurred = F.avg_pool2d(F.pad(sharp, (4,) * 4, mode="replicate"), 9, 1)
    brighter = sharp + float((blurred - sharp).abs().mean())
    assert bool((distance(sharp, blurred) > 2 * distance(sharp, brighter)).all())
    sharp.requires_grad_()
    distance(sharp, blurred).sum().backward()
    assert sharp.grad is not None
    assert bool(sharp.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in distance.network.parameters())


# --- VGG-16 ---------------------------------------------------------------------------------------------------------


def vgg_tensors() -> dict[str, Tensor]:
    """Random weights by the published names."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, inside, outside in (convolution for stage in CONVOLUTIONS for convolution in stage):
        tensors[f"features.{number}.weight"] = torch.randn(outside, inside, 3, 3, generator=generator) / inside**0.5 / 2
        tensors[f"features.{number}.bias"] = torch.randn(outside, generator=generator) / 10
    for layer, stage in enumerate(CONVOLUTIONS):
        tensors[f"lin{layer}.model.1.weight"] = torch.rand(1, stage[-1][2], 1, 1, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def vgg_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The network as a .pth of torch, with the classifier that nobody needs, and the heads as safetensors."""
    folder, tensors = tmp_path_factory.mktemp("vgg"), vgg_tensors()
    network = {name: tensor for name, tensor in tensors.items() if name.startswith("features")}
    torch.save(network | {"classifier.0.weight": torch.zeros(3)}, folder / "vgg16.pth")
    save_file({name: t for name, t in tensors.items() if name.startswith("lin")}, folder / "heads.safetensors")
    return folder / "vgg16.pth", folder / "heads.safetensors"


def test_vgg_is_the_layers_of_its_table(vgg_files: tuple[Path, Path]) -> None:
    """Against the network built of modules in torchvision's order, read off after each stage's last ReLU."""
    layers: list[torch.nn.Module] = []
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        inside = next((layer.out_channels for layer in layers[::-1] if isinstance(layer, torch.nn.Conv2d)), 3)
        if width:
            layers += [torch.nn.Conv2d(inside, width, 3, padding=1), torch.nn.ReLU()]
        else:
            layers.append(torch.nn.MaxPool2d(2, 2))
    theirs = torch.nn.Sequential(*layers)
    weights = {name.removeprefix("features."): tensor for name, tensor in vgg_tensors().items() if "features" in name}
    theirs.load_state_dict(weights)
    ours, images = VggDistance(vgg_files), torch.rand(1, 3, 32, 32) * 2 - 1
    x = (images - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None]
    read = []
    with torch.no_grad():
        for number, layer in enumerate(theirs):
            x = layer(x)
            if number in (3, 8, 15, 22, 29):
                read.append(x)
    for found, expected in zip(ours.maps(images), read, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.weights(2, 256), vgg_tensors()["lin2.model.1.weight"].flatten())
    grey = torch.rand(2, 1, 16, 16)
    assert ours(grey, -grey).shape == (2,)
    assert isinstance(build_perceptual("vgg-lpips", vgg_files), VggDistance)


def test_what_is_missing_is_named(vgg_files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lack lin0\.model\.1\.weight of shape \(1, 64, 1, 1\)"):
        VggDistance(vgg_files[:1])
    with pytest.raises(UserError, match=r"lack features\.0\.weight"):
        VggDistance(vgg_files[1:])
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    for file in (tmp_path / "none.pth", tmp_path / "broken.safetensors"):
        with pytest.raises(UserError, match="cannot be read"):
            VggDistance([file])
    torch.save({"features.0.weight": Path("code")}, tmp_path / "object.pth")
    with pytest.raises(UserError, match="holds more than tensors"):
        VggDistance([tmp_path / "object.pth"])


# --- the critic -----------------------------------------------------------------------------------------------------


def test_the_critic_is_patchgan() -> None:
    """At the papers' size: 2.8M parameters, a 30 x 30 map of 256 pixels, each entry of which sees 70 x 70 of them."""
    critic = PatchCritic(3)
    assert 2.7e6 < sum(p.numel() for p in critic.parameters()) < 2.8e6
    images = torch.zeros(1, 3, 256, 256, requires_grad=True)
    found = critic.eval()(images)
    assert found.shape == (1, 1, 30, 30)
    found[0, 0, 15, 15].backward()
    assert images.grad is not None
    touched = images.grad[0].abs().sum(0) > 0
    assert (int(touched.any(0).sum()), int(touched.any(1).sum())) == (70, 70)
