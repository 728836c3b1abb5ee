"""Pickles are read for their arrays and texts alone, and run nothing."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import miniatures
from dpldm.data.pickles import read_pickle
from dpldm.errors import UserError
from miniatures import put


class Runs:
    """A pickle that would leave a file behind."""

    def __init__(self, path: Path, function: str) -> None:
        self.call = (path, function)

    def __reduce__(self) -> tuple[Any, ...]:
        path, function = self.call
        if function == "os.mkdir":
            return os.mkdir, (str(path),)
        if function == "eval":
            return eval, (f"__import__('os').mkdir({str(path)!r})",)
        return subprocess.run, ([sys.executable, "-c", f"import os; os.mkdir({str(path)!r})"],)


@pytest.mark.parametrize("function", ["os.mkdir", "eval", "subprocess.run"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_something_does_not(function: str, protocol: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = put(tmp_path / "batch", pickle.dumps({"data": Runs(made, function)}, protocol))
    with pytest.raises(UserError, match="asks for code to be run"):
        read_pickle(path)
    assert not made.exists()
    pickle.loads(path.read_bytes())  # else the test would show nothing
    assert made.exists()


@pytest.mark.parametrize("name", ["numpy\nload", "numpy.core.multiarray\nscalar", "builtins\ngetattr", "pathlib\nPath"])
def test_other_harmless_names_are_refused_too(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="asks for code"):
        read_pickle(put(tmp_path / "batch", b"\x80\x02c" + name.encode() + b"\n."))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_arrays_and_texts_come_out_as_they_went_in(protocol: int, tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 12)
    entries = {"data": array, "labels": [3, 4], "names": ["a", "ü"], "mean": np.zeros(2), "note": "x", "empty": b""}
    found = read_pickle(put(tmp_path / "batch", pickle.dumps(entries, protocol)))
    assert found.texts == {"names": ["a", "ü"]}
    assert np.array_equal(found.arrays["data"], array)
    assert found.arrays["labels"].tolist() == [3, 4]
    assert set(found.arrays) == {"data", "labels"}


def test_python_2_wrote_the_batches_of_cifar(tmp_path: Path) -> None:
    """The miniature is what Python itself takes for the same pickle."""
    data = miniatures.python2_pickle({"labels": [1, 2], "data": miniatures.rows(range(2)), "filenames": ["a", "b"]})
    loaded = pickle.loads(data, encoding="bytes")
    found = read_pickle(put(tmp_path / "batch", data))
    assert np.array_equal(found.arrays["data"], loaded[b"data"])
    assert found.arrays["labels"].tolist() == loaded[b"labels"]
    assert found.texts == {"filenames": ["a", "b"]}
