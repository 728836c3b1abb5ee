"""Pixels to latents and back: shapes, margins, coordinates, independence of records, and the file format."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dpldm.errors import UserError
from dpldm.models.autoencoder import (
    Posterior,
    build_autoencoder,
    decode,
    downsampling,
    encode,
    from_network,
    latent_shape,
    pad_to_multiple,
    standardise_latents,
    to_network,
)
from dpldm.models.backbone import WEIGHTS, Backbone, load_backbone
from dpldm.models.denoiser import build_denoiser, build_scheduler


def pictures(count: int, size: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    """Factor 4, four latent channels, weights large enough that latents differ from image to image."""
    torch.manual_seed(3)
    network = build_autoencoder(1, 4, (8, 16, 16)).eval().requires_grad_(False)
    for convolution in (network.quant_conv, network.post_quant_conv):
        torch.nn.init.normal_(convolution.weight)
        torch.nn.init.normal_(convolution.bias)
    return network


# --- pixels ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_margins_are_lossless(size: int, factor: int, channels: int, seed: int) -> None:
    pixels = pictures(2, size, channels, seed)
    network_side = to_network(pixels, factor)
    side = -(-size // factor) * factor
    assert network_side.shape == (2, channels, side, side)
    assert network_side.dtype == torch.float32
    assert float(network_side.min()) >= -1
    assert float(network_side.max()) <= 1
    assert np.array_equal(from_network(network_side, size), pixels)


def test_28_pixels_sit_in_the_middle_of_32_and_repeat_their_edge() -> None:
    images = torch.rand(2, 3, 28, 28)
    padded = pad_to_multiple(images, 8)
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    assert np.array_equal(padded.numpy(), expected)


def test_black_and_white_are_the_ends_of_the_range() -> None:
    ends = to_network(np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1), 1).flatten().tolist()
    assert ends == [-1.0, 1.0]
    beyond = torch.tensor([-3.0, -1.0, 1.0, 3.0]).view(4, 1, 1, 1)
    assert from_network(beyond, 1).flatten().tolist() == [0, 0, 255, 255]


def test_shapes_of_latents_and_images(autoencoder: AutoencoderKL) -> None:
    assert downsampling(autoencoder) == 4
    for size in (28, 29, 32):
        posterior = encode(autoencoder, pictures(3, size))
        assert posterior.mean.shape == posterior.log_variance.shape == (3, *latent_shape(autoencoder, size))
        decoded = decode(autoencoder, posterior.mean, size)
        assert decoded.shape == (3, size, size, 1)
        assert decoded.dtype == np.uint8


def test_posterior_draws_have_its_moments() -> None:
    posterior = Posterior(torch.full((1, 1, 400, 400), 2.0), torch.full((1, 1, 400, 400), -1.0))
    draw = posterior.sample(torch.Generator().manual_seed(0))
    assert float(draw.mean()) == pytest.approx(2.0, abs=0.01)
    assert float(draw.var()) == pytest.approx(float(np.exp(-1.0)), rel=0.02)


# --- records never meet ---------------------------------------------------------------------------------------


def test_latents_do_not_depend_on_the_batch(autoencoder: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 1 of the proof: a record's latent is a function of that record alone.

    Whatever the other records hold, the bits are the same. Another batch size may choose another order of
    summation, which is rounding.
    """
    pixels = pictures(12, 28)
    together = encode(autoencoder, pixels)
    company = np.where(np.arange(12)[:, None, None, None] == 5, pixels, pictures(12, 28, seed=1))
    company[0], company[11] = 0, 255
    other = encode(autoencoder, company)
    alone = encode(autoencoder, pixels[5:6])
    monkeypatch.setattr("dpldm.models.autoencoder.PIXELS_AT_ONCE", 5 * 28 * 28)
    shuffled = encode(autoencoder, pixels[::-1])
    for moment in ("mean", "log_variance"):
        record = getattr(together, moment)[5]
        assert torch.equal(record, getattr(other, moment)[5])
        assert torch.allclose(record, getattr(alone, moment)[0], rtol=1e-5, atol=1e-5)
        assert torch.allclose(record, getattr(shuffled, moment)[6], rtol=1e-5, atol=1e-5)
        assert float((record - getattr(together, moment)[4]).abs().max()) > 1e-2, "records differ at all"


def test_encoding_changes_nothing_in_the_autoencoder(autoencoder: AutoencoderKL) -> None:
    before = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    decode(autoencoder, encode(autoencoder, pictures(4, 28)).mean, 28)
    assert all(torch.equal(tensor, before[name]) for name, tensor in autoencoder.state_dict().items())


# --- coordinates ----------------------------------------------------------------------------------------------


def test_standardised_latents_have_mean_zero_and_deviation_one_and_decode_the_same(autoencoder: AutoencoderKL) -> None:
    pixels = pictures(40, 28)
    before = encode(autoencoder, pixels)
    mean, std = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
    assert float(mean.abs().max()) > 0.1, "there is something to standardise"
    with torch.no_grad():
        reconstruction = autoencoder.decode(before.mean).sample
    standardise_latents(autoencoder, mean, std)
    after = encode(autoencoder, pixels)
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-5)
    # The spread of every single latent shrinks by the same factor: exp(log_variance) is in units of std**2.
    shift = before.log_variance - after.log_variance
    assert torch.allclose(shift, (2 * std.log())[None, :, None, None].expand_as(shift), atol=1e-4)
    with torch.no_grad():
        again = autoencoder.decode(after.mean).sample
    assert float((again - reconstruction).abs().max()) < 1e-5 * max(1.0, float(reconstruction.abs().max()))


# --- the directory of a backbone ------------------------------------------------------------------------------


@pytest.fixture
def backbone(autoencoder: AutoencoderKL) -> Backbone:
    denoiser = build_denoiser(4, 7, 3, widths=(16,), layers_per_block=1, heads=2, condition_dim=8).eval()
    return Backbone("small", autoencoder, denoiser, build_scheduler("epsilon"), {"recipe": {"seed": 3}})


def test_a_backbone_comes_back_as_it_was_up_to_half_precision(backbone: Backbone, tmp_path: Path) -> None:
    backbone.save(tmp_path / "small")
    loaded = load_backbone(str(tmp_path / "small"))
    for ours, theirs in ((backbone.autoencoder, loaded.autoencoder), (backbone.denoiser, loaded.denoiser)):
        saved, found = ours.state_dict(), theirs.state_dict()
        assert saved.keys() == found.keys()
        for name, tensor in found.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, saved[name].half().float()), name
        assert not theirs.training
        assert not any(p.requires_grad for p in theirs.parameters())
    assert all(t.dtype == torch.float32 for t in backbone.autoencoder.state_dict().values()), "saving changes nothing"
    assert (loaded.name, loaded.channels, loaded.provenance) == ("small", 1, {"recipe": {"seed": 3}})
    assert loaded.scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("weights", WEIGHTS)
def test_changed_weights_are_detected(backbone: Backbone, tmp_path: Path, weights: str) -> None:
    backbone.save(tmp_path / "small")
    path = tmp_path / "small" / weights
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="sha256"):
        load_backbone(str(tmp_path / "small"))


@pytest.mark.parametrize("damage", ["card", "weights", "digest"])
def test_an_incomplete_backbone_is_refused(backbone: Backbone, tmp_path: Path, damage: str) -> None:
    directory = tmp_path / "small"
    backbone.save(directory)
    card = directory / "backbone.json"
    if damage == "card":
        card.write_text(card.read_text()[:20])
    elif damage == "weights":
        (directory / WEIGHTS[0]).unlink()
    else:
        content = json.loads(card.read_text())
        del content["sha256"][WEIGHTS[0]]
        card.write_text(json.dumps(content))
    with pytest.raises(UserError, match="incomplete"):
        load_backbone(str(directory))


def test_an_unknown_backbone_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dpldm pretrain"):
        load_backbone(str(tmp_path / "nowhere"))
