"""Replay finds nothing in the trainer as it is, and names what differs in one that is broken on purpose."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.errors import UserError
from dpldm.privacy import clipping, mechanism
from dpldm.privacy.ledger import Ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.train import algorithm_1 as lines
from dpldm.train import replay as replaying
from dpldm.train.replay import ADDED, IN_A_PASS, KINDS, Pair, replay
from dpldm.train.tuner import Tuner

Patch = pytest.MonkeyPatch

PLAN = PrivacyPlan(
    dataset_id="scans",
    run="tiny",
    epsilon=2.0,
    delta=1e-3,
    records=400,
    expected_batch_size=40,
    steps=4,
    reserve_steps=2,
    max_grad_norm=1e-3,
    draws_per_example=1,
    noise_multiplier=3.0,
)


@pytest.fixture
def config(raw: dict[str, Any]) -> RunConfig:
    raw["data"]["path"] = "there/is/nothing/here"
    raw["trainable"] = "condition"
    return RunConfig.model_validate(raw)


def wrong(pairs: Sequence[Pair]) -> set[tuple[str, str]]:
    return {(pair.kind, pair.relation) for pair in pairs if pair.violated}


def different(pairs: Sequence[Pair]) -> set[str]:
    return {name for pair in pairs for name in pair.different}


@pytest.mark.parametrize(
    "changes",
    [
        {"draws_per_example": 4},
        pytest.param({"clipping": "automatic"}, marks=pytest.mark.slow),
        {"unit": "group", "images_per_unit": 5},
        pytest.param({"max_grad_norm": 5.0}, marks=pytest.mark.slow),
        pytest.param({"expected_batch_size": 3}, marks=pytest.mark.slow),
        pytest.param({"max_batch_size": 500, "most_records": 500}, marks=pytest.mark.slow),
    ],
)
def test_neighbours_differ_by_C_at_most_and_in_nothing_else(config: RunConfig, changes: dict[str, Any]) -> None:
    pairs = replay(config, replace(PLAN, **changes))
    assert len(pairs) == 2 * len(KINDS) - 1
    assert wrong(pairs) == set()
    assert all(pair.distance <= 1e-4 for pair in pairs if pair.kind in ("not finite", "null"))
    ordinary = [pair.distance for pair in pairs if pair.kind == "ordinary"]
    assert max(ordinary) > (0.01 if "max_grad_norm" in changes else 0.08 if "clipping" in changes else 0.9), (
        "the unit is in every batch and counts"
    )


@pytest.mark.parametrize(
    ("trainable", "labels"), [("attention", ()), pytest.param("all", ("dark", "light"), marks=pytest.mark.slow)]
)
def test_other_trained_weights_and_a_run_without_classes(
    config: RunConfig, trainable: str, labels: tuple[str, ...]
) -> None:
    data = config.data.model_copy(update={"labels": labels})
    assert wrong(replay(config.model_copy(update={"data": data, "trainable": trainable}), PLAN)) == set()


@pytest.mark.slow
@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("unit", ["image", "group"])
def test_hundreds_of_pairs(config: RunConfig, draws: int, unit: str) -> None:
    plan = replace(PLAN, draws_per_example=draws, unit=unit, images_per_unit=1 if unit == "image" else 3)
    assert wrong([pair for seed in range(10) for pair in replay(config, plan, seed)]) == set()


def test_nothing_is_left_behind_and_no_account_is_touched(
    config: RunConfig, account: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    before = sorted(tmp_path.rglob("*"))
    replay_of(monkeypatch, config)
    assert sorted(tmp_path.rglob("*")) == before
    assert list(account.rglob("*")) == []


def test_a_backbone_that_does_not_fit_is_the_users_mistake(config: RunConfig) -> None:
    large = config.model_copy(update={"data": config.data.model_copy(update={"image_size": 64})})
    with pytest.raises(UserError, match="takes 13 to 16 pixels"):
        replay(large, PLAN)


# --- defects -----------------------------------------------------------------------------------------------------


def replay_of(monkeypatch: Patch, config: RunConfig, *kinds: str, plan: PrivacyPlan = PLAN) -> list[Pair]:
    """Only neighbours of these kinds, and null ones: a defect need not be seen in all of them."""
    monkeypatch.setattr(replaying, "KINDS", (*kinds, "null"))
    return replay(config, plan)


def test_clipping_that_is_off_is_caught(config: RunConfig, monkeypatch: Patch) -> None:
    monkeypatch.setitem(clipping.RULES, "flat", lambda norms, clip_norm: torch.ones_like(norms))
    assert {("ordinary", ADDED), ("ordinary", IN_A_PASS)} <= wrong(replay_of(monkeypatch, config, "ordinary"))


def test_a_unit_that_must_not_count_is_caught(config: RunConfig, monkeypatch: Patch) -> None:
    accumulate = mechanism.PrivateGradient.accumulate

    def regardless(self: mechanism.PrivateGradient, losses: Tensor, keep: Tensor, images: int = 1) -> None:
        accumulate(self, losses, torch.ones_like(keep), images)

    records_of = PrivateLatents.records_of

    def usable(self: PrivateLatents, units: Tensor) -> tuple[Tensor, Tensor]:
        return records_of(replace(self, usable=torch.ones_like(self.usable)), units)

    monkeypatch.setattr(mechanism.PrivateGradient, "accumulate", regardless)
    monkeypatch.setattr(PrivateLatents, "records_of", usable)
    assert ("null", ADDED) in wrong(replay_of(monkeypatch, config))


def test_a_divisor_that_follows_the_batch_is_caught(config: RunConfig, monkeypatch: Patch) -> None:
    draw, release = mechanism.PrivateGradient.draw, mechanism.PrivateGradient.release
    size = 0

    def drawn(self: mechanism.PrivateGradient) -> Tensor:
        nonlocal size
        batch = draw(self)
        size = len(batch)
        return batch

    monkeypatch.setattr(mechanism.PrivateGradient, "draw", drawn)
    monkeypatch.setattr(
        mechanism.PrivateGradient, "release", lambda self: {n: g * 40 / size for n, g in release(self).items()}
    )
    assert ("null", ADDED) in wrong(replay_of(monkeypatch, config))


def test_examples_that_meet_in_a_pass_are_caught(config: RunConfig, monkeypatch: Patch) -> None:
    losses = lines.example_losses

    def normalised(*given: Any) -> Tensor:
        found = losses(*given)
        return found * found.detach().nan_to_num().mean() * 1e3

    monkeypatch.setattr(lines, "example_losses", normalised)
    monkeypatch.setattr(replaying, "require_examples_apart", lambda *_: None)  # which refuses it at once
    loose = replace(PLAN, max_grad_norm=1e4)
    assert ("huge", IN_A_PASS) in wrong(replay_of(monkeypatch, config, "huge", plan=loose))


def extra_file(updates: int, latents: PrivateLatents, run: Any, ledger: Ledger, plan: PrivacyPlan) -> None:
    if not bool(latents.posterior.mean.isfinite().all()):
        (run.private / "unusable.txt").touch()


def extra_line(updates: int, latents: PrivateLatents, run: Any, ledger: Ledger, plan: PrivacyPlan) -> None:
    if latents.units > 8 and updates == 1:
        ledger.charge(plan)


def crash(updates: int, latents: PrivateLatents, run: Any, ledger: Ledger, plan: PrivacyPlan) -> None:
    if float(latents.posterior.mean.nan_to_num().abs().max()) > 1e5:
        raise FloatingPointError


@pytest.mark.parametrize(
    ("leak", "kind", "seen"),
    [
        (extra_file, "not finite", {"files"}),
        (extra_line, "null", {"files", "shown"}),
        (crash, "huge", {"end"}),
    ],
)
def test_what_else_depends_on_a_unit_is_named(
    config: RunConfig, monkeypatch: Patch, leak: Callable[..., None], kind: str, seen: set[str]
) -> None:
    algorithm = replaying.algorithm_1

    def leaking(
        tuner: Any, scheduler: Any, latents: PrivateLatents, plan: PrivacyPlan, ledger: Ledger, run: Any, entropy: Any
    ) -> Iterator[Any]:
        for step in algorithm(tuner, scheduler, latents, plan, ledger, run, entropy):
            leak(step.number, latents, run, ledger, plan)
            yield step

    monkeypatch.setattr(replaying, "algorithm_1", leaking)
    pairs = replay_of(monkeypatch, config, *({kind} - {"null"}))
    assert seen <= different(pair for pair in pairs if pair.kind == kind and pair.relation == ADDED)


def test_a_learning_rate_that_follows_the_records_is_named(config: RunConfig, monkeypatch: Patch) -> None:
    update = Tuner.update
    count = 0
    algorithm = replaying.algorithm_1

    def counted(*given: Any) -> Iterator[Any]:
        nonlocal count
        count = given[2].units
        yield from algorithm(*given)

    def scaled(self: Tuner, gradient: Any) -> None:
        update(self, gradient)
        self.optimizer.param_groups[0]["lr"] /= count

    monkeypatch.setattr(replaying, "algorithm_1", counted)
    monkeypatch.setattr(Tuner, "update", scaled)
    assert different(replay_of(monkeypatch, config)) >= {"learning_rates"}


def test_a_trainer_that_fails_on_every_set_is_no_pass(config: RunConfig, monkeypatch: Patch) -> None:
    def broken(*_: Any) -> Iterator[Any]:
        raise RuntimeError
        yield

    monkeypatch.setattr(replaying, "algorithm_1", broken)
    assert all(pair.violated for pair in replay_of(monkeypatch, config, "ordinary"))
