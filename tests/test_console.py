"""What a run says: lines in a log, a bar on a terminal."""

import argparse
import io
import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dpldm import console
from dpldm.console import add_manners, conclude, follow, following_stages, manners
from dpldm.progress import duration

Step = tuple[int, int, str]


def identity(step: Step) -> Step:
    return step


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(console.time, "monotonic", made)
    return made


def test_a_log_gets_a_line_at_the_start_now_and_then_and_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def steps() -> "list[Step]":
        for number in range(1, 101):
            clock.now += 3.0
            yield number, 100, f"epsilon {number}"

    assert follow(steps(), "finetune", identity) == (100, 100, "epsilon 100")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("finetune 1/100  epsilon 1")
    assert lines[-1] == "finetune 100/100  epsilon 100"
    numbers = [int(re.match(r"finetune (\d+)/", line).group(1)) for line in lines]
    assert numbers == [*range(1, 100, 7), 100], "21 s, the first multiple of a step's 3 s above 20"


def test_time_left_is_extrapolated_from_this_call_alone(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Resumed at 50 of 100: the 49 steps before took no time of ours."""

    def steps() -> "list[Step]":
        for number in range(50, 101):
            yield number, 100, ""
            clock.now += 30.0

    follow(steps(), "sample", identity)
    lines = capsys.readouterr().out.splitlines()
    assert "left" not in lines[0]
    assert lines[1].endswith(f", {duration(49 * 30)} left")
    assert lines[-1].strip() == "sample 100/100"


def test_time_left_starts_anew_with_the_next_stage(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def steps() -> Iterator[Step]:
        for seconds, note in ((1000.0, "slow"), (30.0, "fast")):
            for done in range(1, 101):
                yield done, 100, note
                clock.now += seconds

    follow(steps(), "pretrain", identity)
    fast = [line for line in capsys.readouterr().out.splitlines() if "fast" in line]
    assert fast[1].endswith(f", {duration(98 * 30)} left")


def test_nothing_to_do_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow([], "finetune", identity) is None
    assert capsys.readouterr().out == ""


def test_markup_in_a_note_stays_text(capsys: pytest.CaptureFixture[str]) -> None:
    follow([(1, 1, "x")], "sample", identity)
    assert capsys.readouterr().out == "sample 1/1  x\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=screen, force_terminal=True, width=100))
    last = follow([(n, 3, f"epsilon 0.{n}") for n in (1, 2, 3)], "finetune", identity)
    assert last == (3, 3, "epsilon 0.3")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "finetune" in text
    assert "3/3" in text
    assert "epsilon 0.3" in text


@given(st.floats(0, 1e7))
def test_durations_are_about_right(seconds: float) -> None:
    number, unit = duration(seconds).split()
    factor = {"s": 1, "min": 60, "h": 3600}[unit]
    assert abs(float(number) * factor - seconds) <= 0.51 * {"s": 1, "min": 60, "h": 360}[unit]


# --- how much is said -------------------------------------------------------------------------------------------------


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_manners(parser)
    return parser.parse_args(words)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    given = asked(*words)
    with manners(given):
        follow([(1, 2, "x"), (2, 2, "x")], "sample", identity)
        conclude(given, {"images": 2}, {"release": "runs/a/release", "INTERNAL": "runs/a/private"}, ["dpldm verify x"])
    return capsys.readouterr().out


def test_the_end_says_where_things_are_and_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in said(capsys).splitlines()]
    assert lines[-3:] == [
        ["release", "runs/a/release"],
        ["INTERNAL", "runs/a/private"],
        ["next", "dpldm", "verify", "x"],
    ]
    assert lines[0][:2] == ["sample", "1/2"]


def test_quiet_says_nothing_and_json_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--quiet") == ""
    assert json.loads(said(capsys, "--json")) == {
        "images": 2,
        "places": {"release": "runs/a/release", "internal": "runs/a/private"},
        "next": ["dpldm verify x"],
    }
    assert said(capsys) != "", "and the next command speaks again"


def test_manners_are_one_or_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        asked("--quiet", "--json")


def test_places_with_markup_or_controls_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    conclude(asked(), {}, {"release": "runs/[red]a[/red]\x1b[2J"}, [])
    assert "[red]a[/red]\\x1b[2J" in capsys.readouterr().out


def test_stages_are_named_and_shown_by_number_alone(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with following_stages("baseline", timed=False) as on_progress:
        for stage in ("tune", "draw"):
            for done in range(1, 101):
                clock.now += 100.0
                on_progress(stage, done, 100)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "baseline 1/100  tune"
    assert len(lines) == 2 * 21
    assert lines[21] == "baseline 1/100  draw"
    assert not any("left" in line for line in lines)


def test_a_bar_begins_anew_with_the_next_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=screen, force_terminal=True, width=100))
    follow([(1, 2, "a"), (2, 2, "a"), (1, 4, "b")], "pretrain", identity)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "1/4" in text
    assert "left" in text
