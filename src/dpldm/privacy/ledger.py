"""The ledger: an append-only, hash-chained record of every attempt on a data set, written before the attempt.

It belongs to a declared `dataset_id`, not to a run and not to a content hash: one image more must not reset the
budget. Each line is JSON with the sha256 of the line before it. A line is on disk before the Poisson draw it
pays for, so whatever a kill interrupts has been charged: charged >= released, always.

    {"seq": 0, "event": "created", "dataset_id": ..., "cap": ..., "prev": "", "hash": ...}
    {"seq": 1, "event": "plan", "plan": <digest>, "constants": {...}, ...}
    {"seq": 2, "event": "attempt", "plan": <digest>, "number": 1, ...}
    {"seq": 3, "event": "attempt", ...}
    {"seq": 4, "event": "query", "plan": <digest>, "query": "class_histogram", "number": 1, ...}

Budgets across plans are reserved in advance: a plan enters with its whole (epsilon, delta), and the sums must stay
within the cap that was declared when the ledger was created. Basic composition allows each plan to be chosen
after seeing what the earlier ones released (Rogers et al. 2016, arXiv 1605.08294, sec. 3).
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from dpldm.privacy.durable import replace_file
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import Question


class Budgeted(Protocol):
    """What a ledger reserves a budget for: a run's plan, or a selection among many trials."""

    @property
    def dataset_id(self) -> str: ...

    @property
    def epsilon(self) -> float: ...

    @property
    def delta(self) -> float: ...

    @property
    def public_benchmark(self) -> bool: ...

    @property
    def attempts(self) -> int:
        """The most that will ever be charged."""
        ...

    def digest(self) -> str:
        """Identity: any change of a constant changes it."""
        ...

    def constants(self) -> dict[str, Any]:
        """JSON values, among them `run`, `epsilon` and `delta`."""
        ...


class Charging(Protocol):
    """What a mechanism needs of a ledger."""

    def charge(self, plan: PrivacyPlan) -> int:
        """See `Ledger.charge`."""
        ...


class LedgerError(Exception):
    """The ledger refuses: the text says why and what to do."""


class BudgetExhausted(Exception):
    """All attempts of the plan, or of a query, have been used. A normal end of a plan's attempts, not an error."""


@dataclass(frozen=True)
class Head:
    """Where a ledger stands: its last line's number and hash. Safe to publish; it fixes everything before it."""

    seq: int
    hash: str


class Ledger:
    """An open, locked ledger. Obtain one with `open_ledger`."""

    def __init__(self, path: Path, entries: list[dict[str, Any]]) -> None:
        self.path = path
        self._entries = entries
        self._size = sum(len(_encoded(entry)) for entry in entries)

    @property
    def head(self) -> Head:
        """The last line."""
        return Head(self._entries[-1]["seq"], self._entries[-1]["hash"])

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All lines, oldest first (a copy)."""
        return list(self._entries)

    def require_cap(self, declared: tuple[float, float] | None) -> None:
        """Refuse a declared cap that is not the one this ledger was created with; None declares nothing.

        Raises:
            LedgerError: they differ.
        """
        cap = self._entries[0]["cap"]
        if declared is not None and cap != list(declared):
            holds = f"epsilon {cap[0]:g}, delta {cap[1]:g}" if cap else "no cap"
            raise LedgerError(
                f"The ledger of {self._entries[0]['dataset_id']!r} was created with {holds}, which cannot be changed: "
                "remove privacy.cap, or set it to that."
            )

    def attempts(self, plan: Budgeted) -> int:
        """Attempts charged to this plan so far."""
        digest = plan.digest()
        return sum(e["event"] == "attempt" and e["plan"] == digest for e in self._entries)

    def holds(self, plan: Budgeted) -> bool:
        """Whether the plan is registered."""
        digest = plan.digest()
        return any(entry["event"] == "plan" and entry["plan"] == digest for entry in self._entries)

    def query_attempts(self, plan: PrivacyPlan, question: Question) -> int:
        """How often this plan's question has been asked so far."""
        digest = plan.digest()
        return sum(e["event"] == "query" and (e["plan"], e["query"]) == (digest, question.kind) for e in self._entries)

    def register(self, plan: Budgeted) -> None:
        """Reserve the plan's whole budget, once; registering it again changes nothing.

        Raises:
            LedgerError: the cap of this data set would be exceeded, the plan is for another data set, or it is no
                public benchmark and the ledger, created for one, has no cap.
        """
        digest, created = plan.digest(), self._entries[0]
        if plan.dataset_id != created["dataset_id"]:
            raise LedgerError(f"This ledger belongs to {created['dataset_id']!r}, not to {plan.dataset_id!r}.")
        if self.holds(plan):
            return
        plans = [e for e in self._entries if e["event"] == "plan"]
        cap = created["cap"]
        if cap is None and not plan.public_benchmark:
            raise LedgerError(
                f"The ledger of {plan.dataset_id!r} was created for a public benchmark and has no cap: declare "
                "privacy.public_benchmark again, or give images that are not published a dataset_id of their own."
            )
        if cap is not None:
            spent = [sum(e["constants"][key] for e in plans) for key in ("epsilon", "delta")]
            # The slack forgives the rounding of decimal sums (0.1 + 0.2), nothing more.
            totals = (spent[0] + plan.epsilon, spent[1] + plan.delta)
            if not all(total <= limit * (1 + 1e-9) for total, limit in zip(totals, cap, strict=True)):
                raise LedgerError(
                    f"The data set {plan.dataset_id!r} has a cap of epsilon {cap[0]:g}, delta {cap[1]:g}, of which "
                    f"{spent[0]:g} and {spent[1]:g} are reserved by earlier plans: this plan's {plan.epsilon:g} and "
                    f"{plan.delta:g} do not fit. Resume the earlier run, or lower privacy.epsilon and privacy.delta; "
                    "the cap was fixed when the ledger was created, and stays."
                )
        self._append({"event": "plan", "plan": digest, "constants": plan.constants()})

    def charge(self, plan: Budgeted) -> int:
        """Write the line of the next attempt, flushed to disk, and return its number (1, 2, ...).

        Raises:
            BudgetExhausted: T + R attempts have been charged.
            LedgerError: the plan was never registered.
        """
        return self._charge(plan, "attempt", {}, self.attempts(plan), plan.attempts)

    def charge_query(self, plan: PrivacyPlan, question: Question) -> int:
        """Write the line of the next attempt at a question, flushed to disk, and return its number (1, 2, ...).

        Raises:
            BudgetExhausted: all attempts at this question have been charged.
            LedgerError: the plan was never registered, or does not hold this question.
        """
        if question not in plan.queries:
            raise LedgerError(f"The plan does not hold this question ({question.kind}).")
        asked = self.query_attempts(plan, question)
        return self._charge(plan, "query", {"query": question.kind}, asked, question.attempts)

    def _charge(self, plan: Budgeted, event: str, of: dict[str, str], used: int, paid_for: int) -> int:
        if not self.holds(plan):
            raise LedgerError("The plan has not been registered with this ledger.")
        if used >= paid_for:
            raise BudgetExhausted
        self._append({"event": event, "plan": plan.digest(), **of, "number": used + 1})
        return used + 1

    def contains(self, head: Head) -> bool:
        """Whether this ledger is a continuation of the one that had that head."""
        return head.seq < len(self._entries) and bool(self._entries[head.seq]["hash"] == head.hash)

    def _append(self, entry: dict[str, Any]) -> None:
        line = _sealed(entry, len(self._entries), self._entries[-1]["hash"] if self._entries else "")
        payload = _encoded(line)
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                if os.fstat(descriptor).st_size != self._size:
                    raise LedgerError(f"The ledger {self.path.name} was changed by something else: run again.")
                complete = os.write(descriptor, payload) == len(payload)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            complete = False
        if not complete:
            raise _unwritable(self.path)
        self._entries.append(line)
        self._size += len(payload)


def _create(path: Path, dataset_id: str, cap: tuple[float, float] | None) -> None:
    """The first line, on disk whole or not at all: a ledger that exists and has no first line was damaged."""
    line = _sealed({"event": "created", "dataset_id": dataset_id, "cap": list(cap) if cap else None}, 0, "")
    try:
        replace_file(path, _encoded(line))
    except OSError:
        raise _unwritable(path) from None


def _unwritable(path: Path) -> LedgerError:
    return LedgerError(
        f"The ledger {path.name} could not be written: free space on its disk or make it writable, then run again."
    )


def _sealed(entry: dict[str, Any], seq: int, previous: str) -> dict[str, Any]:
    body = {"seq": seq, **entry, "prev": previous}
    return {**body, "hash": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}


def _encoded(line: dict[str, Any]) -> bytes:
    return (json.dumps(line) + "\n").encode()


@contextmanager
def open_ledger(
    path: Path,
    dataset_id: str,
    cap_if_new: tuple[float, float] | None,
    *,
    declared_cap: tuple[float, float] | None = None,
) -> Iterator[Ledger]:
    """Open the ledger of a data set and hold its lock; create it if there is none.

    A torn last line, which a power cut can leave, is an attempt that was never drawn: it is cut off.

    Args:
        cap_if_new: total (epsilon, delta) of all plans ever, written into a new ledger; None means no cap.
            Positive and finite.
        declared_cap: the cap that the caller believes to hold. A ledger that was created with another is refused.

    Raises:
        LedgerError: another process holds it, its folder cannot be written, it was damaged, it belongs to another
            data set, or it has another cap than the declared one.
    """
    path = path.resolve()  # one file, one lock, by whatever links it is reached
    lock = FileLock(str(path) + ".lock", mode=0o600)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire(timeout=0)
    except Timeout:
        raise LedgerError(f"Another process uses the ledger {path.name}: wait for it to end.") from None
    except OSError as error:
        raise LedgerError(
            f"The folder of the ledger {path.name} cannot be written ({error.strerror}): make it writable, or set "
            "privacy.ledger to a place that is."
        ) from None
    try:
        if not path.exists():
            _create(path, dataset_id, cap_if_new)
        entries = read_ledger(path, repair=True)
        ledger = Ledger(path, entries)
        if entries[0]["dataset_id"] != dataset_id:
            raise LedgerError(f"The ledger {path.name} belongs to {entries[0]['dataset_id']!r}, not {dataset_id!r}.")
        ledger.require_cap(declared_cap)
        yield ledger
    finally:
        lock.release()


def read_ledger(path: Path, *, repair: bool = False) -> list[dict[str, Any]]:
    """All lines of a ledger file after checking every hash.

    Args:
        repair: cut off a last line without its newline. Nothing else is ever repaired.

    Raises:
        LedgerError: a line was changed, removed, reordered, or is no JSON.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(
            f"The ledger {path.name} cannot be read ({error.strerror}): restore it from a copy."
        ) from None
    whole, torn = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
    if not whole:
        raise LedgerError(f"The ledger {path.name} is empty or cut in its first line: restore it from a copy.")
    if torn and not repair:
        raise LedgerError(
            f"The last line of the ledger {path.name} is torn: run `dpldm finetune` again, it repairs it."
        )
    entries: list[dict[str, Any]] = []
    for number, text in enumerate(whole.split(b"\n")[:-1]):
        try:
            line = json.loads(text)
            body = {key: value for key, value in line.items() if key not in ("seq", "prev", "hash")}
        except (ValueError, AttributeError):
            raise LedgerError(f"Line {number + 1} of the ledger {path.name} cannot be read.") from None
        sealed = _sealed(body, number, entries[-1]["hash"] if entries else "")
        if _encoded(sealed) != text + b"\n":  # byte by byte, so that not even white space can differ
            raise LedgerError(
                f"Line {number + 1} of the ledger {path.name} does not follow from the lines before it: "
                "the file was changed. Restore it from a copy; the budget cannot be vouched for without it."
            )
        entries.append(sealed)
    if torn:
        with path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    return entries
