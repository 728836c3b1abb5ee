import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpldm.data.public import collection
from dpldm.data.public.collection import PublicSet, contact_sheet
from dpldm.errors import UserError


def make_set(count: int = 7, channels: int = 1, seed: int = 0) -> PublicSet:
    rng = np.random.default_rng(seed)
    return PublicSet(
        images=rng.integers(0, 256, (count, 8, 8, channels), dtype=np.uint8),
        labels=np.arange(count, dtype=np.int64) % 2,
        label_names=("cup", "shoe"),
        families=np.array([f"family {index % 3}" for index in range(count)]),
        names=np.array([f"name {index}" for index in range(count)]),
        provenance={"kind": "test", "parameters": {"seed": seed}},
        dropped=rng.integers(0, 256, (3, 8, 8, channels), dtype=np.uint8),
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_saved_is_loaded(tmp_path: Path, channels: int) -> None:
    made = make_set(channels=channels)
    loaded = PublicSet.load(made.save(tmp_path / "set"))
    np.testing.assert_array_equal(loaded.images, made.images)
    np.testing.assert_array_equal(loaded.labels, made.labels)
    np.testing.assert_array_equal(loaded.families, made.families)
    np.testing.assert_array_equal(loaded.names, made.names)
    assert loaded.images.dtype == np.uint8
    assert loaded.labels.dtype == np.int64
    assert loaded.label_names == made.label_names
    assert loaded.provenance["images_per_family"] == {"family 0": 3, "family 1": 2, "family 2": 2}
    assert loaded.provenance["images_per_label"] == {"cup": 4, "shoe": 3}
    assert loaded.provenance["parameters"] == {"seed": 0}


def test_a_killed_save_leaves_nothing_in_the_way_and_an_earlier_set_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(images: np.ndarray) -> None:
        raise KeyboardInterrupt

    def save_and_kill() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(collection, "contact_sheet", killed)
            with pytest.raises(KeyboardInterrupt):
                make_set(count=9).save(tmp_path / "set")

    save_and_kill()
    assert not (tmp_path / "set").exists()
    make_set().save(tmp_path / "set")
    (tmp_path / "set" / "notes.txt").write_text("mine")
    save_and_kill()
    assert len(PublicSet.load(tmp_path / "set")) == 7
    make_set(count=9).save(tmp_path / "set")
    assert len(PublicSet.load(tmp_path / "set")) == 9
    assert {path.name for path in tmp_path.iterdir()} == {"set"}
    assert (tmp_path / "set" / "notes.txt").read_text() == "mine"


def test_numpy_alone_reads_the_archive_without_pickle(tmp_path: Path) -> None:
    made = make_set()
    made.save(tmp_path)
    with np.load(tmp_path / "images.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == ["family", "label_names", "name", "x", "y"]
        np.testing.assert_array_equal(stored["x"], made.images)
        assert stored["label_names"].dtype.kind == "U"


def test_equal_sets_give_equal_bytes_in_every_file(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_set().save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["contact-sheet.png", "dropped-sheet.png", "images.npz", "provenance.json"]
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_recorded_hash_is_that_of_the_archive_and_is_checked(tmp_path: Path) -> None:
    make_set().save(tmp_path)
    archive = tmp_path / "images.npz"
    recorded = json.loads((tmp_path / "provenance.json").read_text())["sha256"]["images.npz"]
    assert recorded == hashlib.sha256(archive.read_bytes()).hexdigest()
    other = make_set(seed=1).save(tmp_path / "other")
    archive.write_bytes((other / "images.npz").read_bytes())
    with pytest.raises(UserError, match="not the file its provenance"):
        PublicSet.load(tmp_path)


def test_loading_what_is_no_set_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a public set"):
        PublicSet.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.zeros((7, 8, 8), np.uint8)},
        {"images": np.zeros((7, 8, 8, 1), np.float32)},
        {"images": np.zeros((7, 8, 8, 2), np.uint8)},
        {"labels": np.zeros(6, np.int64)},
        {"labels": np.full(7, 2)},
        {"labels": np.full(7, -1)},
        {"families": np.array(["a"])},
        {"names": np.array(["a"])},
    ],
)
def test_parts_that_do_not_fit_are_user_errors(change: dict[str, np.ndarray]) -> None:
    good = make_set()
    fields = {name: getattr(good, name) for name in ("images", "labels", "label_names", "families", "names")}
    PublicSet(**fields)
    with pytest.raises(UserError):
        PublicSet(**(fields | change))


@given(count=st.integers(1, 60), channels=st.sampled_from([1, 3]))
def test_contact_sheet_shows_each_image_once(count: int, channels: int) -> None:
    images = make_set(count, channels).images
    sheet = np.asarray(contact_sheet(images))[::2, ::2].reshape(-1, 24 * 9, channels)
    tiles = [
        sheet[row : row + 8, column : column + 8].tobytes()
        for row in range(0, len(sheet), 9)
        for column in range(0, 24 * 9, 9)
    ]
    assert sorted(tiles[:count]) == sorted(image.tobytes() for image in images)
    assert all(set(tile) == {96} for tile in tiles[count:])
