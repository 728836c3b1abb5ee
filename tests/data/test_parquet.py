"""Images in a column of parquet, beyond what the hub has."""

import sys
from pathlib import Path

import pytest

import miniatures
from dpldm.data.readers import Unreadable, open_source
from dpldm.errors import MissingExtra, UserError
from miniatures import number_in


def test_parquet_of_plain_bytes_and_null_images(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    images = [miniatures.png(0), None, b"", b"junk"]
    pyarrow.parquet.write_table(
        pyarrow.table({"jpg": images, "label": [5, None, 6, 7], "matrix": [[[1.0]]] * 4}), tmp_path / "one.parquet"
    )
    source = open_source(tmp_path / "one.parquet")
    assert source.keys[0] == "one.parquet:00000000"
    assert source.labels == ["5", "", "6", "7"]
    assert number_in(source.image(0)) == 0
    for index, reason in ((1, "no bytes"), (2, "no bytes"), (3, "cannot be decoded")):
        with pytest.raises(Unreadable, match=reason):
            source.image(index)


def test_columns_of_images_in_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "one.parquet"
    image = {"bytes": miniatures.png(1), "path": None}
    pyarrow.parquet.write_table(pyarrow.table({"left": [image], "right": [image]}), path)
    with pytest.raises(UserError, match="several columns of images"):
        open_source(path)
    assert number_in(open_source(path, image_column="right").image(0)) == 1
    pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), path)
    with pytest.raises(UserError, match=r"no column of images \(its columns: 'label'\)"):
        open_source(path)


def test_a_damaged_row_group_makes_null_records(tmp_path: Path) -> None:
    import pyarrow.parquet

    root = miniatures.huggingface(tmp_path / "set")
    path = root / "data" / "train-00000-of-00002.parquet"
    image_bytes = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    start, length = (
        image_bytes.dictionary_page_offset or image_bytes.data_page_offset,
        image_bytes.total_compressed_size,
    )
    data = bytearray(path.read_bytes())
    data[start : start + length] = b"\xff" * length
    path.write_bytes(data)
    source = open_source(root)
    damaged = set()
    for index in range(len(source)):
        try:
            assert number_in(source.image(index)) == index
        except Unreadable:
            damaged.add(index)
    assert damaged == {3, 4, 5}


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniatures.huggingface(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"dpldm\[parquet\]"):
        open_source(root)
