"""Private Evolution: every round charged before it is counted, answered once, accounted for whole, and INTERNAL."""

import hashlib
import importlib
import itertools
import json
import math
import multiprocessing
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scipy.stats import norm
from torch import Tensor

from dpldm.auditing import audit, planned
from dpldm.baselines import pe as module
from dpldm.baselines.pe import Evolution, PublicModel, evolved, pe, pe_run
from dpldm.baselines.shown import released
from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.evaluation import evaluate as evaluation
from dpldm.models.autoencoder import encode
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.entropy import Entropy, SystemEntropy
from dpldm.privacy.ledger import open_ledger, read_ledger
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import NearestVotes
from dpldm.run import Run
from dpldm.train.finetune import finetune
from dpldm.verifying import verify
from killing import die_in_call
from tiny_runs import Means, write_images

Patch = pytest.MonkeyPatch
ROUNDS, CANDIDATES = 3, 8


@pytest.fixture(autouse=True)
def quick(monkeypatch: Patch) -> None:
    """Four features an image."""
    monkeypatch.setattr(module, "EfficientNetLite0", lambda **settings: Means())
    monkeypatch.setattr(evaluation, "extractor_of", lambda config: Means())


@pytest.fixture
def config(raw: dict[str, Any], tmp_path: Path) -> RunConfig:
    raw["data"]["test_path"] = str(write_images(tmp_path / "test", seed=1))
    raw["privacy"]["cap"] = [1.0, 2e-3]
    raw["evolution"] = {"rounds": ROUNDS, "candidates": CANDIDATES + 1, "features": "efficientnet-lite0"}
    return RunConfig.model_validate(raw)


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def lines(config: RunConfig, event: str) -> list[dict[str, Any]]:
    return [entry for entry in read_ledger(Run(config).ledger) if entry["event"] == event]


def only_evolved(config: RunConfig) -> Evolution:
    """The rounds without what comes after them."""
    run, plan = pe_run(config)
    return evolved(PublicModel(config), run, plan, config, SystemEntropy(), lambda *progress: None)


class Noises:
    """The noise of every answer."""

    def __init__(self, patch: Patch) -> None:
        self.drawn: list[Tensor] = []
        self.deviations: set[float] = set()
        self.entropies: list[Entropy] = []
        patch.setattr("dpldm.privacy.queries.add_gaussian", self._heard)

    def _heard(self, total: Tensor, deviation: float, entropy: Entropy) -> Tensor:
        noised = add_gaussian(total, deviation, entropy)
        self.drawn.append(noised.double() - total)
        self.deviations.add(deviation)
        self.entropies.append(entropy)
        return noised


# --- what it costs --------------------------------------------------------------------------------------------------


def test_it_is_a_plan_of_its_own_in_the_data_sets_ledger(config: RunConfig) -> None:
    list(finetune(config))
    found = pe(config)
    _, plan = pe_run(config)
    rounds = [(entry["query"], entry["number"]) for entry in lines(config, "query") if entry["plan"] == plan.digest()]
    assert rounds == [("nearest_votes", 1), ("nearest_votes", 2), ("nearest_votes", 3)]
    assert [entry["constants"]["run"] for entry in lines(config, "plan")] == ["tiny", "tiny/pe"]
    assert (plan.epsilon, plan.delta, plan.records, plan.unit) == (0.5, 1e-3, 40, "image")
    assert (plan.steps, plan.attempts, plan.sampling_probability) == (0, 0, 1)
    assert found.facts["candidates"] == CANDIDATES, "equally many of each class"
    assert PrivacyPlan.from_constants(json.loads(json.dumps(plan.constants()))) == plan
    before = len(read_ledger(Run(config).ledger))
    assert pe(config).scores == found.scores, "the same call finds it done"
    assert len(read_ledger(Run(config).ledger)) == before


def test_epsilon_is_that_of_as_many_gaussians_as_may_be_asked(config: RunConfig) -> None:
    """By the library, and by the closed form of one Gaussian (Balle and Wang 2018, theorem 8)."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    _, plan = pe_run(config)
    (question,) = plan.queries
    assert question.attempts == ROUNDS + 2
    event = SelfComposedDpEvent(GaussianDpEvent(question.noise_multiplier), ROUNDS + 2)
    theirs = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4).compose(event).get_epsilon(1e-3)
    assert plan.stated_epsilon() == pytest.approx(theirs, rel=1e-9)
    assert 0.49 < plan.stated_epsilon() <= 0.5
    for adjacency, moved in ((Adjacency.ADD_OR_REMOVE_ONE, 1.0), (Adjacency.REPLACE_ONE, math.sqrt(2))):
        mu, epsilon = moved * math.sqrt(ROUNDS + 2) / question.noise_multiplier, plan.stated_epsilon(adjacency)
        delta = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        assert 0.98e-3 < delta <= 1e-3


def test_a_round_is_charged_before_its_votes_are_counted(config: RunConfig, monkeypatch: Patch) -> None:
    charged: list[int] = []
    count = module.votes

    def counted(*given: Any) -> Tensor:
        charged.append(len(lines(config, "query")))
        return count(*given)

    monkeypatch.setattr(module, "votes", counted)
    only_evolved(config)
    assert charged == [1, 2, 3]


def test_noise_is_the_systems_and_fresh_in_every_round(config: RunConfig, monkeypatch: Patch) -> None:
    noises = Noises(monkeypatch)
    only_evolved(config)
    only_evolved(
        config.model_copy(update={"name": "again", "privacy": config.privacy.model_copy(update={"cap": None})})
    )
    _, plan = pe_run(config)
    assert noises.deviations == {plan.queries[0].noise_multiplier}
    assert all(isinstance(entropy, SystemEntropy) for entropy in noises.entropies)
    assert len(noises.drawn) == 2 * ROUNDS
    assert len(torch.stack(noises.drawn).flatten().unique()) == 2 * ROUNDS * CANDIDATES


def test_the_plans_kind_of_noise_is_the_answers(config: RunConfig, monkeypatch: Patch) -> None:
    drawn: list[tuple[float, float, int]] = []

    def heard(total: Tensor, deviation: float, bound: float, coordinates: int, entropy: Entropy) -> Tensor:
        drawn.append((deviation, bound, coordinates))
        return total

    monkeypatch.setattr("dpldm.privacy.queries.add_gaussian_on_grid", heard)
    exact = changed(config, "privacy", noise="grid")
    only_evolved(exact)
    assert drawn == [(pe_run(exact)[1].queries[0].noise_multiplier, 1.0, CANDIDATES)] * ROUNDS


def test_groups_have_one_vote(config: RunConfig, monkeypatch: Patch) -> None:
    for folder in (config.data.path, config.data.test_path):
        assert folder is not None
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
        rows = [f"{name},{name.split('/')[0]},{number // 3}" for number, name in enumerate(names)]
        (folder / "metadata.csv").write_text("file_name,label,patient\n" + "\n".join(rows) + "\n")
    grouped = changed(config, "data", group_column="patient")
    grouped = changed(grouped, "privacy", unit="group", max_images_per_group=2, records=12, expected_batch_size=6)
    totals: list[Tensor] = []
    count = module.votes
    monkeypatch.setattr(module, "votes", lambda *given: totals.append(count(*given)) or totals[-1])
    only_evolved(RunConfig.model_validate(grouped.model_dump()))
    assert [float(total.sum()) for total in totals] == pytest.approx([14.0] * ROUNDS), "40 images of 14 patients"


def test_the_cap_must_be_declared_before_it_comes_first(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"baseline pe costs .* declare privacy\.cap"):
        pe(changed(config, "privacy", cap=None))
    assert not Run(config).ledger.exists()


def test_what_cannot_be_is_refused_before_anything_is_charged(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"set data\.test_path"):
        pe(changed(config, "data", test_path=None))
    with pytest.raises(UserError, match=r"privacy\.records is blank"):
        pe(changed(config, "privacy", records=None))
    with pytest.raises(UserError, match=r"takes 13 to 16 pixels"):
        pe(changed(config, "data", image_size=17))
    with pytest.raises(UserError, match="candidates of nearest_votes must be a whole number from 1 to 1,000,000"):
        pe(changed(config, "evolution", candidates=2_000_002))
    assert not Run(config).ledger.exists()


# --- what it shows --------------------------------------------------------------------------------------------------


def test_accuracy_is_internal_and_lies_inside(config: RunConfig) -> None:
    (config.data.path / "dark" / "000.png").write_bytes(b"unreadable")
    shown: list[tuple[str, int, int]] = []
    found = pe(config, lambda *progress: shown.append(progress))
    assert shown[:ROUNDS] == [("rounds of votes", number, ROUNDS) for number in (1, 2, 3)]
    assert ("images drawn", 24, 24) in shown
    path = Run(config).private / "baselines" / "pe.json"
    stored = json.loads(path.read_text())
    assert stored["status"] == "INTERNAL: reads private images, do not publish"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (found.test, found.facts["protocol"], found.facts["train"]) == (40, "quick", 20)
    assert 0 <= found.scores["cnn"].mean <= 1
    assert "KID-means" in str(found.facts)
    run, _ = pe_run(config)
    assert (run.directory / "contact-sheet.png").exists()
    there = {entry.name for entry in Run(config).directory.iterdir()}
    assert there == {"private", "config.resolved.yaml", "release-pe"}


def test_its_images_are_a_release_that_verify_accepts(config: RunConfig) -> None:
    pe(config)
    directory = released(config, "pe")
    failed = [check for check in verify(directory) if not check.passed]
    assert failed == []
    statement = json.loads((directory / "privacy.json").read_text())
    assert statement["updates"] == 0
    assert "noised votes" in statement["guarantee"]["covers"]
    assert set(statement["declared_constants"]) >= {"evolution", "sampling", "labels"}
    assert "optimizer" not in statement["declared_constants"]
    card = (directory / "README.md").read_text()
    assert f"attempts accounted {ROUNDS} + 2" in card
    assert "updates made" not in card
    assert "private-evolution" in (directory / "synthetic" / "README.md").read_text()
    pe(config)  # the same call finds the same release


def test_the_ledger_tells_of_its_rounds_and_there_is_nothing_to_audit_or_report_on(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    pe(config)
    assert main(["ledger", "show", str(Run(config).ledger)]) == 0
    text = capsys.readouterr().out
    assert "tiny/pe: epsilon 0.5, delta 0.001, queries alone, no gradients" in text
    assert f"3 of {ROUNDS + 2} attempts made" in text
    with pytest.raises(UserError, match="audits are for what was tuned"):
        next(audit(planned(released(config, "pe"), None)))
    assert main(["report", str(released(config, "pe"))]) == 2
    assert "reports are for runs: its README.md states the guarantee" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("epsilon", lambda statement: statement["plan"]["queries"][0].update(rounds=30)),
        ("epsilon", lambda statement: statement["plan"]["queries"][0].update(noise_multiplier=1.0)),
        ("ledger", lambda statement: statement["ledger"]["head"].update(seq=3)),
        ("statement", lambda statement: statement["declared_constants"].update(optimizer={})),
        ("statement", lambda statement: statement["declared_constants"]["evolution"].update(features="my own")),
        ("what it covers", lambda statement: statement.update(mechanism="none")),
    ],
)
def test_a_wrong_statement_is_rejected(name: str, change: Callable[[dict[str, Any]], None], config: RunConfig) -> None:
    pe(config)
    path = released(config, "pe") / "privacy.json"
    statement = json.loads(path.read_text())
    change(statement)
    path.write_text(json.dumps(statement))
    assert name in {check.name for check in verify(path.parent) if not check.passed}


def test_the_command(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["baseline", "pe", "--config", str(path), "--evolution.rounds", "2"]) == 0
    text = capsys.readouterr().out
    assert "baseline pe (INTERNAL: reads private images, do not publish)" in text
    assert "rounds of votes" in text
    assert "cnn accuracy" in text
    assert "0.50" in text, "the stated epsilon"
    assert main(["baseline", "pe", "--config", str(path), "--evolution.degrees", "[0, 1]"]) == 2


def test_without_noise_the_nearest_candidates_survive(config: RunConfig, monkeypatch: Patch) -> None:
    """All votes go to the candidates that lie closest, so the last parents are those of each class with most votes."""
    monkeypatch.setattr("dpldm.privacy.queries.add_gaussian", lambda total, deviation, entropy: 1e6 * total)
    evolution = only_evolved(changed(config, "evolution", rounds=1))
    model = evolution.model
    features = model.features(model.images(evolution.population.latents))
    _, labels, _ = evolution.children()
    for label in (0, 1):
        brightness = 60 / 255 if label == 0 else 190 / 255
        mine = (evolution.population.classes == label).nonzero()[:, 0]
        voted = evolution.noised[mine]
        assert voted.sum() == 1e6 * 20, f"all images of class {label} ({brightness:.2f}) voted within it"
    rows = module.parents(
        evolution.population, evolution.question, evolution.noised, 2.0, labels, torch.Generator().manual_seed(0)
    )
    assert (evolution.noised[rows] > 0).all()
    assert features.shape == (CANDIDATES, 4)


def test_candidates_of_a_backbone_with_classes_are_told_its_own(config: RunConfig) -> None:
    """At random at first; children keep what their parent was told."""
    model = PublicModel(config)
    first = model.first(40)
    assert set(first.told.tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(first.classes, torch.arange(40) % 2)
    rows = torch.tensor([3, 3, 17])
    children = module.next_generation(model.draw, first, rows, 0.5, 1)
    assert torch.equal(children.told, first.told[rows])
    assert torch.equal(children.classes, first.classes[rows])
    assert not torch.equal(children.latents[0], children.latents[1]), "each by noise of its own"


def test_images_are_compared_by_the_encoder_if_asked(config: RunConfig) -> None:
    model = PublicModel(changed(config, "evolution", features="encoder"))
    images = model.images(model.first(4).latents)
    means = encode(model.backbone.autoencoder, images).mean.flatten(1)
    assert torch.allclose(model.features(images), module.scaled(means.numpy()))
    assert model.extractor.name == f"tiny-encoder:{model.backbone.digest[:12]}"


def test_without_classes_all_vote_for_all(config: RunConfig) -> None:
    flat = changed(config, "data", labels=())
    for folder in (config.data.path, config.data.test_path):
        assert folder is not None
        for path in sorted(folder.rglob("*.png")):
            path.rename(folder / f"{path.parent.name}-{path.name}")
        for kind in ("dark", "light"):
            (folder / kind).rmdir()
    found = pe(flat)
    assert found.scores == {}
    assert "KID-means" in str(found.facts)


# --- it goes on, or is refused --------------------------------------------------------------------------------------


def interrupted(config: RunConfig, patch: Patch, name: str, after: int) -> None:
    """Rounds that die in a call of this module's `name`, of which `after` came to their end."""
    real, count = getattr(module, name), itertools.count()

    def dies(*given: Any) -> Any:
        if next(count) == after:
            raise KeyboardInterrupt
        return real(*given)

    with patch.context() as inside:
        inside.setattr(module, name, dies)
        with pytest.raises(KeyboardInterrupt):
            only_evolved(config)


def test_an_answered_round_is_not_paid_for_again(config: RunConfig, monkeypatch: Patch) -> None:
    """Killed after the answer to the second round, while its children are drawn: the answer is used as it is."""
    noises = Noises(monkeypatch)
    interrupted(config, monkeypatch, "next_generation", after=1)
    assert len(lines(config, "query")) == len(noises.drawn) == 2
    run, _ = pe_run(config)
    kept = (run.answers / "nearest_votes-0002.safetensors").read_bytes()
    only_evolved(config)
    assert [entry["number"] for entry in lines(config, "query")] == [1, 2, 3]
    assert len(noises.drawn) == ROUNDS
    assert (run.answers / "nearest_votes-0002.safetensors").read_bytes() == kept


def test_a_resumed_evolution_is_the_uninterrupted_one(config: RunConfig, monkeypatch: Patch) -> None:
    """Given the same answers: candidates are drawn by public seeds."""
    monkeypatch.setattr("dpldm.privacy.queries.add_gaussian", lambda total, deviation, entropy: total.float() * 100)
    interrupted(config, monkeypatch, "next_generation", after=1)
    resumed = only_evolved(config)
    alone = changed(config.model_copy(update={"name": "alone"}), "privacy", cap=None, dataset_id="others", ledger=None)
    whole = only_evolved(changed(alone, "privacy", public_benchmark=True))
    assert torch.equal(resumed.population.latents, whole.population.latents)
    assert torch.equal(resumed.noised, whole.noised)


def test_a_round_that_was_charged_and_not_answered_is_charged_again(config: RunConfig, monkeypatch: Patch) -> None:
    noises = Noises(monkeypatch)
    interrupted(config, monkeypatch, "votes", after=1)
    assert (len(lines(config, "query")), len(noises.drawn)) == (2, 1)
    only_evolved(config)
    assert [entry["number"] for entry in lines(config, "query")] == [1, 2, 3, 4]
    assert len(noises.drawn) == ROUNDS


def reported(config: RunConfig, pipe: Connection, fatal_call: int | None) -> None:
    """In a child: the rounds that are left, with a hash of every noise."""

    def heard(total: Tensor, deviation: float, entropy: Entropy) -> Tensor:
        noised = add_gaussian(total, deviation, entropy)
        pipe.send(hashlib.sha256((noised.double() - total).numpy().tobytes()).hexdigest())
        return noised

    module_of_queries = importlib.import_module("dpldm.privacy.queries")
    module_of_queries.add_gaussian = heard  # type: ignore[attr-defined]
    if fatal_call is not None:
        die_in_call(fatal_call)
    only_evolved(config)


def life(config: RunConfig, fatal_call: int | None = None) -> tuple[int | None, list[str]]:
    """Exit code and noises of a child."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=reported, args=(config, theirs, fatal_call))
    child.start()
    theirs.close()
    noises = []
    with suppress(EOFError):
        while True:
            noises.append(ours.recv())
    child.join()
    return child.exitcode, noises


@pytest.mark.slow
def test_a_kill_inside_any_call_that_writes_is_survived(config: RunConfig, tmp_path: Path) -> None:
    """A copy of an evolution after its first round, for every system call of the others: killed there, run again."""
    with pytest.MonkeyPatch.context() as patch:
        interrupted(config, patch, "next_generation", after=1)
    output = config.runtime.output
    for call in range(1, 200):
        place = tmp_path / f"copy-{call}"
        shutil.copytree(output, place)
        copy = changed(config, "runtime", output=place)
        copy = changed(copy, "privacy", ledger=place / "ledgers" / "scans.jsonl")
        code, first = life(copy, call)
        if code == 0:
            break
        assert code == -9
        code, second = life(copy)
        assert code == 0, f"it cannot go on after a kill in call {call}"
        charged = len(lines(copy, "query"))
        assert charged in (ROUNDS, ROUNDS + 1), "an answered round is never paid for again"
        assert len(first) + len(second) <= charged - 2, "every noise was paid for"
        assert len({*first, *second}) == len(first) + len(second)
        run, _ = pe_run(copy)
        assert len(list(run.answers.glob("*.safetensors"))) == ROUNDS
    assert 10 < call < 199


def test_it_ends_when_no_attempt_is_left(config: RunConfig, monkeypatch: Patch) -> None:
    """Then its last candidates are all alike: nobody has voted on them."""
    interrupted(config, monkeypatch, "votes", after=1)
    _, plan = pe_run(config)
    (question,) = plan.queries
    with open_ledger(Run(config).ledger, "scans", None) as ledger:
        while ledger.query_attempts(plan, question) < question.attempts:
            ledger.charge_query(plan, question)
    evolution = only_evolved(config)
    assert evolution.generation == 1
    assert not evolution.noised.any()
    assert pe(config).facts["epsilon"] == plan.stated_epsilon()


def test_images_are_read_once(config: RunConfig, monkeypatch: Patch) -> None:
    interrupted(config, monkeypatch, "next_generation", after=1)
    shutil.rmtree(config.data.path)
    assert only_evolved(config).noised.any()


def test_settings_are_bound_by_the_first_round(config: RunConfig, monkeypatch: Patch) -> None:
    interrupted(config, monkeypatch, "next_generation", after=1)
    for section, values in (
        ("evolution", {"threshold": 0.5}),
        ("sampling", {"steps": 4}),
        ("evolution", {"rounds": 4}),
    ):
        with pytest.raises(UserError, match="other settings: restore those"):
            only_evolved(changed(config, section, **values))
    with pytest.raises(UserError, match="exists with another section `privacy`"):
        only_evolved(changed(config, "privacy", epsilon=0.4))
    only_evolved(changed(config, "optimizer", learning_rate=1.0))  # nothing that it uses
    only_evolved(changed(config, "sampling", count=30))  # the images that come afterwards


def test_a_ledger_that_forgot_rounds_is_refused(config: RunConfig) -> None:
    only_evolved(config)
    ledger = Run(config).ledger
    ledger.write_text("".join(line + "\n" for line in ledger.read_text().splitlines()[:3]))
    with pytest.raises(UserError, match="does not contain what the checkpoint"):
        only_evolved(config)


def test_lost_candidates_are_not_paid_for_by_the_reserve(config: RunConfig) -> None:
    run, _ = pe_run(config)
    only_evolved(config)
    shutil.rmtree(run.directory)
    with pytest.raises(UserError, match="put the run's folder back"):
        only_evolved(config)


def test_answers_of_another_round_are_refused(config: RunConfig) -> None:
    run, _ = pe_run(config)
    only_evolved(config)
    shutil.copy(run.answers / "nearest_votes-0001.safetensors", run.answers / "nearest_votes-0003.safetensors")
    with pytest.raises(UserError, match="was made under another privacy plan"):
        only_evolved(config)


def test_constants_of_votes_are_checked() -> None:
    for wrong in ({"candidates": 0}, {"rounds": 1001}, {"rounds": 1.0}):
        with pytest.raises(ValueError, match="nearest_votes must be"):
            NearestVotes(**({"noise_multiplier": 3.0, "candidates": 5, "rounds": 2} | wrong))  # type: ignore[arg-type]


def test_a_backbone_with_captions_is_told_those_of_the_classes_or_prompts(config: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from stock_models import stable_diffusion

    stable_diffusion(tmp_path / "sd")
    told = config.model_copy(update={"backbone": str(tmp_path / "sd")})
    told = changed(changed(told, "data", channels=3), "privacy", cap=None, public_benchmark=True)
    model = PublicModel(told)
    assert model.texts == ["dark", "light"]
    assert model.first(4).told.tolist() == [0, 1, 0, 1]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dark square\na light one\nnothing\n")
    free = changed(changed(told, "data", labels=(), caption_column="text"), "sampling", prompts=prompts)
    first = PublicModel(free).first(30)
    assert set(first.told.tolist()) == {0, 1, 2}
    assert first.classes.tolist() == [0] * 30
