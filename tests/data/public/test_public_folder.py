"""Any folder of images becomes a public set that says where it comes from."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpldm.cli import main
from dpldm.data.public.collection import PublicSet
from dpldm.data.public.folder import make_from_folder
from dpldm.errors import UserError
from tiny_runs import write_images

FACTS = {"licence": "CC0-1.0", "origin": "drawn by a test"}


def test_images_labels_and_origin_are_kept(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    made = make_from_folder(folder, image_size=16, channels=1, **FACTS)
    assert (len(made), made.label_names) == (40, ("dark", "light"))
    for image, label, name in zip(made.images, made.labels, made.names, strict=True):
        assert name.startswith(made.label_names[label])
        np.testing.assert_array_equal(image[..., 0], np.asarray(Image.open(folder / name)))
    loaded = PublicSet.load(made.save(tmp_path / "set"))
    assert loaded.provenance["licence"] == "CC0-1.0"
    assert loaded.provenance["origin"] == "drawn by a test"
    assert str(tmp_path) not in (tmp_path / "set" / "provenance.json").read_text(), "no path of the machine"


def test_copies_and_broken_files_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    (folder / "dark" / "copy.png").write_bytes((folder / "dark" / "000.png").read_bytes())
    (folder / "light" / "broken.png").write_bytes(b"no image")
    made = make_from_folder(folder, image_size=16, channels=1, **FACTS)
    assert len(made) == 40
    assert made.provenance["dropped"] == {"unreadable": 1, "copies": 1}


def test_without_labels_there_is_one_class(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 9, 9), dtype=np.uint8)
    np.savez(tmp_path / "flat.npz", x=images)
    made = make_from_folder(tmp_path / "flat.npz", image_size=18, channels=3, **FACTS)
    assert made.images.shape == (12, 18, 18, 3)
    assert set(made.labels.tolist()) == {0}
    assert made.label_names == ("image",)


@pytest.mark.parametrize("blank", ["licence", "origin"])
def test_a_blank_licence_or_origin_is_refused(tmp_path: Path, blank: str) -> None:
    with pytest.raises(UserError, match="--licence and --origin"):
        make_from_folder(tmp_path, image_size=16, channels=1, **(FACTS | {blank: " "}))


def test_the_command_writes_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "images")
    words = ["--source", str(folder), "--output", str(tmp_path / "set"), "--image-size", "16"]
    assert main(["public", "folder", *words, "--licence", "CC0-1.0", "--origin", "drawn"]) == 0
    assert "40 images in" in capsys.readouterr().out
    assert len(PublicSet.load(tmp_path / "set")) == 40
    assert main(["public", "folder", *words, "--licence", "MIT", "--origin", "drawn"]) == 0, "a set replaces a set"
    assert PublicSet.load(tmp_path / "set").provenance["licence"] == "MIT"


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    before = sorted(path.name for path in folder.rglob("*"))
    made = make_from_folder(folder, image_size=16, channels=1, **FACTS)
    (tmp_path / "file").touch()
    for place in (folder, folder / "dark", tmp_path / "file"):
        with pytest.raises(UserError, match="holds something else"):
            made.save(place)
    assert sorted(path.name for path in folder.rglob("*")) == before
