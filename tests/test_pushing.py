"""`push` uploads what `verify` accepts and nothing else; tried on a stand-in for the hub's client."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.pushing import push
from dpldm.releasing import release


@dataclass
class FakeHub:
    """Repositories in memory."""

    private: bool | None = None  # None: there is no repository yet
    uploaded: dict[str, bytes] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    unreachable: bool = False

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        if self.unreachable:
            raise ConnectionError("no route to host")
        self.kinds.add(repo_type)
        if self.private is None:
            self.private = private

    def repo_info(self, repo_id: str, *, repo_type: str) -> Any:
        return SimpleNamespace(private=self.private)

    def create_commit(self, repo_id: str, operations: Sequence[Any], *, commit_message: str, repo_type: str) -> None:
        for operation in operations:
            self.uploaded[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
        self.kinds.add(repo_type)


@pytest.fixture
def released(finished_copy: RunConfig) -> Path:
    return release(finished_copy, "both")


def test_a_release_is_uploaded_as_it_is_and_private(released: Path) -> None:
    hub = FakeHub()
    assert push(released, "owner/name", hub=hub) == "https://huggingface.co/owner/name"
    assert hub.private is True
    assert hub.kinds == {"model"}
    files = {p.relative_to(released).as_posix(): p.read_bytes() for p in released.rglob("*") if p.is_file()}
    assert hub.uploaded == files
    assert {"privacy.json", "README.md", "model/README.md"} <= files.keys()


def test_images_alone_are_a_dataset(finished_copy: RunConfig) -> None:
    hub = FakeHub()
    assert push(release(finished_copy), "owner/name", hub=hub).endswith("/datasets/owner/name")
    assert hub.kinds == {"dataset"}


def test_what_does_not_verify_is_not_uploaded(released: Path) -> None:
    hub = FakeHub()
    (released / "private-notes.txt").write_text("41 records")
    with pytest.raises(UserError, match=r"does not verify \(nothing undeclared: .*nothing was uploaded"):
        push(released, "owner/name", hub=hub)
    (released / "private-notes.txt").unlink()
    statement = json.loads((released / "privacy.json").read_text())
    statement["guarantee"]["epsilon"] = 0.01
    (released / "privacy.json").write_text(json.dumps(statement))
    with pytest.raises(UserError, match="does not verify"):
        push(released, "owner/name", hub=hub)
    assert hub.uploaded == {}
    assert hub.private is None, "not even a repository was made"


def test_a_public_repository_wants_to_be_named_as_such(released: Path) -> None:
    hub = FakeHub(private=False)
    with pytest.raises(UserError, match="is public: give --public if it should be"):
        push(released, "owner/name", hub=hub)
    assert hub.uploaded == {}
    push(released, "owner/name", public=True, hub=hub)
    assert hub.uploaded
    fresh = FakeHub()
    push(released, "owner/name", public=True, hub=fresh)
    assert fresh.private is False


def test_a_hub_that_cannot_be_reached_is_told_in_a_sentence(
    released: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"cannot be reached, or refuses owner/name \(ConnectionError\): check"):
        push(released, "owner/name", hub=FakeHub(unreachable=True))
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: FakeHub(unreachable=True))
    assert main(["push", str(released), "owner/name"]) == 2
    assert "hf auth login" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    assert main(["push", str(released), "owner/name"]) == 0
    assert "pushed: https://huggingface.co/owner/name" in capsys.readouterr().out
