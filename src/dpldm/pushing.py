"""`push`: a verified release to a repository of the Hugging Face hub, private unless asked otherwise.

What is uploaded is what `verify` has just accepted, file by file: nothing is taken from a folder because it lies there.
The repository holds the release as it is, so who downloads it can verify it again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from dpldm.errors import UserError
from dpldm.verdict import Verdict, verdict
from dpldm.verifying import read_statement, verify


class Hub(Protocol):
    """What is needed of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> Any:
        """Make a repository if there is none."""

    def repo_info(self, repo_id: str, *, repo_type: str) -> Any:
        """Facts of a repository, `private` among them."""

    def create_commit(self, repo_id: str, operations: Sequence[Any], *, commit_message: str, repo_type: str) -> Any:
        """Upload files, all or none."""


def push(release: Path, repository: str, *, public: bool = False, hub: Hub | None = None) -> str:
    """Upload a release and return the address of its repository.

    Args:
        release: directory that `dpldm release` made.
        repository: OWNER/NAME; made if it does not exist, as a dataset if the release holds no model.
        public: let everyone see it.
        hub: the hub's client; by default that of huggingface_hub with the account's login.

    Raises:
        UserError: the release does not verify, the repository is public and that was not asked for, or the hub cannot
            be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    files = verified_files(release)
    kind = "model" if any(name.startswith("model/") for name in files) else "dataset"
    hub = hub or HfApi()
    try:
        hub.create_repo(repository, repo_type=kind, private=not public, exist_ok=True)
        if not public and not hub.repo_info(repository, repo_type=kind).private:
            raise UserError(f"The repository {repository} is public: give --public if it should be, or another name.")
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=release / name) for name in files]
        hub.create_commit(repository, operations, commit_message="Differentially private release", repo_type=kind)
    except UserError:
        raise
    except Exception as error:  # its client's exceptions come from other packages, and differ between versions
        raise UserError(
            f"The Hugging Face hub cannot be reached, or refuses {repository} ({type(error).__name__}): check the "
            "network and the name, and log in with `hf auth login`."
        ) from error
    return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"


def verified_files(release: Path) -> list[str]:
    """The files of a release that passes every check, by their names in it.

    Raises:
        UserError: it does not pass.
    """
    checks = verify(release)
    if verdict(checks) is not Verdict.VERIFIED:
        failed = next(check for check in checks if not check.passed)
        raise UserError(
            f"{release} does not verify ({failed.name}: {failed.detail}): nothing was uploaded, see `dpldm verify`."
        )
    return sorted([*read_statement(release)["files"], "privacy.json"])
