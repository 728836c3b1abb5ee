"""Portraits alone: two answers for all of epsilon, charged before they are given, and images that follow from them."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scipy.stats import norm
from torch import Tensor

from dpldm.baselines.portraits import portraits, portraits_run
from dpldm.baselines.shown import released
from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.evaluation import evaluate as evaluation
from dpldm.models.backbone import load_backbone, sha256_of
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.entropy import Entropy, SystemEntropy
from dpldm.privacy.ledger import read_ledger
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.questions import LEAST_NOISE
from dpldm.report.document import BASELINES
from dpldm.run import Run, plan_of
from dpldm.train import asking
from dpldm.train.checkpoint import load_checkpoint
from dpldm.train.finetune import finetune
from dpldm.train.portraits import Portraits
from dpldm.train.portraying import asked
from dpldm.verifying import verify
from tiny_runs import Means, write_images

Patch = pytest.MonkeyPatch


@pytest.fixture
def config(raw: dict[str, Any], tmp_path: Path, monkeypatch: Patch) -> RunConfig:
    monkeypatch.setattr(evaluation, "extractor_of", lambda config: Means())
    raw["data"]["test_path"] = str(write_images(tmp_path / "test", seed=1))
    raw["privacy"]["cap"] = [1.0, 2e-3]
    return RunConfig.model_validate(raw)


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def charged(config: RunConfig) -> list[str]:
    return [entry["query"] for entry in read_ledger(Run(config).ledger) if entry["event"] == "query"]


def only_asked(config: RunConfig) -> Portraits:
    run, plan = portraits_run(config)
    return asked(run, plan, config, load_backbone(config.backbone), SystemEntropy())


def without_noise(patch: Patch) -> None:
    patch.setattr("dpldm.privacy.queries.add_gaussian", lambda total, deviation, entropy: total)


# --- what it costs --------------------------------------------------------------------------------------------------


def test_it_is_a_plan_of_its_own_in_the_data_sets_ledger(config: RunConfig) -> None:
    list(finetune(config))
    found = portraits(config)
    _, plan = portraits_run(config)
    plans = [entry["constants"]["run"] for entry in read_ledger(Run(config).ledger) if entry["event"] == "plan"]
    assert plans == ["tiny", "tiny/portraits"]
    assert charged(config) == ["class_means", "class_spreads"]
    assert (plan.epsilon, plan.delta, plan.records, plan.unit) == (0.5, 1e-3, 40, "image")
    assert (plan.steps, plan.attempts, plan.sampling_probability) == (0, 0, 1)
    assert PrivacyPlan.from_constants(json.loads(json.dumps(plan.constants()))) == plan
    assert portraits(config).scores == found.scores, "the same call finds it done"
    assert charged(config) == ["class_means", "class_spreads"]


@pytest.mark.parametrize("reserve", [0, 2])
def test_epsilon_is_that_of_as_many_gaussians_as_may_be_asked(reserve: int, config: RunConfig) -> None:
    """By the closed form of one Gaussian (Balle and Wang 2018, theorem 8), the noise being that of sensitivity 1."""
    _, plan = portraits_run(changed(config, "privacy", query_reserve=reserve))
    means, spreads = plan.queries
    assert means.noise_multiplier == spreads.noise_multiplier
    assert means.attempts == spreads.attempts == 1 + reserve
    mu, epsilon = math.sqrt(2 * (1 + reserve)) / means.noise_multiplier, plan.stated_epsilon()
    delta = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert 0.98e-3 < delta <= 1e-3
    assert 0.49 < epsilon <= 0.5 < plan.stated_epsilon(Adjacency.REPLACE_ONE)


def test_noise_is_the_systems_and_as_large_as_the_plan_says(config: RunConfig, monkeypatch: Patch) -> None:
    heard: list[tuple[float, Entropy]] = []

    def noised(total: Tensor, deviation: float, entropy: Entropy) -> Tensor:
        heard.append((deviation, entropy))
        return add_gaussian(total, deviation, entropy)

    monkeypatch.setattr("dpldm.privacy.queries.add_gaussian", noised)
    portraits(config)
    _, plan = portraits_run(config)
    assert [deviation for deviation, _ in heard] == [question.noise_multiplier for question in plan.queries]
    assert all(isinstance(entropy, SystemEntropy) for _, entropy in heard)


def test_parts_clips_and_kind_of_noise_are_the_configs(config: RunConfig) -> None:
    given = changed(config, "privacy", class_parts=3, class_means_noise=9.0, class_means_clip=2.0, noise="grid")
    _, plan = portraits_run(given)
    means, spreads = plan.queries
    assert (means.constants()["parts"], means.constants()["clip_norm"], plan.noise) == (3, 2.0, "grid")
    assert spreads.noise_multiplier != 9.0, "the noise follows from epsilon"


def test_the_reserve_of_a_runs_own_questions_is_the_configs(config: RunConfig) -> None:
    given = changed(config, "privacy", histogram_noise=30.0, class_means_noise=30.0, query_reserve=1)
    assert [question.reserve for question in plan_of(given).queries] == [1, 1]


@pytest.mark.parametrize("reserve", [0, 1])
def test_what_is_charged_and_not_answered_is_charged_again_or_never(
    reserve: int, config: RunConfig, monkeypatch: Patch
) -> None:
    def dies(*given: Any) -> Tensor:
        raise KeyboardInterrupt

    config = changed(config, "privacy", query_reserve=reserve)
    with monkeypatch.context() as inside:
        inside.setattr("dpldm.privacy.queries.add_gaussian", dies)
        with pytest.raises(KeyboardInterrupt):
            only_asked(config)
    assert charged(config) == ["class_means"]
    if reserve == 0:
        with pytest.raises(UserError, match="No attempt is left at the query class_means of 'tiny/portraits', of 1"):
            only_asked(config)
    else:
        only_asked(config)
        assert charged(config) == ["class_means", "class_means", "class_spreads"]


def test_a_kill_between_the_answers_costs_nothing_and_moves_no_centre(config: RunConfig, monkeypatch: Patch) -> None:
    real = asking.spread_sums
    seen: list[Tensor] = []

    def dies(question: Any, places: Any, latents: Tensor, centres: Tensor) -> Tensor:
        seen.append(centres)
        if len(seen) == 1:
            raise KeyboardInterrupt
        return real(question, places, latents, centres)

    monkeypatch.setattr(asking, "spread_sums", dies)
    with pytest.raises(KeyboardInterrupt):
        only_asked(config)
    only_asked(config)
    assert charged(config) == ["class_means", "class_spreads", "class_spreads"]
    assert torch.equal(*seen)


def test_nothing_is_reserved_for_answers_of_another_plan_or_ledger(config: RunConfig, monkeypatch: Patch) -> None:
    """Neither with a finished baseline nor with answers alone."""
    only_asked(config)
    run, plan = portraits_run(config)
    before = len(read_ledger(Run(config).ledger))
    other = changed(config, "privacy", query_reserve=1)
    for _ in ("with a checkpoint", "with answers alone"):
        with pytest.raises(UserError, match=r"under another privacy plan|another section"):
            only_asked(other)
        moved = replace(run, config=changed(run.config, "privacy", ledger=run.directory / "ledger.jsonl"))
        with pytest.raises(UserError, match=r"does not contain what the (answer|checkpoint)"):
            asked(moved, plan, config, load_backbone(config.backbone), SystemEntropy())
        assert len(read_ledger(Run(config).ledger)) == before
        assert not any(entry["event"] == "plan" for entry in read_ledger(moved.ledger))
        run.checkpoint.unlink(missing_ok=True)


def test_a_finished_one_needs_no_private_image(config: RunConfig) -> None:
    found = only_asked(config)
    run, _ = portraits_run(config)
    run.latents.unlink()
    shutil.rmtree(config.data.path)
    assert torch.equal(only_asked(config).factors, found.factors)
    assert torch.equal(only_asked(config).means, found.means)


def test_what_cannot_be_is_refused_before_anything_is_charged(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"declare the classes with data\.labels"):
        portraits(changed(config, "data", labels=()))
    with pytest.raises(UserError, match=r"set data\.test_path"):
        portraits(changed(config, "data", test_path=None))
    with pytest.raises(UserError, match=r"baseline portraits costs .* declare privacy\.cap"):
        portraits(changed(config, "privacy", cap=None))
    with pytest.raises(UserError, match="class_parts is 9, and the backbone has 5 classes"):
        portraits(changed(config, "privacy", class_parts=9, class_means_noise=1.0))
    with pytest.raises(UserError, match=r"At this privacy\.epsilon hardly any noise is left"):
        portraits(changed(config, "privacy", epsilon=90.0, cap=(90.0, 1e-3)))
    assert not Run(config).ledger.exists()


# --- what comes out -------------------------------------------------------------------------------------------------


def test_draws_are_about_the_mean_of_their_class(config: RunConfig, monkeypatch: Patch) -> None:
    """With as little noise as may be declared, and none drawn: against the latents themselves."""
    without_noise(monkeypatch)
    monkeypatch.setattr("dpldm.privacy.plan.calibrate_noise", lambda *given: LEAST_NOISE)
    config = changed(config, "privacy", class_means_clip=3.0, class_means_noise=1.0)
    known = only_asked(config)
    run, _ = portraits_run(config)
    cache = load_checkpoint(run.latents)[0]["latents"]
    for label in (0, 1):
        own = cache["mean"][cache["labels"] == label].flatten(1).mean(0)
        drawn = known.draw(torch.full((20_000,), label), torch.Generator().manual_seed(0)).flatten(1).mean(0)
        assert torch.cosine_similarity(drawn, own, dim=0) > 0.95
        assert 0.7 < drawn.norm() / own.norm() < 1.05, "shrinking takes off, and never adds"


def test_its_images_are_a_release_that_verify_accepts(config: RunConfig) -> None:
    portraits(config)
    directory = released(config, "portraits")
    assert [check for check in verify(directory) if not check.passed] == []
    statement = json.loads((directory / "privacy.json").read_text())
    assert (statement["updates"], statement["mechanism"]) == (0, "Gaussian queries (float noise)")
    assert statement["guarantee"]["covers"] == "all query answers, hence every image made from them"
    assert {"optimizer", "evolution"}.isdisjoint(statement["declared_constants"])
    card, data_card = ((directory / name).read_text() for name in ("README.md", "synthetic/README.md"))
    assert "query class_spreads | noise multiplier" in card
    assert "updates made" not in card
    assert "gaussian-mechanism" in data_card
    assert "mixture of Gaussians" in data_card
    assert "dpmsolver" not in data_card


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("epsilon", lambda statement: statement["plan"]["queries"][1].update(noise_multiplier=1.0)),
        ("epsilon", lambda statement: statement["plan"]["queries"][0].update(reserve=50)),
        ("statement", lambda statement: statement["declared_constants"].update(optimizer={})),
        ("statement", lambda statement: statement["declared_constants"].update(evolution={})),
        ("what it covers", lambda statement: statement.update(mechanism="none")),
    ],
)
def test_a_wrong_statement_is_rejected(name: str, change: Callable[[dict[str, Any]], None], config: RunConfig) -> None:
    portraits(config)
    path = released(config, "portraits") / "privacy.json"
    statement = json.loads(path.read_text())
    change(statement)
    path.write_text(json.dumps(statement))
    assert name in {check.name for check in verify(path.parent) if not check.passed}


def test_on_a_grid_it_ends_the_same_way(config: RunConfig) -> None:
    exact = changed(config, "privacy", noise="grid")
    portraits(exact)
    directory = released(exact, "portraits")
    assert [check for check in verify(directory) if not check.passed] == []
    assert "Gaussian queries (grid noise)" in (directory / "README.md").read_text()


def test_persons_count_once_however_many_images_they_have(config: RunConfig, monkeypatch: Patch) -> None:
    """By the counts before their noise: 7 persons of one class and 8 of the other, of up to three images."""
    for folder in (config.data.path, config.data.test_path):
        assert folder is not None
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
        rows = [f"{name},{name.split('/')[0]},{name.split('/')[0]}{number // 3}" for number, name in enumerate(names)]
        (folder / "metadata.csv").write_text("file_name,label,patient\n" + "\n".join(rows) + "\n")
    grouped = changed(config, "data", group_column="patient")
    grouped = changed(grouped, "privacy", unit="group", max_images_per_group=2, records=12, expected_batch_size=6)
    totals: list[Tensor] = []
    real = asking.class_sums

    def kept(*given: Any) -> Tensor:
        totals.append(real(*given))
        return totals[-1]

    monkeypatch.setattr(asking, "class_sums", kept)
    portraits(RunConfig.model_validate(grouped.model_dump()))
    _, plan = portraits_run(grouped)
    weight = plan.queries[0].constants()["count_weight"]
    persons = totals[0][:, -1].sum() * math.hypot(1, weight) / weight
    assert persons == pytest.approx(15)
    assert [check for check in verify(released(grouped, "portraits")) if not check.passed] == []


def test_a_model_is_no_part_of_it(config: RunConfig) -> None:
    """Weights come from gradients, and this plan pays for none."""
    portraits(config)
    directory = released(config, "portraits")
    shutil.copytree(Path(config.backbone), directory / "model")
    path = directory / "privacy.json"
    statement = json.loads(path.read_text())
    statement["files"] |= {
        file.relative_to(directory).as_posix(): sha256_of(file)
        for file in (directory / "model").rglob("*")
        if file.is_file()
    }
    path.write_text(json.dumps(statement))
    assert "model" in {check.name for check in verify(directory) if not check.passed}


def test_every_baseline_has_its_place_in_the_holders_report(config: RunConfig) -> None:
    assert set(BASELINES) == {"classifier", "pe", "portraits", "real", "noiseless"}


def test_the_command(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["baseline", "portraits", "--config", str(path)]) == 0
    text = capsys.readouterr().out
    assert "baseline portraits (INTERNAL: reads private images, do not publish)" in text
    assert "cnn accuracy" in text
    assert main(["ledger", "show", str(Run(config).ledger)]) == 0
    assert "tiny/portraits: epsilon 0.5, delta 0.001, queries alone, no gradients" in capsys.readouterr().out
    assert main(["report", str(released(config, "portraits"))]) == 2
    assert "reports are for runs" in capsys.readouterr().err
