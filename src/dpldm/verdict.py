"""What `verify` found: one `Check` for each thing it looked at, and what they amount to together."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Check:
    """One thing that was verified, or was not."""

    name: str
    passed: bool
    detail: str
    taints: bool = False  # a failure means: something is there that no guarantee covers
    done: bool = True  # False: it could not be looked at, which is neither good nor bad

    @property
    def sign(self) -> str:
        """How a line of output begins."""
        return f"{('ok' if self.passed else 'FAILED') if self.done else 'open':<6}"


class Verdict(Enum):
    """(exit code, sentence)."""

    VERIFIED = (0, "The release is what it says.")
    NOT_VERIFIED = (1, "NOT VERIFIED: do not rely on this release's guarantee.")
    TAINTED = (
        3,
        "NOT DIFFERENTIALLY PRIVATE: it holds something that no guarantee covers. Do not publish it, and do not rely "
        "on its guarantee.",
    )

    @property
    def exit_code(self) -> int:
        """0, 1 or 3; 2 is a mistake of the user's."""
        return self.value[0]

    @property
    def sentence(self) -> str:
        """For a person."""
        return self.value[1]


def verdict(checks: Sequence[Check]) -> Verdict:
    """The worst that any check says."""
    failed = [check for check in checks if not check.passed]
    if any(check.taints for check in failed):
        return Verdict.TAINTED
    return Verdict.NOT_VERIFIED if failed else Verdict.VERIFIED
