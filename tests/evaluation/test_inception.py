"""The FID Inception network with random weights: sizes, names, blocks against a name-driven oracle."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from dpldm.errors import UserError
from dpldm.evaluation.features import InceptionV3
from dpldm.evaluation.inception import InceptionNetwork, Mixed, load_inception


@pytest.fixture(scope="module")
def network() -> InceptionNetwork:
    """Random weights; batch-norm statistics are random too, so that every parameter matters."""
    generator = torch.Generator().manual_seed(0)
    network = InceptionNetwork().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5)):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
            module.weight.uniform_(0.7, 1.3, generator=generator)
            module.bias.uniform_(-0.2, 0.2, generator=generator)
    return network


@pytest.fixture(scope="module")
def weights_folder(network: InceptionNetwork) -> Iterator[Path]:
    """Removed right after the tests: the two files take 190 MB."""
    with TemporaryDirectory() as folder:
        save_file(network.state_dict(), Path(folder) / "inception.safetensors")
        torch.save(network.state_dict(), Path(folder) / "inception.pth")
        yield Path(folder)


def test_parameter_counts_and_names_are_those_of_the_public_file(network: InceptionNetwork) -> None:
    state = network.state_dict()
    # 21,785,568 is the published size of Inception v3 without its classifiers; fc is 2,048 x 1,008 + 1,008.
    assert sum(p.numel() for name, p in network.named_parameters() if "fc." not in name) == 21_785_568
    assert sum(p.numel() for p in network.parameters()) == 21_785_568 + 2048 * 1008 + 1008
    assert len(state) == 94 * 6 + 2
    shapes = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch1x1.conv.weight": (64, 192, 1, 1),
        "Mixed_5d.branch_pool.conv.weight": (64, 288, 1, 1),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6c.branch7x7_3.conv.weight": (192, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_2.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.bn.bias": (384,),
        "fc.weight": (1008, 2048),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert all(module.eps == 0.001 for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def _layer(network: nn.Module, name: str, x: Tensor, stride: int = 1) -> Tensor:
    state = {key.removeprefix(f"{name}."): value for key, value in network.state_dict().items() if name in key}
    kernel = state["conv.weight"]
    padding = [side // 2 for side in kernel.shape[2:]] if stride == 1 else 0
    x = F.conv2d(x, kernel, stride=stride, padding=padding)
    mean, var = state["bn.running_mean"], state["bn.running_var"]
    return F.relu(F.batch_norm(x, mean, var, state["bn.weight"], state["bn.bias"], eps=1e-3))


def _oracle(network: nn.Module, block: str, x: Tensor) -> Tensor:
    """The blocks of Szegedy et al. 2015, figures 5 to 7 and 10, written out by parameter name."""

    def run(x: Tensor, *names: str, last_stride: int = 1) -> Tensor:
        for name in names:
            stride = last_stride if name == names[-1] else 1
            x = _layer(network, f"{block}.{name}", x, stride)
        return x

    def numbered(name: str, count: int, last_stride: int = 1) -> Tensor:
        return run(x, *(f"{name}_{i + 1}" for i in range(count)), last_stride=last_stride)

    mean = F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(torch.ones_like(x), 3, 1, 1)
    if block == "Mixed_5c":
        parts = [
            run(x, "branch1x1"),
            numbered("branch5x5", 2),
            numbered("branch3x3dbl", 3),
            run(mean, "branch_pool"),
        ]
    elif block == "Mixed_6a":
        double = numbered("branch3x3dbl", 3, last_stride=2)
        parts = [run(x, "branch3x3", last_stride=2), double, F.max_pool2d(x, 3, 2)]
    elif block == "Mixed_6c":
        parts = [
            run(x, "branch1x1"),
            numbered("branch7x7", 3),
            numbered("branch7x7dbl", 5),
            run(mean, "branch_pool"),
        ]
    elif block == "Mixed_7a":
        parts = [numbered("branch3x3", 2, 2), numbered("branch7x7x3", 4, 2), F.max_pool2d(x, 3, 2)]
    else:
        three, double = numbered("branch3x3", 1), numbered("branch3x3dbl", 2)
        parts = [run(x, "branch1x1"), run(three, "branch3x3_2a"), run(three, "branch3x3_2b")]
        parts += [run(double, "branch3x3dbl_3a"), run(double, "branch3x3dbl_3b")]
        parts.append(run(mean if block == "Mixed_7b" else F.max_pool2d(x, 3, 1, 1), "branch_pool"))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(
    ("block", "channels", "result"),
    [
        ("Mixed_5c", 256, (1, 288, 9, 9)),
        ("Mixed_6a", 288, (1, 768, 4, 4)),
        ("Mixed_6c", 768, (1, 768, 9, 9)),
        ("Mixed_7a", 768, (1, 1280, 4, 4)),
        ("Mixed_7b", 1280, (1, 2048, 9, 9)),
        ("Mixed_7c", 2048, (1, 2048, 9, 9)),
    ],
)
def test_blocks_agree_with_the_oracle(
    network: InceptionNetwork, block: str, channels: int, result: tuple[int, ...]
) -> None:
    x = torch.randn(1, channels, 9, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        computed, expected = network.get_submodule(block)(x), _oracle(network, block, x)
    assert computed.shape == result
    assert computed.std() > 0.1
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-4)


def test_average_pool_leaves_the_padding_out() -> None:
    block = Mixed(1, (), "average", 1).eval()
    nn.init.ones_(block.branch_pool.conv.weight)
    with torch.no_grad():
        torch.testing.assert_close(block(torch.ones(1, 1, 4, 4)), torch.full((1, 1, 4, 4), 1.001**-0.5))


def test_the_extractor_gives_2048_features_and_repeats_grey(network: InceptionNetwork, weights_folder: Path) -> None:
    extractor = InceptionV3(weights_folder / "inception.safetensors")
    assert (extractor.name, extractor.dim) == ("inception-v3", 2048)
    grey = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 1), dtype=np.uint8)
    features = extractor(grey)
    assert features.shape == (1, 2048)
    colour = torch.tensor(np.repeat(grey, 3, axis=3)).permute(0, 3, 1, 2) / 255
    resized = F.interpolate(colour, size=(299, 299), mode="bilinear")
    with torch.no_grad():
        expected = network(2 * resized - 1).numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4)
    assert features.std() > 0.01


def test_both_file_formats_load_strictly(weights_folder: Path, network: InceptionNetwork) -> None:
    loaded = load_inception(weights_folder / "inception.pth")
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_a_file_without_batch_counters_loads(network: InceptionNetwork) -> None:
    """The public file predates `num_batches_tracked`."""
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    InceptionNetwork().load_state_dict(dict(state))
    with pytest.raises(RuntimeError, match="Missing key"):
        InceptionNetwork().load_state_dict({name: v for name, v in state.items() if name != "fc.bias"})


def test_a_missing_file_says_where_it_is_commonly_got(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pytorch-fid.*never downloads"):
        InceptionV3(tmp_path / "absent.pth")


@pytest.mark.parametrize("name", ["other.pth", "other.safetensors"])
def test_other_weights_are_refused(tmp_path: Path, name: str) -> None:
    state = {"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}
    if name.endswith("pth"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    with pytest.raises(UserError, match="does not hold the parameters"):
        load_inception(tmp_path / name)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (open, (str(marker), "w"))

    torch.save({"fc.bias": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(UserError):
        load_inception(tmp_path / "evil.pth")
    assert not marker.exists()
