"""The private cache: encoded once, by public preprocessing, and never used for another recipe."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dpldm.config import DataConfig
from dpldm.data import latents as module
from dpldm.data.latents import PrivateLatents, preprocessing_of, private_latents
from dpldm.errors import UserError
from dpldm.models.autoencoder import Posterior, build_autoencoder, encode
from dpldm.models.backbone import Backbone, load_backbone
from tiny_runs import write_images


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "private").mkdir()
    return tmp_path / "private" / "latents.safetensors"


def data_of(folder: Path, **more: object) -> DataConfig:
    return DataConfig.model_validate({"path": folder, "image_size": 16, "labels": ["dark", "light"]} | more)


def made(data: DataConfig, backbone: Path | str, cache: Path, **more: Any) -> PrivateLatents:
    return private_latents(data, load_backbone(str(backbone)).autoencoder, str(backbone), cache, **more)


def same(a: PrivateLatents, b: PrivateLatents) -> bool:
    pairs = [(a.posterior.mean, b.posterior.mean), (a.posterior.log_variance, b.posterior.log_variance)]
    return all(torch.equal(x, y) for x, y in [*pairs, (a.labels, b.labels), (a.usable, b.usable)])


def test_every_record_is_the_encoding_of_its_image(image_folder: Path, tiny_backbone: Path, cache: Path) -> None:
    """Read one by one with Pillow and encoded one by one."""
    latents = made(data_of(image_folder), tiny_backbone, cache)
    autoencoder = load_backbone(str(tiny_backbone)).autoencoder
    paths = sorted(image_folder.rglob("*.png"), key=lambda path: path.relative_to(image_folder).as_posix())
    assert latents.units == len(paths) == 40
    assert latents.labels.tolist() == [("dark", "light").index(path.parent.name) for path in paths]
    assert latents.usable.all()
    for row, path in enumerate(paths):
        pixels = np.asarray(Image.open(path))[None, ..., None]
        alone = encode(autoencoder, pixels)
        torch.testing.assert_close(latents.posterior.mean[row], alone.mean[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(latents.posterior.log_variance[row], alone.log_variance[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [16, 300])
def test_how_many_images_there_are_does_not_shape_a_pass(size: int, tmp_path: Path, cache: Path) -> None:
    """Networks round by the size of a pass, and a vote may turn on the last bits."""
    shapes: list[tuple[int, ...]] = []

    def encoder(pixels: Any) -> Posterior:
        shapes.append(pixels.shape)
        means = torch.from_numpy(pixels.astype(np.float32).mean((1, 2)))
        return Posterior(means, -means)

    found = {}
    for count in (10, 64, 70):
        folder = tmp_path / f"of-{count}"
        folder.mkdir()
        for index in range(count):
            Image.fromarray(np.full((size, size), index, np.uint8)).save(folder / f"{index:03d}.png")
        data = DataConfig.model_validate({"path": folder, "image_size": size})
        found[count] = module.private_encodings(data, encoder, "means", cache).posterior
        assert torch.equal(found[count].mean[:, 0], torch.arange(count).float()), "each once, in order"
        assert torch.equal(found[count].log_variance, -found[count].mean)
    assert set(shapes) == {(64 if size == 16 else 2, size, size, 1)}


def test_the_cache_gives_back_what_was_encoded(
    image_folder: Path, tiny_backbone: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(data_of(image_folder), tiny_backbone, cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600
    monkeypatch.setattr(module, "open_source", lambda *_, **__: pytest.fail("read the images again"))
    again = made(data_of(image_folder, test_path="elsewhere"), tiny_backbone, cache, keep=True)
    assert same(first, again)
    assert again.usable.dtype == torch.bool


@pytest.mark.parametrize(
    "change", [{"image_size": 15}, {"crop": "none"}, {"window": [0, 9]}, {"labels": ["light", "dark"]}]
)
def test_another_recipe_is_encoded_anew(
    change: dict[str, object], image_folder: Path, tiny_backbone: Path, cache: Path
) -> None:
    for index, path in enumerate(sorted(image_folder.rglob("*.png"))):  # not square, so that the crop matters
        Image.fromarray(np.full((16, 20), 5 * index, np.uint8)).save(path)
    made(data_of(image_folder), tiny_backbone, cache)
    before = cache.read_bytes()
    made(data_of(image_folder, **change), tiny_backbone, cache)
    assert cache.read_bytes() != before


def test_a_backbone_made_again_at_the_same_place_is_another_one(
    image_folder: Path, tiny_backbone: Path, cache: Path, tmp_path: Path
) -> None:
    place = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, place)
    first = made(data_of(image_folder), place, cache)
    old = load_backbone(str(place))
    torch.manual_seed(9)
    Backbone("tiny", build_autoencoder(1, 2, (8, 8, 8)), old.denoiser, old.scheduler, {"recipe": "again"}).save(place)
    second = made(data_of(image_folder), place, cache)
    assert not torch.allclose(first.posterior.mean, second.posterior.mean)


def test_null_records_keep_their_place(image_folder: Path, tiny_backbone: Path, cache: Path) -> None:
    whole = made(data_of(image_folder), tiny_backbone, cache)
    cache.unlink()
    (image_folder / "dark" / "010.png").write_bytes(b"")
    (image_folder / "light" / "003.png").write_bytes(b"no image")
    holed = made(data_of(image_folder), tiny_backbone, cache)
    assert holed.units == 40
    assert torch.nonzero(~holed.usable).flatten().tolist() == [5, 21]
    assert torch.equal(holed.labels, whole.labels)
    assert torch.equal(holed.posterior.mean[holed.usable], whole.posterior.mean[holed.usable])
    log = cache.parent / "unreadable.jsonl"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["file"] for entry in entries] == ["dark/010.png", "light/003.png"]


def test_what_is_withdrawn_before_training_is_not_trained_on(
    image_folder: Path, tiny_backbone: Path, cache: Path
) -> None:
    made(data_of(image_folder), tiny_backbone, cache)
    (image_folder / "dark" / "010.png").unlink()
    assert made(data_of(image_folder), tiny_backbone, cache).units == 39
    (image_folder / "dark" / "012.png").unlink()
    assert made(data_of(image_folder), tiny_backbone, cache, keep=True).units == 39, "what a run was trained on stays"


def test_without_classes_every_label_is_none(image_folder: Path, tiny_backbone: Path, cache: Path) -> None:
    latents = made(data_of(image_folder, labels=[]), tiny_backbone, cache)
    assert latents.labels.tolist() == [-1] * 40


def test_refusals_leave_no_cache(image_folder: Path, tiny_backbone: Path, cache: Path) -> None:
    for data in (data_of(image_folder, labels=["dark"]), data_of(image_folder / "nowhere")):
        with pytest.raises(UserError):
            made(data, tiny_backbone, cache)
        assert not cache.exists()


def test_a_damaged_cache_is_refused(image_folder: Path, tiny_backbone: Path, cache: Path) -> None:
    made(data_of(image_folder), tiny_backbone, cache)
    cache.write_bytes(cache.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"latents\.safetensors is damaged: delete it"):
        made(data_of(image_folder), tiny_backbone, cache, keep=True)


def test_preprocessing_is_what_the_config_declares() -> None:
    data = data_of(Path("x"), channels=3, window=[10, 90], crop="none")
    declared = preprocessing_of(data)
    assert (declared.image_size, declared.channels, declared.window, declared.crop) == (16, 3, (10, 90), "none")


def test_units_and_their_records() -> None:
    """Groups of 3, 1 and 2 of six records, one of them null, one not kept."""
    members = module._members(np.array([1, 0, 0, -1, 2, 2, 0]))
    assert members.tolist() == [[1, 2, 6], [0, -1, -1], [4, 5, -1]]
    usable = torch.tensor([True, True, False, True, True, True, True])
    empty = torch.zeros(7, 1, 1, 1)
    latents = PrivateLatents(Posterior(empty, empty), torch.zeros(7, dtype=torch.int64), usable, members)
    assert latents.units == 3
    records, weights = latents.records_of(torch.tensor([2, 0]))
    assert records.tolist() == [[4, 5, 4], [1, 2, 6]]
    assert torch.allclose(weights, torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 0.0, 1 / 3]]))
    records, weights = latents.records_of(torch.tensor([1]))
    assert (records.tolist(), weights.tolist()) == ([[0]], [[1.0]]), "as wide as the largest unit of the pass"


def test_passes_hold_every_unit_once_and_never_fill_one_up() -> None:
    members = torch.tensor([[0, -1, -1], [1, 2, 3], [4, -1, -1], [5, 6, -1], [7, 8, -1]])
    posterior = Posterior(torch.zeros(9, 1, 2, 2), torch.zeros(9, 1, 2, 2))
    latents = PrivateLatents(posterior, torch.zeros(9, dtype=torch.int64), torch.ones(9, dtype=torch.bool), members)
    batch = torch.tensor([0, 1, 2, 3, 4])
    passes = list(latents.passes(batch, rows=2))
    assert [records.tolist() for records, _ in passes] == [[[0], [4]], [[5, 6]], [[7, 8]], [[1, 2, 3]]]
    assert all(bool((weights > 0).all()) for _, weights in passes)
    assert list(latents.passes(batch[:0], rows=2)) == []


def test_groups_are_cached_with_the_latents(tmp_path: Path, tiny_backbone: Path, cache: Path) -> None:
    folder = write_images(tmp_path / "images")
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [f"{path},{path.split('/')[0]},person {index % 7}" for index, path in enumerate(paths)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,patient", *rows]))
    data = data_of(folder, group_column="patient")
    first = made(data, tiny_backbone, cache, images_per_group=4)
    again = made(data, tiny_backbone, cache, images_per_group=4, keep=True)
    assert first.units == again.units == 7
    assert torch.equal(first.members, again.members)
    assert first.members.shape == (7, 4)
