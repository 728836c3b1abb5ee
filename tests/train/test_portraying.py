"""`method: portraits`: a run without gradients, from its plan to a release and its report."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from dpldm.baselines.classifier import classifier_run
from dpldm.baselines.noiseless import noiseless
from dpldm.baselines.pe import pe_run
from dpldm.baselines.portraits import portraits_run
from dpldm.cleaning import clean
from dpldm.cli import main
from dpldm.config import OF_DIFFUSION, OF_PORTRAITS, OF_SOLVERS, PrivacyConfig, RunConfig
from dpldm.errors import UserError
from dpldm.evaluation import evaluate as evaluation
from dpldm.models.autoencoder import decode, encode
from dpldm.models.backbone import load_backbone
from dpldm.planning import choices, plan, start_of
from dpldm.privacy.entropy import Entropy, SystemEntropy
from dpldm.privacy.ledger import read_ledger
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.plan import asking_alone
from dpldm.rehearsing import rehearsal
from dpldm.releasing import release
from dpldm.reporting import report
from dpldm.run import Run, declared_constants, disk_space, latent_entries, paid_plan, plan_of
from dpldm.sampling import load_synthetic, sample
from dpldm.train.finetune import finetune
from dpldm.train.memory import ALLOCATOR, memory_of_spreads
from dpldm.train.portraying import portray
from dpldm.train.public_data import step_generator
from dpldm.tuned import portraits_of
from dpldm.verifying import verify
from tiny_runs import Means, write_images

Patch = pytest.MonkeyPatch


@pytest.fixture
def portrayed(raw: dict[str, Any], tmp_path: Path, monkeypatch: Patch) -> dict[str, Any]:
    """Raw settings of a run with portraits."""
    monkeypatch.setattr(evaluation, "extractor_of", lambda config: Means())
    for section, names in (("privacy", OF_DIFFUSION), ("sampling", OF_SOLVERS)):
        for name in names:
            raw[section].pop(name, None)
    raw["data"]["test_path"] = str(write_images(tmp_path / "test", seed=1))
    return raw | {"method": "portraits"}


@pytest.fixture
def config(portrayed: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(portrayed)


def charged(config: RunConfig) -> list[str]:
    return [entry["query"] for entry in read_ledger(Run(config).ledger) if entry["event"] == "query"]


# --- settings -------------------------------------------------------------------------------------------------------

TUNING: Mapping[str, Any] = {
    "expected_batch_size": 20,
    "steps": 2,
    "reserve_steps": 1,
    "max_grad_norm": 0.5,
    "draws_per_example": 2,
    "max_batch_size": 30,
    "most_records": 60,
    "clipping": "automatic",
    "histogram_noise": 30.0,
    "class_means_noise": 30.0,
    "public_classes_noise": 30.0,
    "class_spreads_noise": 30.0,
}


@pytest.mark.parametrize("name", OF_DIFFUSION)
def test_a_setting_of_gradients_is_refused_and_not_passed_over(name: str, portrayed: dict[str, Any]) -> None:
    portrayed["privacy"][name] = TUNING[name]
    if name == "class_spreads_noise":
        portrayed["privacy"]["class_means_noise"] = 30.0
    with pytest.raises(ValidationError, match=rf"privacy\.{name}\b.*: not for method: portraits"):
        RunConfig.model_validate(portrayed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trainable", "all"),
        ("tune_embedder", False),
        ("optimizer.learning_rate", 0.5),
        ("selection.learning_rates", [1e-3, 1e-2]),
        ("sampling.sampler", "ddim"),
        ("sampling.steps", 3),
        ("sampling.eta", 0.5),
        ("sampling.guidance", 2.0),
        ("sampling.prompts", "prompts.txt"),
    ],
)
def test_other_settings_of_tuning_and_solvers_are_refused_too(name: str, value: Any, portrayed: dict[str, Any]) -> None:
    section, _, key = name.partition(".")
    changed = portrayed.get(section, {}) | {key: value} if key else value
    with pytest.raises(ValidationError, match=rf"{name}: not for method: portraits"):
        RunConfig.model_validate(portrayed | {section: changed})


def test_all_that_is_in_the_way_is_named_at_once(portrayed: dict[str, Any]) -> None:
    portrayed["privacy"] |= {"steps": 2, "clipping": "automatic"}
    with pytest.raises(ValidationError, match=r"privacy\.steps, privacy\.clipping, sampling\.guidance: not for"):
        RunConfig.model_validate(portrayed | {"sampling": {"guidance": 2}})


def test_what_is_not_heeded_is_not_written_down(config: RunConfig) -> None:
    """So that other defaults of a later version do not make the run another one."""
    portray(config)
    written = yaml.safe_load(Run(config).resolved_config.read_text())
    assert {"trainable", "tune_embedder", "optimizer", "selection"}.isdisjoint(written)
    assert set(OF_DIFFUSION).isdisjoint(written["privacy"])
    assert set(OF_SOLVERS).isdisjoint(written["sampling"])
    assert RunConfig.model_validate(written) == config


def test_every_setting_of_privacy_is_of_one_method_or_of_both() -> None:
    both = {
        *("dataset_id", "unit", "max_images_per_group", "records", "epsilon", "delta", "noise", "ledger", "cap"),
        "public_benchmark",
    }
    assert both | {*OF_DIFFUSION, *OF_PORTRAITS} == set(PrivacyConfig.model_fields)
    assert set(TUNING) == set(OF_DIFFUSION)


def test_it_is_for_classes(portrayed: dict[str, Any]) -> None:
    portrayed["data"]["labels"] = []
    with pytest.raises(ValidationError, match=r"method: portraits is for classes: declare data\.labels"):
        RunConfig.model_validate(portrayed)


def test_without_it_settings_of_questions_want_their_question(portrayed: dict[str, Any]) -> None:
    portrayed["privacy"]["class_parts"] = 3
    RunConfig.model_validate(portrayed)
    with pytest.raises(ValidationError, match=r"privacy\.class_parts is for privacy\.class_means_noise or method"):
        RunConfig.model_validate(portrayed | {"method": "diffusion"})


def test_finetune_asks_and_has_no_steps(config: RunConfig) -> None:
    assert list(finetune(config)) == []
    assert charged(config) == ["class_means", "class_spreads"]


# --- the plan -------------------------------------------------------------------------------------------------------


def test_its_plan_is_the_baselines_under_the_runs_own_name(config: RunConfig) -> None:
    beside = config.model_copy(update={"privacy": config.privacy.model_copy(update={"cap": (1.0, 2e-3)})})
    _, of_baseline = portraits_run(beside)
    own, other = plan_of(config).constants(), of_baseline.constants()
    assert other.pop("run") == "tiny/portraits"
    assert own.pop("run") == "tiny"
    assert own == other
    assert paid_plan(config) == plan_of(config)


def test_all_of_epsilon_is_used_and_no_more(config: RunConfig) -> None:
    found = plan_of(config)
    assert (found.steps, found.attempts, found.noise_multiplier) == (0, 0, 0)
    assert 0.98 * found.epsilon < found.stated_epsilon() <= found.epsilon
    with pytest.raises(ValueError, match="hardly any noise is left"):
        asking_alone(declared_constants(config.model_copy(update={"privacy": _with_epsilon(config, 95.0)})))


def _with_epsilon(config: RunConfig, epsilon: float) -> PrivacyConfig:
    return config.privacy.model_copy(update={"epsilon": epsilon})


@pytest.mark.parametrize("timed", [True, False])
def test_a_forecast_tells_what_noise_there_is_and_opens_no_image(timed: bool, config: RunConfig) -> None:
    shutil.rmtree(config.data.path)
    found = plan(config, timed=timed)
    assert (found.trainable_parameters, found.noise_to_signal) == (0, None)
    assert found.memory_bytes is None or found.memory_bytes > 10**8
    entries = encode(load_backbone(config.backbone).autoencoder, np.zeros((1, 16, 16, 1), np.uint8)).mean.numel()
    assert found.noise_in_means == pytest.approx(found.plan.queries[0].noise_multiplier * entries**0.5 / 20)
    assert (found.seconds is not None, found.seconds_of_drawing is not None) == (timed, timed)
    assert found.images_to_draw == 24
    assert json.loads(json.dumps(found.to_json()))["constants"] == found.plan.constants()


@pytest.mark.parametrize("of", ["portraits", "a start"])
def test_what_does_not_fit_into_memory_is_refused_before_the_charge(
    of: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies for lack of memory after the charge has lost it."""
    asks = {"class_means_noise": 30.0, "class_spreads_noise": 30.0}
    started = {"method": "diffusion", "privacy": config.privacy.model_copy(update=asks)}
    asking = config if of == "portraits" else config.model_copy(update=started)
    constants = plan_of(asking)
    needed = ALLOCATOR * memory_of_spreads(constants.queries, constants.noise, 2, latent_entries(config))
    monkeypatch.setattr("dpldm.train.asking.free_of_machine", lambda: needed - 1)
    with pytest.raises(UserError, match=r"Covariances of 2 classes take .* more than is free"):
        list(finetune(asking))
    assert not Run(config).ledger.exists() or not read_ledger(Run(config).ledger)[1:]
    monkeypatch.setattr("dpldm.train.asking.free_of_machine", lambda: None)
    list(finetune(asking))
    Run(config).checkpoint.unlink()
    monkeypatch.setattr("dpldm.train.asking.free_of_machine", lambda: 0)
    if of == "portraits":
        list(finetune(asking))  # nothing is asked any more


def test_there_are_no_choices_of_what_is_tuned(config: RunConfig) -> None:
    with pytest.raises(UserError, match="there is nothing to choose"):
        choices(config)


# --- the run --------------------------------------------------------------------------------------------------------


def test_what_is_drawn_is_what_the_portraits_say(config: RunConfig) -> None:
    known = portray(config)
    list(sample(config))
    drawn = load_synthetic(config)
    assert drawn.labels.tolist() == [0, 1] * 12
    labels = torch.from_numpy(drawn.labels[:10])
    expected = decode(load_backbone(config.backbone).autoencoder, known.draw(labels, step_generator(0, 0)), 16)
    assert np.array_equal(drawn.images[:10], expected)
    assert torch.equal(portraits_of(config).means, known.means)


def test_the_same_call_asks_nothing_again(config: RunConfig) -> None:
    first = portray(config)
    shutil.rmtree(config.data.path)
    Run(config).latents.unlink()
    assert torch.equal(portray(config).factors, first.factors)
    assert charged(config) == ["class_means", "class_spreads"]


def test_other_settings_are_refused_once_it_is_paid_for(config: RunConfig) -> None:
    portray(config)
    other = config.model_copy(update={"privacy": _with_epsilon(config, 0.4)})
    with pytest.raises(UserError, match="exists with another section `privacy`"):
        portray(other)
    with pytest.raises(UserError, match="exists with another section `privacy`"):
        list(sample(other))
    assert charged(config) == ["class_means", "class_spreads"]


def test_nothing_is_drawn_before_the_answers(config: RunConfig) -> None:
    with pytest.raises(UserError, match="run `dpldm finetune` first"):
        list(sample(config))


def test_noise_is_the_systems(config: RunConfig, monkeypatch: Patch) -> None:
    heard: list[Entropy] = []

    def noised(total: Tensor, deviation: float, entropy: Entropy) -> Tensor:
        heard.append(entropy)
        return add_gaussian(total, deviation, entropy)

    monkeypatch.setattr("dpldm.privacy.queries.add_gaussian", noised)
    portray(config)
    assert [type(entropy) for entropy in heard] == [SystemEntropy, SystemEntropy]


def test_what_cannot_be_released_is_refused_before_it_is_paid_for(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.heeded()))
    assert main(["run", "--config", str(path), "--what", "both"]) == 2
    assert "there is no model to release" in capsys.readouterr().err
    assert not Run(config).ledger.exists()


def test_groups_of_images_end_in_a_release_too(portrayed: dict[str, Any]) -> None:
    folder = Path(portrayed["data"]["path"])
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [f"{name},{name.split('/')[0]},P{number // 2}" for number, name in enumerate(names)]
    (folder / "metadata.csv").write_text("file_name,label,patient\n" + "\n".join(rows) + "\n")
    portrayed["data"] |= {"group_column": "patient"}
    portrayed["privacy"] |= {"unit": "group", "max_images_per_group": 2, "records": 20, "noise": "grid"}
    grouped = RunConfig.model_validate(portrayed)
    portray(grouped)
    list(sample(grouped))
    directory = release(grouped)
    assert [check for check in verify(directory) if not check.passed] == []
    assert "Gaussian queries (grid noise)" in (directory / "README.md").read_text()


def test_the_disk_is_asked_for_answers_and_not_for_a_network(config: RunConfig) -> None:
    assert disk_space(config) < disk_space(config.model_copy(update={"method": "diffusion"}))
    more = config.model_copy(update={"data": config.data.model_copy(update={"labels": tuple("abcdefgh")})})
    assert disk_space(more) > disk_space(config)


def test_a_rehearsal_of_it_is_one_of_portraits(config: RunConfig) -> None:
    made = rehearsal(config)
    assert made.method == "portraits"
    assert plan_of(made).queries == plan_of(config).queries
    assert RunConfig.model_validate(made.heeded()) == made


def test_a_ledger_that_lacks_the_answers_is_refused(config: RunConfig, tmp_path: Path) -> None:
    portray(config)
    elsewhere = config.privacy.model_copy(update={"ledger": tmp_path / "other.jsonl"})
    with pytest.raises(UserError, match="does not contain what the checkpoint"):
        portray(config.model_copy(update={"privacy": elsewhere}))


def test_its_release_is_verified_and_names_no_solver(config: RunConfig) -> None:
    portray(config)
    list(sample(config))
    with pytest.raises(UserError, match="there is no model to release"):
        release(config, "model")
    directory = release(config)
    assert [check for check in verify(directory) if not check.passed] == []
    declared = json.loads((directory / "privacy.json").read_text())["declared_constants"]
    assert set(declared["sampling"]) == {"count", "keep", "label_counts", "seed", "batch_size"}
    assert {"trainable", "optimizer"}.isdisjoint(declared)


def test_the_command_does_it_all_and_a_report_is_made_of_it(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.heeded()))
    assert main(["run", "--config", str(path)]) == 0
    text = capsys.readouterr().out
    assert "query class_spreads" in text
    assert "noise in a class's mean" in text
    assert "portraits: the questions are answered; the release states epsilon 0.50" in text
    for word in ("sampling probability", "noise-to-signal", "fine-tuning here"):
        assert word not in text
    made = report(Run(config).directory)
    page = made.release.read_text()
    assert "There are no gradients" in page
    assert "became updates" not in page
    assert "from the noised Gaussians, seed 0" in page
    assert "trade-off is that of a Gaussian with mu" in page
    assert "noised means and covariances of private images" in made.registry.read_text()
    assert [check for check in verify(Run(config).release) if not check.passed] == []
    assert main(["audit", "--release", str(Run(config).release)]) == 2
    assert "queries without gradients" in capsys.readouterr().err


def test_it_starts_from_portraits(config: RunConfig) -> None:
    assert str(start_of(config)) == "from portraits of the classes"


def test_baselines_beside_it_are_what_they_are_beside_a_tuned_run(config: RunConfig, raw: dict[str, Any]) -> None:
    """Their plans, and that a baseline without noise has nothing to tune."""
    roomy = config.model_copy(update={"privacy": config.privacy.model_copy(update={"cap": (5.0, 1e-2)})})
    tuned = roomy.model_copy(update={"method": "diffusion"})
    for plan_of_baseline in (classifier_run, pe_run, portraits_run):
        run, plan = plan_of_baseline(roomy)
        shutil.rmtree(Run(roomy).directory)
        assert plan == plan_of_baseline(tuned)[1]
        assert run.config.method == ("portraits" if plan_of_baseline is portraits_run else "diffusion")
        shutil.rmtree(Run(roomy).directory)
    published = {"privacy": config.privacy.model_copy(update={"public_benchmark": True})}
    with pytest.raises(UserError, match="tunes nothing"):
        noiseless(config.model_copy(update=published))


def test_clean_keeps_what_more_images_are_drawn_from(config: RunConfig) -> None:
    portray(config)
    list(sample(config))
    release(config)
    found = clean(Run(config).directory)
    assert found.removed == [Run(config).latents]
    reasons = dict(found.kept)
    assert reasons[Run(config).checkpoint] == "paid for, and it draws more images; --force removes it"
    more = config.model_copy(update={"sampling": config.sampling.model_copy(update={"count": 30})})
    list(sample(more))
    assert len(load_synthetic(more).labels) == 30
