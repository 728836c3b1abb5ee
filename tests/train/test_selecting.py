"""A selection: two lines pay for all trials, the best stays, losers go, and nothing tells how many there were."""

import copy
import itertools
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.errors import UserError
from dpldm.models.autoencoder import Posterior
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.planning import plan as forecast
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.entropy import Entropy, SeededEntropy, SystemEntropy
from dpldm.privacy.ledger import BudgetExhausted, Ledger, LedgerError, open_ledger, read_ledger
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.selection import SelectionPlan
from dpldm.releasing import privacy_statement, release
from dpldm.run import Run, paid_plan, plan_of
from dpldm.sampling import load_synthetic, sample
from dpldm.train import selecting
from dpldm.train.checkpoint import load_checkpoint, save_checkpoint
from dpldm.train.example_losses import example_losses, fresh_draws
from dpldm.train.finetune import finetune
from dpldm.train.selecting import best_of_all, scores, select
from dpldm.train.timesteps import Timesteps
from dpldm.train.tuner import Tuner
from dpldm.tuned import noised_histogram, with_weights
from dpldm.verifying import verify
from killing import die_in_call
from tiny_runs import SELECTION

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
RATES = SELECTION["learning_rates"]
ENDED = ["created", "plan", "attempt", "attempt"]
"""Lines of the ledger after a selection, however many trials it had: one opens it, one closes it."""


def chosen(raw: dict[str, Any], **privacy: Any) -> RunConfig:
    return RunConfig.model_validate(
        raw | {"selection": SELECTION, "trainable": "condition", "privacy": raw["privacy"] | {"epsilon": 1.0} | privacy}
    )


@pytest.fixture
def config(raw: dict[str, Any]) -> RunConfig:
    return chosen(raw)


@pytest.fixture(scope="module")
def loaded(tiny_backbone: Path) -> Backbone:
    return load_backbone(str(tiny_backbone))


@pytest.fixture(autouse=True)
def read_once(loaded: Backbone, monkeypatch: Patch) -> None:
    """Every trial gets weights of its own, but they are not read from the disk for every one."""
    monkeypatch.setattr(selecting, "load_backbone", lambda *given: copy.deepcopy(loaded))


def drawn(patch: Patch, *candidates: int) -> None:
    patch.setattr(selecting, "draw_trials", lambda plan, entropy: list(candidates))


def selection_plan(config: RunConfig) -> SelectionPlan:
    plan = paid_plan(config)
    assert isinstance(plan, SelectionPlan)
    return plan


def events(config: RunConfig) -> list[str]:
    return [entry["event"] for entry in read_ledger(Run(config).ledger)]


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# --- end to end ---------------------------------------------------------------------------------------------------


def test_a_selection_is_sampled_released_and_verified_like_a_run(config: RunConfig, monkeypatch: Patch) -> None:
    drawn(monkeypatch, 1, 1, 1)
    kept = select(config)
    assert (kept.learning_rate, kept.updates) == (RATES[1], 2)
    assert kept.epsilon == selection_plan(config).stated_epsilon() <= 1.0
    assert events(config) == ENDED
    list(sample(config))
    statement, target = privacy_statement(config), release(config, "both")
    assert statement["guarantee"]["epsilon"] == kept.epsilon
    assert statement["plan"]["kind"] == "selection"
    assert statement["declared_constants"]["optimizer"]["learning_rate"] == RATES[1]
    assert statement["declared_constants"]["learning_rates"] == RATES
    assert all(check.passed for check in verify(target))
    card = (target / "README.md").read_text()
    assert "learning rate 0.003 of 0.001, 0.003, 0.01; 3 trials on average" in card
    assert select(config) == kept, "the same call finds it done"
    assert events(config) == ENDED


def test_nothing_that_is_left_or_shown_tells_how_many_trials_there_were(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    shown, left, published = [], [], []
    for trials in (1, 4):
        output = tmp_path / f"runs-{trials}"
        raw["runtime"] |= {"output": str(output)}
        raw["privacy"] |= {"ledger": str(output / "scans.jsonl"), "epsilon": 1.0}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(raw | {"selection": SELECTION, "trainable": "condition"}))
        drawn(monkeypatch, *[2] * trials)
        assert main(["finetune", "--config", str(path)]) == 0
        shown.append(capsys.readouterr().out.replace(str(output), "OUTPUT"))
        left.append(files_below(output))
        config = RunConfig.model_validate(yaml.safe_load(path.read_text()))
        list(sample(config))
        published.append(privacy_statement(config))
    assert shown[0] == shown[1]
    assert "how many there are stays secret" in shown[0]
    assert "learning rate 0.01 was kept" in shown[0]
    assert left[0] == left[1]
    assert not any("selection" in name for name in left[0])
    assert published[0] == published[1], "the ledger's head included"


def test_a_histogram_of_the_kept_trial_steers_sampling(raw: dict[str, Any], monkeypatch: Patch) -> None:
    config = chosen(raw, histogram_noise=200.0, expected_batch_size=40)  # q = 1, which is quickly calibrated
    drawn(monkeypatch, 0, 2)
    select(config)
    assert noised_histogram(config) is not None
    assert sorted(path.stem for path in Run(config).answers.iterdir()) == ["candidate_scores", "class_histogram"]
    list(sample(config))
    assert len(load_synthetic(config).labels) == 24


def test_a_plan_says_what_a_selection_costs_and_can_miss(config: RunConfig) -> None:
    made = forecast(config, timed=False)
    plan = selection_plan(config)
    assert made.selection == plan
    assert plan.trial.stated_epsilon() < made.epsilon == plan.stated_epsilon() <= 1.0 < made.epsilon_replace_one
    assert made.epsilon_replace_one == plan.stated_epsilon(Adjacency.REPLACE_ONE)
    assert plan_of(config) == plan.trial


# --- which trial stays --------------------------------------------------------------------------------------------


def scripted(patch: Patch, found: list[float | None]) -> list[list[str]]:
    """Trials that cost nothing: each leaves a checkpoint that names its score. What lay in the folder at each start."""
    left: list[list[str]] = []

    def trial(here: Run, plan: SelectionPlan, latents: PrivateLatents) -> float | None:
        folder = here.config.runtime.output
        left.append(sorted(path.name for path in folder.parent.iterdir() if path.is_dir() and path != folder))
        score = found[json.loads((folder.parent / "trials.json").read_text())["done"]]
        here.private.mkdir(parents=True, exist_ok=True)
        rate = here.config.optimizer.learning_rate
        facts = {"plan": plan.trial.digest(), "backbone": "digest", "updates": 2, "score": score, "rate": rate}
        save_checkpoint(here.checkpoint, {"average": {}}, facts)
        return score

    patch.setattr(selecting, "_trial", trial)
    return left


def made_up(count: int) -> PrivateLatents:
    mean = torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return PrivateLatents(Posterior(mean, mean), torch.arange(count) % 2, torch.ones(count, dtype=torch.bool))


def best(config: RunConfig, backbone: str = "digest") -> dict[str, Any]:
    run, plan = Run(config), selection_plan(config)
    run.private.mkdir(parents=True, exist_ok=True)
    with open_ledger(run.ledger, "scans", (1.0, 1e-3)) as ledger:
        return best_of_all(run, plan, ledger, made_up(12), backbone, SystemEntropy())


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ([1.0], 0),
        ([1.0, 3.0, 2.0, 2.9], 1),
        ([4.0, 3.0, 2.0], 0),
        ([-9.0, -8.0, -7.0], 2),
        ([None, -5.0, None, -6.0], 1),
    ],
)
def test_the_trial_with_the_largest_score_stays_and_a_loser_goes_before_the_next_begins(
    config: RunConfig, monkeypatch: Patch, found: list[float | None], kept: int
) -> None:
    candidates = [(2, 0, 2, 1, 0)[number] for number in range(len(found))]  # not their numbers
    drawn(monkeypatch, *candidates)
    left = scripted(monkeypatch, found)
    facts = best(config)
    assert (facts["score"], facts["candidate"]) == (found[kept], candidates[kept])
    assert facts["rate"] == RATES[candidates[kept]], "the trial was tuned with its candidate"
    assert facts["plan"] == selection_plan(config).digest()
    assert len(left) == len(found)
    assert all(len(others) <= 1 for others in left), "at most the best so far"
    assert not Run(config).selection.exists()
    assert events(config) == ENDED


def noises(patch: Patch) -> list[Tensor]:
    """The noise of every release from here on, in order."""
    drawn: list[Tensor] = []

    def heard(total: Tensor, deviation: float, entropy: Entropy) -> Tensor:
        assert entropy.private, "noise comes from the system"
        noised = add_gaussian(total, deviation, entropy)
        drawn.append((noised.double() - total.double()).flatten()[:4])
        return noised

    patch.setattr("dpldm.privacy.mechanism.add_gaussian", heard)
    patch.setattr("dpldm.privacy.queries.add_gaussian", heard)
    return drawn


def test_trials_are_independent_runs_from_the_public_backbone(config: RunConfig, monkeypatch: Patch) -> None:
    """Nothing goes from one trial to the next: neither weights nor noise, nor answers."""
    drawn(monkeypatch, 2, 2, 2)
    starts: list[dict[str, Tensor]] = []
    algorithm = selecting.algorithm_1

    def watched(tuner: Tuner, *given: Any) -> Iterator[Any]:
        starts.append({name: parameter.detach().clone() for name, parameter in tuner.trainable.items()})
        return algorithm(tuner, *given)

    monkeypatch.setattr(selecting, "algorithm_1", watched)
    heard = noises(monkeypatch)
    select(config)
    public = Tuner(load_backbone(config.backbone), config, plan_of(config)).trainable
    assert len(starts) == 3
    assert all(torch.equal(start[name], public[name]) for start in starts for name in public)
    assert len(heard) == 3 * (2 * len(public) + 1), "two updates and a score in each trial"
    assert len({tuple(noise.tolist()) for noise in heard}) == len(heard)


def test_the_number_of_trials_comes_from_the_systems_entropy(config: RunConfig, monkeypatch: Patch) -> None:
    sources: list[Entropy] = []

    def tossed(plan: SelectionPlan, entropy: Entropy) -> list[int]:
        sources.append(entropy)
        return [0]

    monkeypatch.setattr(selecting, "draw_trials", tossed)
    select(config)
    assert [type(source) for source in sources] == [SystemEntropy]


def test_without_a_single_score_nothing_is_kept(config: RunConfig, monkeypatch: Patch) -> None:
    drawn(monkeypatch, 0, 1)
    scripted(monkeypatch, [None, None])
    for _ in range(2):
        with pytest.raises(UserError, match=r"No trial of the run 'tiny' has a score"):
            best(config)
    assert not Run(config).checkpoint.exists()


def test_a_score_that_crashes_took_leaves_a_trial_without_one(config: RunConfig, monkeypatch: Patch) -> None:
    def lost(*_: Any) -> Tensor:
        raise BudgetExhausted

    drawn(monkeypatch, 0, 1)
    monkeypatch.setattr(selecting, "ask_once", lost)
    with pytest.raises(UserError, match="has a score"):
        select(config)


def test_a_trial_that_crashes_left_without_an_update_counts_as_the_lowest(
    config: RunConfig, monkeypatch: Patch
) -> None:
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    drawn(monkeypatch, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Tuner, "update", dies)
        for _ in range(plan_of(config).attempts):
            with pytest.raises(KeyboardInterrupt):
                select(config)
    with pytest.raises(UserError, match="has a score"):
        select(config)


# --- crashes ------------------------------------------------------------------------------------------------------


def dying(config: RunConfig, fatal: int | None, patch: Patch) -> None:
    """The child: a selection with scripted trials that dies in its `fatal`-th system call of writing or deleting."""

    def tossed(plan: SelectionPlan, entropy: Entropy) -> list[int]:
        with (config.runtime.output / "draws").open("a") as file:
            file.write("drawn\n")
        return [int(byte) % 3 for byte in entropy.bytes(3)]

    patch.setattr(selecting, "draw_trials", tossed)
    scripted(patch, [1.0, 3.0, 2.0])
    die_in_call(fatal, ("write", "replace", "rmdir", "unlink"))
    best(config)


def child(config: RunConfig, fatal: int | None, patch: Patch) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=dying, args=(config, fatal, patch))
    process.start()
    process.join()
    return process.exitcode


def test_a_kill_anywhere_never_draws_again_what_is_paid_for_and_the_best_still_stays(
    config: RunConfig, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Once the ledger's line is there, the trials are those that were drawn before it."""
    selection_plan(config)  # calibrated once, not in every child
    paid_for = 0
    for fatal in range(1, 200):
        output = tmp_path / f"runs-{fatal}"
        here = config.model_copy(
            update={
                "runtime": config.runtime.model_copy(update={"output": output}),
                "privacy": config.privacy.model_copy(update={"ledger": output / "scans.jsonl"}),
            }
        )
        output.mkdir()
        if child(here, fatal, monkeypatch) == 0:
            break
        run = Run(here)
        paid = run.ledger.exists() and b'"attempt"' in run.ledger.read_bytes()
        before = json.loads(run.trials.read_text())["candidates"] if run.trials.exists() else None
        assert before is not None or not paid or run.checkpoint.exists()
        tosses = len((output / "draws").read_text().splitlines()) if (output / "draws").exists() else 0
        assert child(here, None, monkeypatch) == 0, f"the selection cannot go on after a kill in call {fatal}"
        if paid:
            paid_for += 1
            assert len((output / "draws").read_text().splitlines()) == tosses == 1
        _, facts = load_checkpoint(run.checkpoint)
        assert facts["score"] == 3.0
        assert before is None or facts["candidate"] == before[1]
        assert events(here) == ENDED
        assert not run.selection.exists()
    assert 20 < fatal < 199
    assert paid_for > 10


def test_an_interrupted_trial_goes_on_with_the_attempts_that_are_left(config: RunConfig, monkeypatch: Patch) -> None:
    drawn(monkeypatch, 2, 0)
    update, count = Tuner.update, itertools.count(1)

    def interrupted(self: Tuner, gradient: Any) -> None:
        if next(count) == 4:  # the second update of the second trial: an attempt is charged, and lost
            raise KeyboardInterrupt
        update(self, gradient)

    monkeypatch.setattr(Tuner, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        select(config)
    run, state = Run(config), json.loads(Run(config).trials.read_text())
    assert (state["done"], len(state["candidates"])) == (1, 2)
    own = run.selection / state["folders"][1] / "scans.jsonl"
    assert [entry["event"] for entry in read_ledger(own)][2:] == ["attempt", "attempt"]
    charged: list[int] = []
    charge = Ledger.charge
    monkeypatch.setattr(Ledger, "charge", lambda self, plan: charged.append(charge(self, plan)) or charged[-1])
    assert select(config).updates == 2
    assert charged == [3, 2], "the reserve's attempt, in the trial's own ledger; then the selection's end"
    assert events(config) == ENDED


@pytest.mark.parametrize("harm", ["folder lost", "other plan", "other backbone", "ledger cut", "torn"])
def test_a_selection_that_is_not_the_one_that_was_begun_is_refused(
    config: RunConfig, monkeypatch: Patch, harm: str
) -> None:
    drawn(monkeypatch, 0, 1)
    scripted(monkeypatch, [1.0])  # the second trial ends in an IndexError
    with pytest.raises(IndexError):
        best(config)
    run, digest, text = Run(config), "digest", "begun under another plan"
    if harm == "folder lost":
        shutil.rmtree(run.selection)
        text = r"its folder does not hold it any more: put the folder back"
    if harm == "other plan":
        fewer = config.selection.model_copy(update={"learning_rates": tuple(RATES[:2])})
        config = config.model_copy(update={"selection": fewer})
    if harm == "other backbone":
        digest, text = "of other weights", "put the earlier backbone back"
    if harm == "ledger cut":
        run.ledger.write_bytes(b"".join(run.ledger.read_bytes().splitlines(keepends=True)[:1]))
        text = "is not the one that the selection of this run was begun with"
    if harm == "torn":
        run.trials.write_text("{")
        text = "cannot be read any more"
    before = run.ledger.read_bytes()
    scripted(monkeypatch, [1.0, 2.0])
    with pytest.raises(UserError, match=text):
        best(config, digest)
    assert run.ledger.read_bytes() == before, "nothing was reserved or charged"


@pytest.mark.parametrize("place", ["restored", "copied"])
def test_a_copy_from_before_the_end_gives_no_second_result(
    config: RunConfig, tmp_path: Path, monkeypatch: Patch, place: str
) -> None:
    """As many looks at the data as are paid for: the ledger closes a selection, whatever folder comes back later."""
    drawn(monkeypatch, 0, 1)
    scripted(monkeypatch, [1.0])  # the second trial ends in an IndexError
    with pytest.raises(IndexError):
        best(config)
    shutil.copytree(Run(config).directory, tmp_path / "aside" / config.name)
    scripted(monkeypatch, [1.0, 2.0])
    assert best(config)["score"] == 2.0
    if place == "restored":
        shutil.rmtree(Run(config).directory)
        shutil.copytree(tmp_path / "aside" / config.name, Run(config).directory)
    else:
        config = config.model_copy(update={"runtime": config.runtime.model_copy(update={"output": tmp_path / "aside"})})
    left = scripted(monkeypatch, [1.0, 9.0])
    with pytest.raises(UserError, match=r"has ended, and its folder holds an earlier state of it"):
        best(config)
    assert left == [], "no trial was run"
    assert events(config) == ENDED


def test_two_folders_with_draws_of_their_own_give_one_result(
    config: RunConfig, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Both were drawn before either was charged, as a full disk can have it; one line pays for one of them."""
    elsewhere = config.model_copy(
        update={"runtime": config.runtime.model_copy(update={"output": tmp_path / "elsewhere"})}
    )

    def full(*_: Any) -> int:
        raise LedgerError("no space")

    drawn(monkeypatch, 0, 1)
    scripted(monkeypatch, [1.0, 2.0])
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "charge", full)
        for each in (config, elsewhere):
            with pytest.raises(LedgerError):
                best(each)
    assert best(elsewhere)["score"] == 2.0
    with pytest.raises(UserError, match="has ended"):
        best(config)
    assert events(config) == ENDED


def test_images_are_not_read_again_between_trials(config: RunConfig, monkeypatch: Patch) -> None:
    """All trials are about one data set, also if the encoded images are lost in between."""
    drawn(monkeypatch, 0, 1)

    def stopped(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(selecting, "algorithm_1", stopped)
        with pytest.raises(KeyboardInterrupt):
            select(config)
    kept = Run(config).latents.read_bytes()
    Run(config).latents.unlink()
    with pytest.raises(UserError, match=r"that all trials of the run 'tiny' share are gone: put .* back"):
        select(config)
    Run(config).latents.write_bytes(kept)
    assert select(config).updates == 2


def test_settings_and_images_are_bound_from_the_draw_on(config: RunConfig, monkeypatch: Patch) -> None:
    drawn(monkeypatch, 0, 1)

    def stopped(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(selecting, "algorithm_1", stopped)
    with pytest.raises(KeyboardInterrupt):
        select(config)
    assert Run(config).started
    rates = config.selection.model_copy(update={"learning_rates": (1e-3, 2e-3, 3e-3)})
    with pytest.raises(UserError, match="another section `selection`"):
        select(config.model_copy(update={"selection": rates}))


# --- the score ----------------------------------------------------------------------------------------------------


def test_a_score_is_one_less_the_loss_of_the_averaged_weights(config: RunConfig) -> None:
    backbone, latents = load_backbone(config.backbone), made_up(7)
    latents.posterior.mean[3] = float("nan")
    tuner = Tuner(backbone, config, paid_plan(config).trial)
    tuner.average.shadow_params = [parameter.detach() + 0.1 for parameter in tuner.average.shadow_params]
    average = dict(zip(tuner.trainable, (p.clone() for p in tuner.average.shadow_params), strict=True))
    found = scores(tuner, backbone, latents, 4, SeededEntropy(3))
    network = with_weights(load_backbone(config.backbone).denoiser, config, average)
    entropy, expected = SeededEntropy(3), []
    for rows in (torch.arange(4), torch.arange(4, 7)):
        draws = fresh_draws(len(rows), 4, torch.Size((2, 4, 4)), Timesteps(1000), 0.0, entropy)
        expected.append(1 - example_losses(network, backbone.scheduler, latents, rows, draws))
    assert torch.allclose(found[:, 0], torch.cat(expected), equal_nan=True)
    assert torch.isnan(found[:, 0]).tolist() == [False] * 3 + [True] + [False] * 3
    assert found.shape == (7, 1)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"learning_rates": [1e-3]}, "at least two learning rates"),
        ({"learning_rates": [1e-3, 1e-3]}, "each once"),
        ({"learning_rates": [1e-3, -1.0]}, "greater than 0"),
        ({"learning_rates": RATES, "mean_trials": 0.5}, "greater than or equal to 1"),
    ],
)
def test_what_is_no_choice_is_refused(raw: dict[str, Any], selection: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(raw | {"selection": selection})


def test_what_cannot_be_selected_is_refused_in_a_sentence(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must not cut batches"):
        paid_plan(chosen(raw, max_batch_size=60, most_records=60))
    with pytest.raises(UserError, match="The noise multiplier of candidate_scores"):
        paid_plan(RunConfig.model_validate(raw | {"selection": SELECTION | {"score_noise": 0.0}}))


def test_each_of_the_two_ways_refuses_the_others_config(config: RunConfig, raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"declares a selection: use `dpldm\.select`"):
        next(finetune(config))
    with pytest.raises(UserError, match=r"selection\.learning_rates is empty"):
        select(RunConfig.model_validate(raw))


# --- verify -------------------------------------------------------------------------------------------------------


def edits() -> dict[str, Any]:
    def lower(s: dict[str, Any]) -> None:
        s["guarantee"]["epsilon"] *= 0.99

    def lower_replacing(s: dict[str, Any]) -> None:
        s["guarantee"]["epsilon_replace_one"] *= 0.99

    def fewer_trials(s: dict[str, Any]) -> None:
        s["plan"]["mean_trials"] = 2.0

    def another_noise(s: dict[str, Any]) -> None:
        s["plan"]["trial"]["noise_multiplier"] *= 2

    def as_one_trial(s: dict[str, Any]) -> None:
        s["plan"] = s["plan"]["trial"]

    def contradiction(s: dict[str, Any]) -> None:
        s["plan"]["delta"] /= 2

    def foreign_rate(s: dict[str, Any]) -> None:
        s["declared_constants"]["optimizer"]["learning_rate"] = 0.5

    def short_ledger(s: dict[str, Any]) -> None:
        s["ledger"]["head"]["seq"] = 1

    return {function.__name__: function for function in (
        lower, lower_replacing, fewer_trials, another_noise, as_one_trial, contradiction, foreign_rate, short_ledger
    )}  # fmt: skip


def test_an_edited_statement_of_a_selection_fails(selected_copy: RunConfig) -> None:
    target = release(selected_copy)
    path = target / "privacy.json"
    honest = path.read_text()
    for name, edit in edits().items():
        statement = json.loads(honest)
        edit(statement)
        path.write_text(json.dumps(statement))
        assert not all(check.passed for check in verify(target)), name
    path.write_text(honest)
    assert all(check.passed for check in verify(target))


def test_a_mean_that_was_lowered_with_its_digest_fails_by_its_epsilon(selected_copy: RunConfig) -> None:
    """Whoever writes the digest anew cannot write epsilon anew: it is recomputed."""
    target = release(selected_copy)
    statement = json.loads((target / "privacy.json").read_text())
    forged = replace(selection_plan(selected_copy), mean_trials=30.0)
    statement |= {"plan": forged.constants(), "plan_digest": forged.digest()}
    (target / "privacy.json").write_text(json.dumps(statement))
    failed = {check.name for check in verify(target) if not check.passed}
    assert failed == {"epsilon", "epsilon, replace one"}
