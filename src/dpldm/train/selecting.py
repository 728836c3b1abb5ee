"""Selection: a secret number of trials of Algorithm 1, learning rates drawn at random, the best by a noised score kept.

Papernot and Steinke 2022 (arXiv 2110.03620, theorem 2; docs/privacy.md, Selection). The data set's ledger gets a
line before the first trial and one after the last: once it has both, no trial can follow, so that a copy of the folder
from before gives no second result. What a trial's crashes cost is counted in a ledger of its own, inside, which goes
with it. Nobody outside may learn how many trials there are: nothing is shown between the first and the last, and no
name or text follows from their number.

    private/selection/  trials.json  the drawn trials and how far they are, on disk before the line that pays for them
                        XXXXXXXX/    a folder for the best trial so far, one for the current; others are deleted
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.privacy.durable import replace_file
from dpldm.privacy.entropy import Entropy, SystemEntropy
from dpldm.privacy.ledger import BudgetExhausted, Head, Ledger, LedgerError, open_ledger
from dpldm.privacy.queries import score_sums
from dpldm.privacy.sampling import draw_trials
from dpldm.privacy.selection import SelectionPlan
from dpldm.run import Run, ledger_cap, paid_plan, require_same_backbone
from dpldm.train.algorithm_1 import algorithm_1
from dpldm.train.asking import ask_once, places_of
from dpldm.train.checkpoint import load_checkpoint, save_checkpoint
from dpldm.train.example_losses import example_losses, fresh_draws
from dpldm.train.finetune import prepared
from dpldm.train.resuming import register, resume
from dpldm.train.starting import ask_and_start
from dpldm.train.timesteps import Timesteps
from dpldm.train.tuner import Tuner
from dpldm.train.vouching import vouched

DRAWS_PER_SCORE = 4
"""Noise and timestep draws of each image for its score."""


@dataclass(frozen=True)
class Selected:
    """What a selection lets out: outputs of the trial that was kept, and constants of the plan."""

    learning_rate: float
    updates: int
    epsilon: float  # of the whole selection, at its delta


@dataclass(frozen=True)
class _Progress:
    """PRIVATE: how many trials there are, and how far they are."""

    plan: str  # digest
    backbone: str  # digest
    head: list[Any]  # of the ledger when the selection was registered
    candidates: list[int]  # of each trial
    folders: list[str]  # of each trial; random names, so that none tells its number
    done: int = 0
    best: int | None = None
    score: float | None = None  # the noised score of the best


def select(config: RunConfig) -> Selected:
    """Tune the backbone in a random number of trials and keep the best. The same call resumes an interrupted selection.

    Raises:
        UserError: the settings, the data, the ledger or what an earlier call left do not allow the selection.
    """
    run, plan = Run(config), paid_plan(config)
    if not isinstance(plan, SelectionPlan):
        raise UserError("selection.learning_rates is empty: give candidates, or use `dpldm.finetune`.")
    if run.trials.exists() and not run.latents.exists():
        raise UserError(
            f"The encoded images that all trials of the run {config.name!r} share are gone: put {run.latents} back, or "
            "give this run a new name and pay for it again."
        )
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    _, latents = prepared(config, plan.trial, backbone)
    cap, declared = ledger_cap(config), config.privacy.cap
    try:
        with open_ledger(run.ledger, plan.dataset_id, cap, declared_cap=declared) as ledger:
            facts = best_of_all(run, plan, ledger, latents, backbone.digest, SystemEntropy())
    except LedgerError as error:
        raise UserError(str(error)) from None
    rate = config.selection.learning_rates[facts["candidate"]]
    return Selected(rate, facts["updates"], plan.stated_epsilon())


def best_of_all(
    run: Run, plan: SelectionPlan, ledger: Ledger, latents: PrivateLatents, backbone: str, entropy: Entropy
) -> dict[str, Any]:
    """Draw the trials, run them or what is left of them, and keep the best: facts of the checkpoint that is kept.

    Raises:
        UserError: what an earlier call left is gone, older than the end, or not of this plan, backbone and ledger; no
            trial has a score.
    """
    if not run.checkpoint.exists():
        progress = _opened(run, plan, ledger, backbone, entropy)
        while progress.done < len(progress.candidates):
            progress = _after_one_more(progress, run, plan, latents)
        if ledger.attempts(plan) < plan.attempts:
            ledger.charge(plan)  # closed before anything of its result leaves the folder of the trials
        _keep_best(progress, run, plan, ledger)
    facts = _kept(run, plan, ledger, backbone)
    shutil.rmtree(run.selection, ignore_errors=True)
    return facts


def _opened(run: Run, plan: SelectionPlan, ledger: Ledger, backbone: str, entropy: Entropy) -> _Progress:
    """The drawn trials: those of an earlier call, or new ones, on disk before the ledger's line and the first of them.

    So whatever a kill interrupts, trials are drawn once: with the line there and the draw gone, nothing is drawn again.
    And a closed selection has no trials left: what says otherwise is an older copy, and would give a second result.

    Raises:
        UserError: the draw is gone, older than the end, or belongs to another plan, backbone or ledger.
    """
    if run.trials.exists():
        progress = _read(run)
        if progress.plan != plan.digest():
            raise UserError(
                f"The selection of the run {run.config.name!r} was begun under another plan: give this run a new name, "
                "or restore the settings it was started with."
            )
        require_same_backbone(backbone, asdict(progress), run)
        if not ledger.contains(Head(*progress.head)):
            raise UserError(
                f"The ledger {run.ledger.name} is not the one that the selection of this run was begun with: restore "
                "it from a copy."
            )
        if ledger.attempts(plan) == plan.attempts and progress.done < len(progress.candidates):
            raise UserError(
                f"The selection of the run {run.config.name!r} has ended, and its folder holds an earlier state of it: "
                "put the folder back as it was at the end, or give this run a new name and pay for it again."
            )
    elif ledger.attempts(plan):
        raise UserError(
            f"The selection of the run {run.config.name!r} was begun, and its folder does not hold it any more: put "
            "the folder back, or give this run a new name and pay for it again."
        )
    else:
        register(plan, ledger, run.config)
        candidates, head = draw_trials(plan, entropy), ledger.head
        folders = [entropy.bytes(8).hex() for _ in candidates]
        progress = _Progress(plan.digest(), backbone, [head.seq, head.hash], candidates, folders)
        run.selection.mkdir(exist_ok=True)
        _write(run, progress)
    if not ledger.attempts(plan):
        ledger.charge(plan)
    return progress


def _after_one_more(progress: _Progress, run: Run, plan: SelectionPlan, latents: PrivateLatents) -> _Progress:
    """Run the next trial, or what is left of it, and delete it or the best before it, whichever lost."""
    here = _trial_run(progress, progress.done, run)
    score = _trial(here, plan, latents)
    won = score is not None and (progress.score is None or score > progress.score)
    after = replace(
        progress,
        done=progress.done + 1,
        best=progress.done if won else progress.best,
        score=score if won else progress.score,
    )
    _write(run, after)
    kept = None if after.best is None else after.folders[after.best]
    for folder in run.selection.iterdir():
        if folder.is_dir() and folder.name != kept:
            shutil.rmtree(folder)
    return after


def _trial(here: Run, plan: SelectionPlan, latents: PrivateLatents) -> float | None:
    """One whole run of the mechanism and its noised score; None if crashes took all attempts at it, or at an update."""
    config, trial, entropy = here.config, plan.trial, SystemEntropy()
    here.private.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(config.backbone, chosen_device(config.runtime.device))
    tuner = Tuner(backbone, config, trial)
    tuner.settle(backbone, config, trial)
    with open_ledger(here.ledger, trial.dataset_id, (trial.epsilon, trial.delta)) as ledger:
        if here.checkpoint.exists():  # a trial without one goes on with the attempts that are left
            resume(tuner, here, trial, ledger)
        ledger.register(trial)
        ask_and_start(tuner, backbone.scheduler, here, trial, ledger, latents, entropy)
        for _ in algorithm_1(tuner, backbone.scheduler, latents, trial, ledger, here, entropy):
            pass
        if tuner.updates == 0:
            return None

        def total() -> Tensor:
            found = scores(tuner, backbone, latents, tuner.rows_at_once, entropy)
            return score_sums(plan.score, places_of(latents), found)

        try:
            return float(ask_once(plan.score, total, here, trial, ledger, backbone.digest, entropy))
        except BudgetExhausted:
            return None


@torch.no_grad()
def scores(tuner: Tuner, backbone: Backbone, latents: PrivateLatents, rows_at_once: int, entropy: Entropy) -> Tensor:
    """How well the averaged weights denoise each record, (N, 1): 1 - loss, 0 and below for what knows nothing. PRIVATE.

    Latents, noise and hence the network's target have about unit variance, so a network that predicts nothing has
    loss 1. Afterwards the tuner's network holds the averaged weights.
    """
    tuner.average.copy_to(tuner.trainable.values())
    shape, timesteps = latents.posterior.mean.shape[1:], Timesteps(int(backbone.scheduler.config.num_train_timesteps))
    losses = []
    for rows in torch.split(torch.arange(len(latents.labels)), rows_at_once):
        draws = fresh_draws(len(rows), DRAWS_PER_SCORE, shape, timesteps, 0.0, entropy)
        losses.append(example_losses(tuner.network, backbone.scheduler, latents, rows, draws).cpu())
    return 1 - torch.cat(losses)[:, None]


def _keep_best(progress: _Progress, run: Run, plan: SelectionPlan, ledger: Ledger) -> None:
    """Make the best trial's outputs the run's own, the checkpoint last: with it the selection is over.

    Raises:
        UserError: no trial has a score.
    """
    if progress.best is None:
        raise UserError(
            f"No trial of the run {run.config.name!r} has a score, all attempts at it were lost: give this run a new "
            "name and pay for it again."
        )
    here = _trial_run(progress, progress.best, run)
    sealed = {
        "plan": plan.digest(),
        "head": [ledger.head.seq, ledger.head.hash],
        "candidate": progress.candidates[progress.best],
    }
    for answer in sorted(here.answers.glob("*.safetensors")):
        run.answers.mkdir(exist_ok=True)
        _moved(answer, run.answers / answer.name, sealed)
    _moved(here.checkpoint, run.checkpoint, sealed)


def _moved(source: Path, target: Path, sealed: dict[str, Any]) -> None:
    groups, facts = load_checkpoint(source, paid_for=True)
    save_checkpoint(target, groups, facts | sealed)


def _kept(run: Run, plan: SelectionPlan, ledger: Ledger, backbone: str) -> dict[str, Any]:
    """Facts of the finished selection, if the ledger vouches for it."""
    return vouched(run.checkpoint, "the checkpoint", run, ledger, backbone, {"plan": plan.digest()})[1]


def _trial_run(progress: _Progress, number: int, run: Run) -> Run:
    """The trial as a run of its own, in a folder and with a ledger that are inside; its name is the run's."""
    config, folder = run.config, run.selection / progress.folders[number]
    rate = config.selection.learning_rates[progress.candidates[number]]
    changes = {
        "optimizer": config.optimizer.model_copy(update={"learning_rate": rate}),
        "privacy": config.privacy.model_copy(update={"ledger": folder / run.ledger.name}),
        "runtime": config.runtime.model_copy(update={"output": folder}),
    }
    return Run(config.model_copy(update=changes))


def _read(run: Run) -> _Progress:
    try:
        return _Progress(**json.loads(run.trials.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(
            f"The selection of the run {run.config.name!r} cannot be read any more: restore its folder from a copy."
        ) from None


def _write(run: Run, progress: _Progress) -> None:
    replace_file(run.trials, json.dumps(asdict(progress)).encode())
