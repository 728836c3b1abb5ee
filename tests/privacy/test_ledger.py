"""The ledger: charged before use, never under-charged, and every change to it seen."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpldm.privacy.ledger import BudgetExhausted, Head, Ledger, LedgerError, open_ledger, read_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import ClassHistogram

PLAN = PrivacyPlan(
    dataset_id="scans",
    run="first",
    epsilon=1.0,
    delta=1e-6,
    records=1000,
    expected_batch_size=100,
    steps=3,
    reserve_steps=2,
    max_grad_norm=0.5,
    draws_per_example=1,
    noise_multiplier=2.0,
)
CAP = (2.0, 1e-5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledgers" / "scans.jsonl"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with open_ledger(path, "scans", CAP) as opened:
        yield opened


@pytest.fixture
def small(path: Path) -> bytes:
    """The bytes of a finished ledger: created, plan, two attempts."""
    with open_ledger(path, "scans", CAP) as opened:
        opened.register(PLAN)
        opened.charge(PLAN)
        opened.charge(PLAN)
    return path.read_bytes()


# --- charging ------------------------------------------------------------------------------------------------


def test_attempts_are_numbered_up_to_steps_and_reserve_and_no_further(ledger: Ledger, path: Path) -> None:
    ledger.register(PLAN)
    assert [ledger.charge(PLAN) for _ in range(5)] == [1, 2, 3, 4, 5]
    for _ in range(2):
        with pytest.raises(BudgetExhausted):
            ledger.charge(PLAN)
    assert ledger.attempts(PLAN) == 5
    assert sum(entry["event"] == "attempt" for entry in read_ledger(path)) == 5


def test_opening_again_does_not_refill_a_plan(path: Path) -> None:
    for opening in range(5):
        with open_ledger(path, "scans", CAP) as ledger:
            ledger.register(PLAN)
            assert ledger.charge(PLAN) == opening + 1
    with open_ledger(path, "scans", CAP) as ledger, pytest.raises(BudgetExhausted):
        ledger.charge(PLAN)


def test_a_plan_that_was_not_registered_is_not_charged(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="registered"):
        ledger.charge(PLAN)
    ledger.register(PLAN)
    with pytest.raises(LedgerError, match="registered"):
        ledger.charge(replace(PLAN, noise_multiplier=1.9))
    assert ledger.attempts(PLAN) == 0


def test_a_charge_returns_after_its_line_was_flushed(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.register(PLAN)
    flushed: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        assert os.fstat(descriptor).st_ino == path.stat().st_ino
        real(descriptor)
        flushed.append(path.read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    ledger.charge(PLAN)
    assert flushed == [path.read_bytes()]
    assert json.loads(flushed[0].splitlines()[-1])["number"] == 1


@pytest.mark.parametrize("fault", ["no space", "half a line", "flush fails"])
def test_a_line_that_is_not_safely_on_disk_is_an_error_and_costs_nothing_less(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if fault == "no space":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with open_ledger(path, "scans", CAP) as ledger:
        ledger.register(PLAN)
        ledger.charge(PLAN)
        with monkeypatch.context() as patch:
            patch.setattr(os, *(("fsync", fsync) if fault == "flush fails" else ("write", write)))
            with pytest.raises(LedgerError, match="could not be written"):
                ledger.charge(PLAN)
    with open_ledger(path, "scans", CAP) as ledger:
        assert ledger.attempts(PLAN) == (2 if fault == "flush fails" else 1)
        ledger.charge(PLAN)
    read_ledger(path)


# --- budgets across plans ------------------------------------------------------------------------------------


def test_registering_twice_is_free(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.register(replace(PLAN, epsilon=2.0))
    assert [entry["event"] for entry in ledger.entries] == ["created", "plan"]


def test_another_run_with_the_same_constants_is_paid_for_again(ledger: Ledger) -> None:
    ledger.register(PLAN)
    ledger.register(replace(PLAN, run="second"))
    with pytest.raises(LedgerError, match="cap of epsilon 2"):
        ledger.register(replace(PLAN, run="third"))
    assert ledger.charge(PLAN) == ledger.charge(replace(PLAN, run="second")) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6))
def test_cap_bounds_the_sum_of_what_was_let_in(tmp_path_factory: pytest.TempPathFactory, wishes: list) -> None:
    """In tenths and millionths: an oracle of whole numbers, which does not round."""
    path = tmp_path_factory.mktemp("cap") / "scans.jsonl"
    left_epsilon, left_delta = 100, 100
    with open_ledger(path, "scans", (10.0, 1e-4)) as ledger:
        for number, (tenths, millionths) in enumerate(wishes):
            plan = replace(PLAN, run=str(number), epsilon=tenths / 10, delta=millionths / 1e6)
            if tenths <= left_epsilon and millionths <= left_delta:
                ledger.register(plan)
                left_epsilon, left_delta = left_epsilon - tenths, left_delta - millionths
            else:
                with pytest.raises(LedgerError, match="cap"):
                    ledger.register(plan)
        assert sum(entry["event"] == "plan" for entry in ledger.entries) <= len(wishes)


def test_another_plan_of_the_same_run_is_paid_for_beside_the_first(path: Path) -> None:
    """A constant that was changed makes another plan; the name of the run gives nothing back."""
    with open_ledger(path, "scans", (1.5, 1e-4)) as ledger:
        ledger.register(PLAN)
        with pytest.raises(LedgerError, match="cap"):
            ledger.register(replace(PLAN, steps=PLAN.steps + 1))
        ledger.register(replace(PLAN, steps=PLAN.steps + 1, epsilon=0.5))


def test_cap_is_the_one_the_ledger_was_created_with(path: Path) -> None:
    with open_ledger(path, "scans", (1.0, 1e-5)) as ledger:
        ledger.register(PLAN)
    for cap in [(100.0, 0.1), None]:
        with open_ledger(path, "scans", cap) as ledger, pytest.raises(LedgerError, match="cap of epsilon 1,"):
            ledger.register(replace(PLAN, run="second"))


@pytest.mark.parametrize(("created", "text"), [((1.0, 1e-5), "epsilon 1, delta 1e-05"), (None, "no cap")])
def test_a_declared_cap_that_does_not_hold_is_refused(
    path: Path, created: tuple[float, float] | None, text: str
) -> None:
    other = (100.0, 0.1)
    with open_ledger(path, "scans", created, declared_cap=created):
        pass
    with (
        pytest.raises(LedgerError, match=f"created with {text}"),
        open_ledger(path, "scans", other, declared_cap=other),
    ):
        pass
    with open_ledger(path, "scans", other, declared_cap=created) as ledger:
        assert len(ledger.entries) == 1


def test_a_folder_that_cannot_hold_a_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "ledgers" / "scans.jsonl"
    with pytest.raises(LedgerError, match=r"cannot be written.*privacy\.ledger"), open_ledger(place, "scans", CAP):
        pass


def test_public_benchmarks_have_no_cap_and_cannot_turn_private(path: Path) -> None:
    with open_ledger(path, "scans", None) as ledger:
        for number in range(20):
            ledger.register(replace(PLAN, run=str(number), epsilon=10.0, public_benchmark=True))
        with pytest.raises(LedgerError, match="public benchmark"):
            ledger.register(PLAN)
        assert ledger.charge(replace(PLAN, run="19", epsilon=10.0, public_benchmark=True)) == 1


def test_another_data_set_is_refused(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerError, match="belongs to 'scans'"):
        ledger.register(replace(PLAN, dataset_id="faces"))


def test_ledger_of_another_data_set_is_refused(path: Path, small: bytes) -> None:
    with pytest.raises(LedgerError, match="belongs to 'scans'"), open_ledger(path, "faces", CAP):
        pass
    assert path.read_bytes() == small


# --- one process at a time -----------------------------------------------------------------------------------


def test_two_cannot_hold_a_ledger(path: Path) -> None:
    with open_ledger(path, "scans", CAP) as ledger:
        with pytest.raises(LedgerError, match="Another process"), open_ledger(path, "scans", CAP):
            pass
        ledger.register(PLAN)
    with open_ledger(path, "scans", CAP) as ledger:
        assert ledger.charge(PLAN) == 1


def test_lock_is_free_again_after_an_error(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_ledger(path, "scans", CAP):
        raise ZeroDivisionError
    with open_ledger(path, "scans", CAP):
        pass


def test_only_the_owner_can_read_it(path: Path, small: bytes) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# --- the chain -----------------------------------------------------------------------------------------------


def test_lines_are_chained_by_the_documented_hash(path: Path, small: bytes) -> None:
    """Checked without the code under test: sha256 of the sorted JSON of everything but the hash."""
    lines = [json.loads(line) for line in small.splitlines()]
    assert [line["event"] for line in lines] == ["created", "plan", "attempt", "attempt"]
    for number, line in enumerate(lines):
        body = {key: value for key, value in line.items() if key != "hash"}
        assert line["seq"] == number
        assert line["hash"] == hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    assert [line["prev"] for line in lines] == ["", *(line["hash"] for line in lines[:-1])]
    assert lines[1]["constants"] == PLAN.constants()
    assert read_ledger(path) == lines


def test_every_changed_byte_is_seen(path: Path, small: bytes) -> None:
    """Every byte, to its neighbour and to everything that JSON may take for the same."""
    complete = read_ledger(path)
    with path.open("r+b", buffering=0) as file:
        for offset, byte in enumerate(small[:-1]):
            for other in {byte ^ 1, *b" \t\r\n"} - {byte}:
                os.pwrite(file.fileno(), bytes([other]), offset)
                with pytest.raises(LedgerError):
                    read_ledger(path, repair=True)
            os.pwrite(file.fileno(), bytes([byte]), offset)
    assert read_ledger(path) == complete


def test_a_changed_last_newline_is_a_torn_line_and_seen_by_the_head(path: Path, small: bytes) -> None:
    """What remains cannot be told from a torn line, so the attempt goes; a checkpoint that counts on it knows."""
    complete = read_ledger(path)
    path.write_bytes(small[:-1] + b" ")
    with pytest.raises(LedgerError, match="torn"):
        read_ledger(path)
    assert read_ledger(path, repair=True) == complete[:-1]
    assert not Ledger(path, read_ledger(path)).contains(Head(3, complete[3]["hash"]))


def test_every_truncation_is_repaired_to_whole_lines_and_seen_by_the_head(
    path: Path, small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a thousand repairs need no disk
    complete = read_ledger(path)
    ends = [offset + 1 for offset, byte in enumerate(small) if byte == 0x0A]
    head = Head(complete[-1]["seq"], complete[-1]["hash"])
    for length in range(len(small)):
        path.unlink()
        path.write_bytes(small[:length])
        whole = [end for end in ends if end <= length]
        if not whole:
            with pytest.raises(LedgerError, match="empty or cut in its first line"):
                read_ledger(path, repair=True)
            assert path.read_bytes() == small[:length], "no fresh budget"
            continue
        if length not in ends:
            with pytest.raises(LedgerError, match="torn"):
                read_ledger(path)
            assert path.read_bytes() == small[:length], "reading changes nothing"
        entries = read_ledger(path, repair=True)
        assert entries == complete[: len(whole)]
        assert path.read_bytes() == small[: whole[-1]]
        assert not Ledger(path, entries).contains(head)


@pytest.mark.parametrize("kept", [0, 40])
def test_an_emptied_ledger_is_no_new_budget(path: Path, small: bytes, kept: int) -> None:
    path.write_bytes(small[:kept])
    with pytest.raises(LedgerError, match="restore it from a copy"), open_ledger(path, "scans", CAP):
        pass
    assert path.read_bytes() == small[:kept]


def test_a_birth_that_was_interrupted_leaves_no_ledger(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line comes whole, by renaming: nothing half-born can be taken for a ledger."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt), open_ledger(path, "scans", CAP):
            pass
    assert not path.exists()
    with open_ledger(path, "scans", CAP) as ledger:
        assert [entry["event"] for entry in ledger.entries] == ["created"]


def test_a_link_does_not_open_a_ledger_twice(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    with open_ledger(path, "scans", CAP):
        link.symlink_to(path)
        with pytest.raises(LedgerError, match="Another process"), open_ledger(link, "scans", CAP):
            pass


def test_lines_of_somebody_else_stop_the_charging(path: Path) -> None:
    """Whatever gets round the lock (a bind mount, a network share) is seen before the next draw."""
    with open_ledger(path, "scans", CAP) as ledger:
        ledger.register(PLAN)
        ledger.charge(PLAN)
        before = path.read_bytes()
        path.write_bytes(before + b"{}\n")
        with pytest.raises(LedgerError, match="changed by something else"):
            ledger.charge(PLAN)
        path.write_bytes(before)
        assert ledger.charge(PLAN) == 2


@pytest.mark.parametrize("limit", [float("nan"), -1.0])
def test_a_cap_that_is_no_number_lets_nothing_in(path: Path, limit: float) -> None:
    with open_ledger(path, "scans", (limit, limit)) as ledger, pytest.raises(LedgerError, match="do not fit"):
        ledger.register(PLAN)


def test_a_torn_attempt_is_cut_and_its_number_used_again(path: Path, small: bytes) -> None:
    path.write_bytes(small[:-20])
    with open_ledger(path, "scans", CAP) as ledger:
        assert ledger.attempts(PLAN) == 1
        assert ledger.charge(PLAN) == 2
    assert path.read_bytes() == small, "the line that was torn, written again"


def test_lines_removed_doubled_or_swapped_are_seen(path: Path, small: bytes) -> None:
    lines = small.splitlines(keepends=True)
    wrong = [lines[:k] + lines[k + 1 :] for k in range(len(lines) - 1)]
    wrong += [[*lines[: k + 1], *lines[k:]] for k in range(len(lines))]
    wrong += [[*lines[:k], second, first, *lines[k + 2 :]] for k, (first, second) in enumerate(pairwise(lines))]
    wrong += [[*lines, end] for end in (b"\n", b"[]\n", b"7\n", b"null\n", b"{}\n", b"\xff\n")]
    for damaged in wrong:
        path.write_bytes(b"".join(damaged))
        with pytest.raises(LedgerError, match="Line"):
            read_ledger(path, repair=True)


def test_damage_is_refused_on_opening_and_left_as_it_is(path: Path, small: bytes) -> None:
    damaged = small.replace(b'"epsilon": 1.0', b'"epsilon": 0.1')
    path.write_bytes(damaged)
    with pytest.raises(LedgerError, match="Restore it from a copy"), open_ledger(path, "scans", CAP):
        pass
    assert path.read_bytes() == damaged


def test_head_tells_continuations_from_forks_and_cuts(path: Path, small: bytes) -> None:
    with open_ledger(path, "scans", CAP) as ledger:
        heads = [Head(entry["seq"], entry["hash"]) for entry in ledger.entries]
        assert ledger.head == heads[-1]
        ledger.charge(PLAN)
        assert all(ledger.contains(head) for head in heads)
    fork = b"".join(small.splitlines(keepends=True)[:3])
    path.write_bytes(fork)  # the last attempt is forgotten ...
    with open_ledger(path, "scans", CAP) as ledger:
        assert not ledger.contains(heads[3])
        ledger.register(replace(PLAN, run="second"))  # ... and something else takes its place
        ledger.charge(PLAN)
        assert ledger.head.seq > heads[3].seq
        assert not ledger.contains(heads[3])
        assert all(ledger.contains(head) for head in heads[:3])


# --- questions ----------------------------------------------------------------------------------------------------


def test_questions_and_attempts_are_counted_apart(ledger: Ledger, path: Path) -> None:
    question = ClassHistogram(noise_multiplier=20.0, reserve=1)
    plan, other = replace(PLAN, queries=(question,)), replace(PLAN, run="second", epsilon=0.5, queries=(question,))
    ledger.register(plan)
    ledger.register(other)
    assert ledger.charge(plan) == 1
    assert [ledger.charge_query(plan, question) for _ in range(2)] == [1, 2]
    with pytest.raises(BudgetExhausted):
        ledger.charge_query(plan, question)
    assert ledger.charge(plan) == 2
    assert ledger.charge_query(other, question) == 1, "another plan pays for questions of its own"
    again = Ledger(path, read_ledger(path))
    assert [again.attempts(plan), again.query_attempts(plan, question)] == [2, 2]
    assert [again.attempts(other), again.query_attempts(other, question)] == [0, 1]
