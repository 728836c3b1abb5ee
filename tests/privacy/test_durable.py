"""A file is replaced whole or not at all, and is on the disk before it has the name."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpldm.privacy.durable import replace_file, replacing


def test_the_new_file_is_on_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    ordinary = {name: getattr(os, name) for name in ("fsync", "replace")}

    def noting(name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            calls.append(name)
            if name == "replace":
                assert Path(arguments[0]).read_bytes() == b"new", "complete before the rename"
            ordinary[name](*arguments)

        return call

    for name in ordinary:
        monkeypatch.setattr(os, name, noting(name))
    replace_file(tmp_path / "c", b"new")
    assert calls == ["fsync", "replace", "fsync"], "content, rename, folder"


@pytest.mark.parametrize(("mode", "expected"), [({}, 0o600), ({"mode": 0o644}, 0o644)])
def test_rights_are_those_that_were_asked_for(tmp_path: Path, mode: dict[str, int], expected: int) -> None:
    before = os.umask(0)
    try:
        replace_file(tmp_path / "c", b"x", **mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == expected


def test_what_fails_while_it_is_written_leaves_the_old_file(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "c") as temporary:
            temporary.write_bytes(b"ne")
            raise ValueError("half-way")

    replace_file(tmp_path / "c", b"old")
    with pytest.raises(ValueError, match="half-way"):
        fail()
    assert (tmp_path / "c").read_bytes() == b"old"
    replace_file(tmp_path / "c", b"new")
    assert (tmp_path / "c").read_bytes() == b"new"
