"""Shares of public classes are those that the plan asks for, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpldm.scanning.kinds import KINDS, OWN, SHARES
from dpldm.scanning.shares import strange_shares

ASKED = {"queries": [{"kind": "public_class_histogram", "public_classes": 3}]}
GOOD = [[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]


def found(model: Path, content: Any, plan: dict[str, Any] = ASKED) -> str | None:
    if content is not None:
        (model / SHARES).write_text(content if type(content) is str else json.dumps(content))
    return strange_shares(model, {"plan": plan, "declared_constants": {"labels": ["dark", "light"]}})


def test_what_a_run_writes_is_accepted(tmp_path: Path) -> None:
    assert found(tmp_path, {"shares": GOOD}) is None
    assert found(tmp_path, {"shares": GOOD}, {"kind": "selection", "trial": ASKED}) is None


@pytest.mark.parametrize(
    "content",
    [
        None,
        "no JSON",
        GOOD,
        {},
        {"shares": GOOD[:1]},
        {"shares": [*GOOD, GOOD[0]]},
        {"shares": [GOOD[0], [0.0, 1.0]]},
        {"shares": [GOOD[0], [0.0, 0.5, 0.75]]},
        {"shares": [GOOD[0], [-0.5, 0.75, 0.75]]},
        {"shares": [GOOD[0], [0.0, float("nan"), 1.0]]},
        {"shares": [[2, 1, 0], [0, 1, 2]]},
        {"shares": [GOOD[0], "0.0"]},
        {"shares": {"dark": GOOD[0], "light": GOOD[1]}},
        {"shares": GOOD, "counts": [[6, 6, 0], [0, 3, 9]]},
        '{"shares": [[6]], "shares": [[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]}',
    ],
)
def test_anything_else_is_noticed(content: Any, tmp_path: Path) -> None:
    assert found(tmp_path, content) == f"{SHARES}, which holds no shares of 3 public classes in 2"


def test_without_the_question_there_are_none(tmp_path: Path) -> None:
    for plan in ({}, {"queries": [{"kind": "class_histogram"}]}):
        assert found(tmp_path / "nowhere", None, plan) is None
        assert found(tmp_path, {"shares": GOOD}, plan) == f"{SHARES}, which the plan does not ask for"


def test_only_beside_a_network_that_is_told_classes_by_a_token() -> None:
    assert OWN.may_hold(SHARES)
    assert [kind.may_hold(SHARES) for kind in KINDS].count(True) == 2  # of latents, and of pixels
