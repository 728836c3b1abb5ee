"""The internal look at a data set, and the configuration it starts."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dpldm.config import DataConfig, RunConfig
from dpldm.data.inspect import inspect_source, label_order, render, write_config
from dpldm.errors import UserError
from dpldm.loading import load_config
from dpldm.run import require_portraits


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """Five records: two equal images of one person, one of 16 bits, one colour, one broken; a stray file."""
    root = tmp_path / "clinic"
    root.mkdir()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(root / "a.png")
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(root / "b.bmp")
    Image.fromarray(np.full((5, 5), 4000, dtype=np.uint16)).save(root / "c.png")
    Image.new("RGB", (3, 3)).save(root / "d.png")
    (root / "e.png").write_text("broken")
    (root / "stray\x1b[2J.txt").touch()
    (root / "metadata.csv").write_text(
        "file_name,label,patient\na.png,ill,p1\nb.bmp,ill,p1\nc.png,healthy,p2\nd.png,healthy,p3\ne.png,ill,p4\n"
    )
    return root


def test_counts(clinic: Path) -> None:
    found = inspect_source(clinic, group_column="patient")
    assert (found.records, found.readable, found.bit_depth) == (5, 4, 16)
    assert found.sizes == {(4, 3): 2, (5, 5): 1, (3, 3): 1}
    assert found.modes == {"L": 2, "I;16": 1, "RGB": 1}
    assert found.labels == {"healthy": 2, "ill": 3}
    assert (found.groups, found.max_images_per_group) == (4, 2)
    assert [key for key, _ in found.unreadable] == ["e.png"]
    assert found.duplicates == [["a.png", "b.bmp"]]
    assert found.ignored == ["stray\x1b[2J.txt"]
    assert not found.captions


def test_the_text_is_headed_internal_and_warns(clinic: Path) -> None:
    text = render(inspect_source(clinic, group_column="patient"))
    assert text.startswith("INTERNAL")
    assert "Do not publish" in text.splitlines()[0]
    for part in ("4x3: 2", "healthy: 2, ill: 3", "e.png: ", "a.png, b.bmp", "at most 2 images each"):
        assert part in text
    assert "set privacy.unit: group and privacy.max_images_per_group" in text
    assert "\x1b" not in text


def test_a_column_that_may_name_persons_is_pointed_out(clinic: Path) -> None:
    assert "columns patient" in render(inspect_source(clinic))
    assert "--group-column" in render(inspect_source(clinic))


def test_nothing_to_warn_of(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=np.arange(40, dtype=np.uint8).reshape(10, 2, 2), y=np.arange(10))
    text = render(inspect_source(tmp_path / "set.npz"))
    assert "WARNING" not in text
    assert "records      10, of them 10 readable" in text


def folder_of(root: Path, *places: str, each: int = 6) -> Path:
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for row in range(each):
            Image.new("L", (4, 4), row + 10 * len(place)).save(root / place / f"{row}.png")
    return root


def split_folders(root: Path) -> Path:
    return folder_of(root, "train", "test")


def deeper_folders(root: Path) -> Path:
    return folder_of(root, "site1/cat", "site1/dog", "site2/cat")


def a_linked_class(root: Path) -> Path:
    folder_of(root.with_name("elsewhere"), "c")
    folder_of(root, "aa", "bbb")
    (root / "c").symlink_to(root.with_name("elsewhere") / "c", target_is_directory=True)
    return root


def too_few(root: Path) -> Path:
    return folder_of(root, "", each=5)


def a_class_column_by_another_name(root: Path) -> Path:
    folder_of(root, "", each=12)
    rows = "".join(f"{row}.png,{'sick' if row % 2 else 'well'}\n" for row in range(12))
    (root / "metadata.csv").write_text("file_name,diagnosis\n" + rows)
    return root


def a_blank_class(root: Path) -> Path:
    folder_of(root, "", each=12)
    rows = "".join(f"{row}.png,{'sick' if row % 2 else ''}\n" for row in range(12))
    (root / "metadata.csv").write_text("file_name,label\n" + rows)
    return root


def a_table_by_another_name(root: Path) -> Path:
    folder_of(root, "ward 3", "ward 4")
    (root / "labels.csv").write_text("file,label\nward 3/0.png,ill\n")
    return root


def one_deep_image(root: Path) -> Path:
    folder_of(root, "", each=12)
    Image.fromarray(np.full((5, 5), 4000, dtype=np.uint16)).save(root / "deep.png")
    return root


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (split_folders, "names of splits"),
        (deeper_folders, "only the first level counts"),
        (a_linked_class, "linked folders are not entered: c"),
        (too_few, "fewer than 10 images can be read"),
        (a_class_column_by_another_name, "use --label-column"),
        (a_blank_class, "some records have no class name"),
        (a_table_by_another_name, "labels.csv is not read: a table of classes and persons is one named metadata.csv"),
        (one_deep_image, "1 of the images have 16 bits: set data.window"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_would_go_wrong_later_is_said_now(make: Callable[[Path], Path], text: str, tmp_path: Path) -> None:
    warnings = [line for line in render(inspect_source(make(tmp_path / "set"))).splitlines() if "WARNING" in line]
    assert sum(text in line for line in warnings) == 1, warnings


def test_long_lists_are_cut(tmp_path: Path) -> None:
    for row in range(30):
        (tmp_path / f"{row}.png").touch()
    text = render(inspect_source(tmp_path))
    assert "unreadable   30" in text
    assert "and 20 more" in text


def test_an_empty_folder(tmp_path: Path) -> None:
    found = inspect_source(tmp_path)
    assert (found.records, found.labels, found.groups) == (0, None, None)
    assert render(found)


def test_label_order() -> None:
    assert label_order({"10": 1, "9": 1, "0": 1}) == ["0", "9", "10"]
    assert label_order({"10": 1, "9": 1, "b": 1}) == ["10", "9", "b"]


def test_config(clinic: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    write_config(inspect_source(clinic, group_column="patient"), path)
    assert yaml.safe_load(path.read_text()) == {
        "name": "run",
        "method": "portraits",
        "data": {
            "path": str(clinic),
            "image_size": 32,
            "channels": 1,
            "labels": ["healthy", "ill"],
            "label_column": None,
            "caption_column": None,
            "group_column": "patient",
            "window": None,
            "test_path": None,
        },
        "backbone": "grey32",
        "privacy": {
            "dataset_id": "clinic",
            "unit": "group",
            "max_images_per_group": 4,
            "records": None,
            "epsilon": 10,
            "delta": 1e-5,
            "cap": None,
            "class_parts": 1,
        },
        "sampling": {"count": 10000},
        "evaluation": {"protocol": "screen"},
    }
    assert "published with the release" in path.read_text()
    assert "number of PERSONS" in path.read_text()
    with pytest.raises(UserError, match="exists"):
        write_config(inspect_source(clinic), path)
    write_config(inspect_source(clinic), tmp_path / "images.yaml")
    assert "unit" not in yaml.safe_load((tmp_path / "images.yaml").read_text())["privacy"]
    assert load_config(RunConfig, path, [("privacy.records", "1000")]).privacy.unit == "group", (
        "it can be used as it is"
    )


def test_what_a_config_proposes_can_be_used(clinic: Path, tmp_path: Path) -> None:
    """Portraits where there are classes, also with the proposal behind a mark; a model where there are none."""
    path = tmp_path / "run.yaml"
    write_config(inspect_source(clinic), path)
    words, records = path.read_text(encoding="utf-8"), [("privacy.records", "20000")]
    config = load_config(RunConfig, path, records)
    assert (config.method, config.privacy.query_reserve) == ("portraits", 2)
    require_portraits(config)
    assert words.count("  # query_reserve: 0") == 1
    path.write_text(words.replace("# query_reserve: 0", "query_reserve: 0"), encoding="utf-8")
    assert load_config(RunConfig, path, records).privacy.query_reserve == 0
    (tmp_path / "flat").mkdir()
    Image.new("L", (2, 2)).save(tmp_path / "flat" / "1.png")
    write_config(inspect_source(tmp_path / "flat"), tmp_path / "flat.yaml")
    assert load_config(RunConfig, tmp_path / "flat.yaml", records).method == "diffusion"


def test_names_of_all_scripts_stay_legible(tmp_path: Path) -> None:
    for label in ("Ödem", "病棟"):
        (tmp_path / "Märzbilder" / label).mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / "Märzbilder" / label / "1.png")
    write_config(inspect_source(tmp_path / "Märzbilder"), tmp_path / "run.yaml")
    assert '["Ödem", "病棟"]' in (tmp_path / "run.yaml").read_text(encoding="utf-8")


def test_a_caption_column_takes_the_place_of_classes(clinic: Path, tmp_path: Path) -> None:
    """A config with both would be refused, so the one that is written declares no classes."""
    (clinic / "metadata.csv").write_text("file_name,label,report\na.png,ill,a shadow\nb.bmp,ill,two\n")
    found, path = inspect_source(clinic, caption_column="report"), tmp_path / "run.yaml"
    assert found.captions
    assert found.labels is not None
    text = render(found)
    assert "captions     yes" in text
    assert "a shadow" not in text
    assert "which grey32 is not: choose one (rgb32-text, or see docs/backbones.md)" in text
    write_config(found, path)
    written = yaml.safe_load(path.read_text())["data"]
    assert (written["caption_column"], written["labels"], written["label_column"]) == ("report", [], None)
    assert DataConfig.model_validate({name: value for name, value in written.items() if value is not None})


def test_captions_that_were_found_by_name_are_pointed_out(clinic: Path) -> None:
    (clinic / "metadata.csv").write_text("file_name,text\na.png,a shadow\nb.bmp,two\n")
    assert "look again with --caption-column" in render(inspect_source(clinic))


def test_config_tells_no_count_of_the_data(tmp_path: Path) -> None:
    """The same text for ten images and for fifteen, with other sizes, duplicates and an unreadable one."""
    texts = []
    for records, size in ((10, 4), (15, 9)):
        root = tmp_path / "set"
        for row in range(records):
            folder = root / ("x" if row % 2 else "y")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (size, size), row % 3).save(folder / f"{row}.png")
        if records == 15:
            (root / "x" / "broken.png").touch()
        config = tmp_path / f"{records}.yaml"
        write_config(inspect_source(root), config)
        texts.append(config.read_text())
    assert texts[0] == texts[1]


def test_hostile_names_stay_values(tmp_path: Path) -> None:
    labels = [
        "yes",
        "1e3",
        "null",
        "a: b # c",
        "[x",
        "new\nline: 1",
        "\x1b[31m",
        "猫",
        "'",
        '"',
        "{path}",
        "x" * 200,
    ]
    labels.append(os.fsdecode(b"\xff"))
    root = tmp_path / "da: ta # {x}"
    for label in labels:
        (root / label).mkdir(parents=True)
        Image.new("L", (2, 2)).save(root / label / "1.png")
    write_config(inspect_source(root), tmp_path / "run.yaml")
    text = (tmp_path / "run.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    assert config["data"]["labels"] == sorted(labels)
    assert config["data"]["path"] == str(root)
    assert "\x1b" not in text
