"""WebDataset shards beyond what img2dataset writes."""

from pathlib import Path

import pytest

import miniatures
from dpldm.data.readers import Unreadable, open_source
from dpldm.errors import UserError
from miniatures import number_in


def test_samples_of_shards_are_their_own(tmp_path: Path) -> None:
    """A text without an image stays as a null record; classes and persons come from .cls and .json; keys may repeat
    in other shards; what is no text is empty."""
    members = {
        "a/1.png": miniatures.png(1),
        "a/1.cls": "7",
        "a/1.json": '{"person": "p1", "deep": {"x": 1}, "score": 0.5}',
        "2.txt": "no image",
        "2.json": "[1]",
        "3.cls": b"\xff\xfe",
        "3.png": miniatures.png(3),
        "4.png": b"",
        ".hidden.png": b"",
        "README": b"",
    }
    for name in ("s0.tar", "s1.tar"):
        miniatures.tar(tmp_path / "set" / name, members)
    source = open_source(tmp_path / "set", group_column="person")
    assert source.keys[:4] == ["s0.tar/2", "s0.tar/3", "s0.tar/4", "s0.tar/a/1"]
    assert source.labels == ["", "", "", "7"] * 2
    assert source.captions == ["no image", "", "", ""] * 2
    assert source.groups == ["", "", "", "p1"] * 2
    assert source.unused_columns == ["score"]
    assert number_in(source.image(3)) == 1
    for index, reason in ((0, "no image beside"), (2, "is empty")):
        with pytest.raises(Unreadable, match=reason):
            source.image(index)
    alone = open_source(tmp_path / "set" / "s1.tar")
    assert len(alone) == 4
    with pytest.raises(UserError, match=r"no column 'who' \(its columns: 'txt'"):
        open_source(tmp_path / "set", group_column="who")


def test_shards_named_after_splits(tmp_path: Path) -> None:
    for name, number in (("cub-train-000.tar", 1), ("cub-train-001.tar", 2), ("cub-test-000.tar", 3)):
        miniatures.tar(tmp_path / name, {"x.png": miniatures.png(number)})
    assert numbers(tmp_path, "train") == {1, 2}
    assert numbers(tmp_path, "test") == {3}
    with pytest.raises(UserError, match="no files of the split 'val'"):
        open_source(tmp_path, split="val")


def numbers(path: Path, split: str) -> set[int]:
    source = open_source(path, split=split)
    return {number_in(source.image(index)) for index in range(len(source))}
