"""Whatever happens to a file of a set: a sentence, null records or other pixels, and never a crash."""

import contextlib
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import miniatures
from dpldm.data.readers import Unreadable, open_source
from dpldm.errors import UserError

FILES = {
    miniatures.svhn: "train_32x32.mat",
    miniatures.webdataset: "00000.tar",
    miniatures.huggingface: "data/train-00000-of-00002.parquet",
    miniatures.saved_to_disk: "train/data-00000-of-00001.arrow",
    miniatures.camelyon17: "camelyon17_v1.0/metadata.csv",
    miniatures.celeba: "list_attr_celeba.txt",
    miniatures.emnist_letters: "emnist-letters-mapping.txt",
}


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_damage_is_told_or_costs_records(make: object, data: st.DataObject, tmp_path: Path) -> None:
    assert callable(make)
    root = tmp_path / "set"
    if not root.exists():  # hypothesis calls this many times with one folder
        make(tmp_path / "original")
        shutil.copytree(tmp_path / "original", root)
    damaged = bytearray((tmp_path / "original" / FILES[make]).read_bytes())
    start, end = data.draw(st.sampled_from([(0, 2000), (-2000, len(damaged)), (0, len(damaged))]))
    places = range(len(damaged))[start:end]
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(1, len(damaged))) :]
    (root / FILES[make]).write_bytes(damaged)
    try:
        source = open_source(root)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    for index in range(len(source)):
        with contextlib.suppress(Unreadable):
            assert source.image(index).mode in ("L", "LA", "RGB", "RGBA", "I;16")
