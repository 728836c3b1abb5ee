"""SIGKILL of a run: attempts stay charged, noise is never used twice, the target is never passed, work goes on.

A child is forked after the imports and with the backbone loaded, so that a start costs little. Through a pipe it
reports a hash of every noise it drew. Only this test does that: the product keeps neither noise nor a hash of it.
"""

import copy
import hashlib
import multiprocessing
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.models.backbone import load_backbone
from dpldm.privacy import mechanism
from dpldm.privacy.entropy import Entropy
from dpldm.privacy.ledger import read_ledger
from dpldm.privacy.noise import add_gaussian
from dpldm.run import Run, plan_of
from dpldm.train import finetune as stage
from dpldm.train.checkpoint import load_checkpoint
from dpldm.train.finetune import finetune
from dpldm.train.shown import FinetuneStep
from killing import die_in_call
from tiny_runs import tiny_settings

KILLS = 30
TUNED = 2
"""Tensors of the embedder, the only ones tuned here: each release draws that many noises."""

fork = multiprocessing.get_context("fork")
ConfigMaker = Callable[..., RunConfig]


@pytest.fixture
def config_of(tmp_path: Path, tiny_backbone: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigMaker:
    loaded = load_backbone(str(tiny_backbone))
    monkeypatch.setattr(stage, "load_backbone", lambda *given: copy.deepcopy(loaded))

    def make(steps: int, reserve: int, output: str = "runs") -> RunConfig:
        settings = tiny_settings(tmp_path, tiny_backbone, image_folder)
        settings["privacy"] |= {"epsilon": 1.0, "expected_batch_size": 2, "steps": steps, "reserve_steps": reserve}
        settings["privacy"] |= {"ledger": tmp_path / output / "ledgers" / "scans.jsonl"}
        settings["runtime"] |= {"output": tmp_path / output}
        return RunConfig.model_validate(settings | {"trainable": "condition"})

    return make


def reported_run(config: RunConfig, pipe: Connection, fatal_call: int | None) -> None:
    """The child: a whole run that reports its noises (bytes) and its steps."""

    def reporting(total: Tensor, standard_deviation: float, entropy: Entropy) -> Tensor:
        noised = add_gaussian(total, standard_deviation, entropy)
        noise = noised.double() - total.double()
        pipe.send(hashlib.sha256(noise.numpy().tobytes()).digest())
        return noised

    mechanism.add_gaussian = reporting
    if fatal_call is not None:
        die_in_call(fatal_call)
    for step in finetune(config):
        pipe.send(step)


class Life:
    """One child, from its start to its death."""

    def __init__(self, config: RunConfig, fatal_call: int | None = None) -> None:
        self._pipe, theirs = fork.Pipe(duplex=False)
        self._process = fork.Process(target=reported_run, args=(config, theirs, fatal_call))
        self._process.start()
        theirs.close()
        self.noises: list[bytes] = []
        self.steps: list[FinetuneStep] = []

    def watch(self, seconds: float, until_noise: bool = False) -> None:
        """Take reports for `seconds`, or until the first noise, or until the child is gone."""
        end = time.monotonic() + seconds
        while not (until_noise and self.noises) and self._pipe.poll(max(0.0, end - time.monotonic())):
            try:
                report = self._pipe.recv()
            except EOFError:
                return
            (self.noises if isinstance(report, bytes) else self.steps).append(report)

    def kill(self) -> None:
        self._process.kill()
        self.end()

    def end(self) -> int | None:
        """Wait for the end, take what is left in the pipe; the exit code."""
        self.watch(300.0)
        self._process.join()
        self._pipe.close()
        return self._process.exitcode


def charged(run: Run) -> int:
    """Attempts on disk; a last line that the kill tore was never drawn."""
    if not run.ledger.exists():
        return 0
    repaired = run.ledger.with_suffix(".copy")
    repaired.write_bytes(run.ledger.read_bytes())
    return sum(entry["event"] == "attempt" for entry in read_ledger(repaired, repair=True))


def updated(run: Run) -> int:
    return int(load_checkpoint(run.checkpoint)[1]["updates"]) if run.checkpoint.exists() else 0


def killed_lives(config: RunConfig) -> Iterator[Life]:
    """`KILLS` children, one after the other, killed anywhere: in their start, or up to 30 ms after a noise."""
    chance = random.Random()
    for number in range(KILLS):
        life = Life(config)
        if number % 5 == 0:
            life.watch(chance.uniform(0.005, 0.1))
        else:
            life.watch(30.0, until_noise=True)
            life.watch(chance.uniform(0.0, 0.03))
        life.kill()
        yield life


def test_runs_killed_at_random_are_charged_and_come_to_an_end(config_of: ConfigMaker) -> None:
    config = config_of(steps=80, reserve=30)
    run, plan = Run(config), plan_of(config)
    for attempts in range(1, plan.attempts + 1):
        plan.epsilon_spent(attempts)  # accounted once here, inherited by every child
    noises: Counter[bytes] = Counter()
    surplus = progress = 0
    for life in killed_lives(config):
        noises.update(life.noises)
        attempts, updates = charged(run), updated(run)
        assert attempts * TUNED >= noises.total(), "more noise was drawn than was charged"
        assert updates >= progress, "an update was lost that had been on disk"
        assert 0 <= attempts - updates <= surplus + 1, "a kill costs at most the attempt under way"
        assert all(step.attempts <= attempts and step.number <= updates for step in life.steps)
        assert all(step.epsilon_spent <= plan.epsilon for step in life.steps)
        surplus, progress = attempts - updates, updates
    assert 0 < progress < 80, "kills came while the run was on its way"
    assert surplus > 0, "some kills hit an attempt"

    last = Life(config)
    assert last.end() == 0
    noises.update(last.noises)
    final = last.steps[-1]
    assert final.attempts == charged(run) <= 110
    assert final.number == updated(run) == final.attempts - surplus, "without kills nothing is lost"
    assert final.number == 80 or (final.ended_early and final.attempts == 110)
    assert final.epsilon_spent <= plan.epsilon_after(110) <= plan.epsilon
    assert noises.total() >= TUNED * final.number
    assert set(noises.values()) == {1}, "a noise was used twice"


def test_a_kill_inside_any_call_that_writes_is_survived(config_of: ConfigMaker) -> None:
    """A copy of a run after one update, for every system call of the next: it dies in that call, and is run again."""
    template = config_of(steps=2, reserve=4)
    started = finetune(template)
    next(started)
    started.close()
    for call in range(1, 100):
        config = config_of(steps=2, reserve=4, output=f"runs-{call}")
        shutil.copytree(template.runtime.output, config.runtime.output)
        run, first = Run(config), Life(config, fatal_call=call)
        if first.end() == 0:
            break
        attempts, updates = charged(run), updated(run)
        assert updates in (1, 2)
        assert (attempts - updates) in (0, 1)
        assert len(first.noises) <= TUNED * (attempts - 1)
        second = Life(config)
        assert second.end() == 0, f"the run cannot go on after a kill in call {call}"
        assert updated(run) == 2
        assert charged(run) == 2 + attempts - updates
        assert len({*first.noises, *second.noises}) == len(first.noises) + len(second.noises)
        assert not any(step.ended_early for step in second.steps)
    assert 10 < call < 99, "a charge makes three calls, a checkpoint five, and the last run has none that is fatal"
    assert updated(run) == charged(run) == 2
