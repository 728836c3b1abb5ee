"""The DP-SGD classifier: clipped like every private gradient, charged like a run, INTERNAL, and never anything else."""

import itertools
import json
import shutil
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import Tensor

from dpldm.baselines import classifier as module
from dpldm.baselines.classifier import Head, classifier, classifier_run, public_features, scaled, updates
from dpldm.cleaning import COPIES
from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.errors import MissingExtra, UserError
from dpldm.models.autoencoder import Posterior, encode
from dpldm.models.backbone import load_backbone
from dpldm.privacy.entropy import Entropy, SeededEntropy
from dpldm.privacy.ledger import open_ledger, read_ledger
from dpldm.privacy.plan import PrivacyPlan
from dpldm.releasing import release
from dpldm.run import Run, plan_of
from dpldm.train.finetune import finetune
from oracles import assert_equal_sums, clipped_sum_by_loop
from tiny_runs import Means, write_images

Patch = pytest.MonkeyPatch
UPDATES = 3


@pytest.fixture(autouse=True)
def quick(monkeypatch: Patch) -> None:
    """Four features an image, three updates."""
    monkeypatch.setattr(module, "public_features", lambda config: Means())
    monkeypatch.setattr(module, "STEPS", UPDATES)


@pytest.fixture
def config(raw: dict[str, Any], tmp_path: Path) -> RunConfig:
    raw["data"]["test_path"] = str(write_images(tmp_path / "test", seed=1))
    raw["privacy"]["cap"] = [1.0, 2e-3]
    return RunConfig.model_validate(raw)


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def lines(config: RunConfig, event: str) -> list[dict[str, Any]]:
    return [entry for entry in read_ledger(Run(config).ledger) if entry["event"] == event]


def interrupted(config: RunConfig, patch: Patch, after: int) -> None:
    """A run that dies between its draw and its update, `after` updates done."""
    update, count = Head.update, itertools.count()

    def dies(self: Head, gradient: Mapping[str, Tensor]) -> None:
        if next(count) == after:
            raise KeyboardInterrupt
        update(self, gradient)

    with patch.context() as inside:
        inside.setattr(Head, "update", dies)
        with pytest.raises(KeyboardInterrupt):
            classifier(config)


# --- the sum ------------------------------------------------------------------------------------------------------


def made_up(members: Tensor | None) -> PrivateLatents:
    """30 feature vectors; one is null, one has no finite feature."""
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(30, 6, generator=generator, dtype=torch.float64), dim=1)
    rows[4] = float("nan")
    usable = torch.ones(30, dtype=torch.bool)
    usable[7] = False
    return PrivateLatents(Posterior(rows, rows), torch.arange(30) % 3, usable, members)


GROUPS = torch.tensor([[0, 1, 2], [3, 4, -1], [5, -1, -1], [6, 7, 8], [9, 10, 11], [7, -1, -1], [12, 13, -1]])
"""One holds the row that is not finite, one the null record and others, one the null record alone."""


def expected(features: PrivateLatents, head: Head, clip_norm: float) -> tuple[dict[str, Tensor], int]:
    """The definition: for each unit autograd of the mean over its images, where null ones count 0, clipped; the sum."""
    table = torch.arange(30)[:, None] if features.members is None else features.members
    units = [[int(row) for row in unit if row >= 0] for unit in table]
    counting = [unit for unit in units if 4 not in unit and any(row != 7 for row in unit)]

    def loss(number: int) -> Tensor:
        unit = counting[number]
        rows = [row for row in unit if features.usable[row]]
        logits = features.posterior.mean[rows] @ head.network.weight.T + head.network.bias
        return F.cross_entropy(logits, features.labels[rows], reduction="sum") / len(unit)

    return clipped_sum_by_loop(head.network, loss, len(counting), clip_norm), len(counting)


@pytest.mark.parametrize("members", [None, GROUPS], ids=["images", "groups"])
@pytest.mark.parametrize("rows", [4096, 4])
def test_the_sum_is_that_of_a_loop_over_units(
    members: Tensor | None, rows: int, config: RunConfig, monkeypatch: Patch
) -> None:
    """Everybody is in the batch, some gradients are longer than C and some are not; groups, null and NaN records."""
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "BATCH_SHARE", 1.0)
    sums: list[Tensor] = []

    def taped(total: Tensor, deviation: float, entropy: Entropy) -> Tensor:
        sums.append(total.clone())
        return total

    monkeypatch.setattr("dpldm.privacy.mechanism.add_gaussian", taped)
    run, plan = classifier_run(config)
    plan = replace(plan, steps=1, max_grad_norm=0.6, noise_multiplier=1.0)
    assert plan.sampling_probability == 1
    head = Head(6, 3, "made up", plan)
    head.network.double()
    with torch.no_grad():
        head.network.weight.copy_(3 * torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))
    features = made_up(members)
    theirs, counting = expected(features, head, 0.6)
    bound = 0.6 * counting
    run.create()
    with open_ledger(run.ledger, "scans", (1e3, 0.5)) as ledger:
        ledger.register(plan)
        assert len(list(updates(head, features, plan, ledger, run, SeededEntropy(0)))) == 1
    ours = dict(zip(head.trainable, sums, strict=True))
    assert_equal_sums(ours, theirs, 1e-10 if members is None else 1e-6)  # weights of images are float32
    norm = float(torch.cat([total.flatten() for total in theirs.values()]).norm())
    assert 0.6 < norm < 0.95 * bound, "several gradients, and not one direction"


def test_a_feature_vector_is_scaled_by_itself_alone() -> None:
    features = np.random.default_rng(0).random((5, 16)).astype(np.float32)
    together = scaled(features)
    assert torch.equal(together[2:3], scaled(features[2:3]))
    assert together.norm(dim=1).tolist() == pytest.approx([1.0] * 5, abs=1e-6)
    assert torch.isfinite(scaled(np.ones((1, 16), np.float32))).all(), "an image without any feature is no NaN"


# --- what it costs ------------------------------------------------------------------------------------------------


def test_it_is_a_plan_of_its_own_in_the_data_sets_ledger(config: RunConfig) -> None:
    list(finetune(config))
    before = len(lines(config, "attempt"))
    found = classifier(config)
    _, plan = classifier_run(config)
    mine = [entry for entry in lines(config, "attempt") if entry["plan"] == plan.digest()]
    assert [entry["number"] for entry in mine] == [1, 2, 3]
    assert len(lines(config, "attempt")) == before + UPDATES
    assert [entry["constants"]["run"] for entry in lines(config, "plan")] == ["tiny", "tiny/classifier"]
    assert (plan.epsilon, plan.delta, plan.records, plan.unit) == (0.5, 1e-3, 40, "image")
    assert (plan.steps, plan.max_grad_norm, plan.queries) == (UPDATES, module.CLIP_NORM, ())
    assert found.facts["updates"] == UPDATES
    assert found.facts["plan"] == plan.digest()
    assert classifier(config).scores == found.scores, "the same call finds it done"
    assert len(lines(config, "attempt")) == before + UPDATES


def test_epsilon_is_what_dp_accounting_finds(config: RunConfig) -> None:
    """By the library alone: the Gaussian on Poisson samples, T + R times."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    _, plan = classifier_run(config)
    event = PoissonSampledDpEvent(plan.sampling_probability, GaussianDpEvent(plan.noise_multiplier))
    theirs = PLDAccountant(value_discretization_interval=1e-4).compose(SelfComposedDpEvent(event, UPDATES + 5))
    assert plan.reserve_steps == 5
    assert classifier(config).facts["epsilon"] == pytest.approx(theirs.get_epsilon(1e-3), rel=1e-6)
    assert 0.45 < theirs.get_epsilon(1e-3) <= 0.5


def test_what_belongs_to_the_run_alone_is_not_paid_for_twice(config: RunConfig) -> None:
    asks = changed(config, "privacy", histogram_noise=30.0, max_batch_size=40, most_records=60, clipping="automatic")
    assert classifier_run(asks)[1] == classifier_run(config)[1]
    selects = changed(config, "selection", learning_rates=(1e-3, 1e-2))
    assert classifier_run(selects)[1] == classifier_run(config)[1]
    assert classifier_run(changed(config, "privacy", noise="grid"))[1].noise == "grid"


def with_patients(folder: Path) -> str:
    """A table that gives every three images to one patient."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [f"{name},{name.split('/')[0]},{number // 3}" for number, name in enumerate(names)]
    (folder / "metadata.csv").write_text("file_name,label,patient\n" + "\n".join(rows) + "\n")
    return str(folder)


def test_groups_are_units(config: RunConfig) -> None:
    paths = {key: with_patients(getattr(config.data, key)) for key in ("path", "test_path")}
    privacy = {"unit": "group", "max_images_per_group": 2, "records": 12, "expected_batch_size": 6}
    grouped = changed(changed(config, "data", group_column="patient", **paths), "privacy", **privacy)
    grouped = RunConfig.model_validate(grouped.model_dump())
    assert classifier(grouped).facts["unit"] == "group"
    run, plan = classifier_run(grouped)
    assert (plan.unit, plan.images_per_unit, plan.expected_batch_size) == ("group", 2, 3)
    assert "features.safetensors" in COPIES, "what `clean` removes"
    members = load_file(run.private / "features.safetensors")["latents/members"]
    assert members.shape == (14, 2), "40 images of 14 patients, at most two of each"


# --- what it shows ------------------------------------------------------------------------------------------------


def test_accuracy_is_internal_and_lies_inside(config: RunConfig) -> None:
    shown: list[tuple[str, int, int]] = []
    (config.data.path / "dark" / "000.png").write_bytes(b"unreadable")
    (config.data.test_path / "dark" / "000.png").write_bytes(b"unreadable")
    found = classifier(config, lambda *progress: shown.append(progress))
    assert shown == [("classifier, update", number, UPDATES) for number in (1, 2, 3)]
    path = Run(config).private / "baselines" / "classifier.json"
    stored = json.loads(path.read_text())
    assert stored["status"] == "INTERNAL: reads private images, do not publish"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(Run(config).private.stat().st_mode) == 0o700
    assert found.test == 39
    assert stored["scores"]["linear"]["mean"] == found.scores["linear"].mean
    assert {entry.name for entry in Run(config).directory.iterdir()} == {"private", "config.resolved.yaml"}


def test_without_noise_it_learns(config: RunConfig, monkeypatch: Patch) -> None:
    """Two kinds of features, told apart after 30 updates."""
    monkeypatch.setattr(module, "BATCH_SHARE", 1.0)
    run, plan = classifier_run(config)
    plan = replace(plan, steps=30, noise_multiplier=0.0)
    features = made_up(None)
    rows = features.posterior.mean.float().nan_to_num()
    labels = (rows[:, 0] > 0).long()
    head = Head(6, 2, "made up", plan)
    run.create()
    with open_ledger(run.ledger, "scans", (1e3, 0.5)) as ledger:
        ledger.register(plan)
        known = PrivateLatents(Posterior(rows, rows), labels, features.usable)
        assert len(list(updates(head, known, plan, ledger, run, SeededEntropy(0)))) == 30
    assert (head.predict(rows) == labels.numpy()).mean() > 0.9


def test_a_published_set_is_no_secret(config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(changed(config, "privacy", cap=None, public_benchmark=True).model_dump(mode="json")))
    assert main(["baseline", "classifier", "--config", str(path)]) == 0
    text = capsys.readouterr().out
    assert "baseline classifier (public benchmark)" in text
    assert "baseline classifier 3/3  classifier, update" in text
    assert (
        main(["baseline", "classifier", "--config", str(path), "--name", "b", "--privacy.public_benchmark=false"]) == 2
    )


def test_the_command_says_that_it_is_internal(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["baseline", "classifier", "--config", str(path)]) == 0
    text = capsys.readouterr().out
    assert "baseline classifier (INTERNAL: reads private images, do not publish)" in text
    assert "linear accuracy" in text
    assert "0.50" in text, "the stated epsilon"
    timings = (Run(config).private / "timings.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in timings] == ["baseline classifier"]


# --- it goes on, or is refused --------------------------------------------------------------------------------------


def test_a_killed_baseline_goes_on_and_what_it_lost_is_charged(config: RunConfig, monkeypatch: Patch) -> None:
    interrupted(config, monkeypatch, after=1)
    assert len(lines(config, "attempt")) == 2
    found = classifier(config)
    assert found.facts["updates"] == UPDATES
    assert [entry["number"] for entry in lines(config, "attempt")] == [1, 2, 3, 4]


def test_images_are_read_once(config: RunConfig, monkeypatch: Patch) -> None:
    """After the first update the features are bound: what happens to a file later changes nothing."""
    interrupted(config, monkeypatch, after=1)
    shutil.rmtree(config.data.path)
    assert classifier(config).facts["updates"] == UPDATES


def test_it_ends_when_no_attempt_is_left(config: RunConfig, monkeypatch: Patch) -> None:
    interrupted(config, monkeypatch, after=1)
    _, plan = classifier_run(config)
    with open_ledger(Run(config).ledger, "scans", None) as ledger:
        while ledger.attempts(plan) < plan.attempts:
            ledger.charge(plan)
    assert classifier(config).facts["updates"] == 1


def test_the_refusals_of_a_run_hold(config: RunConfig, monkeypatch: Patch) -> None:
    interrupted(config, monkeypatch, after=1)
    with pytest.raises(UserError, match="exists with another section `privacy`"):
        classifier(changed(config, "privacy", epsilon=0.4))
    monkeypatch.setattr(Means, "name", "other features")
    with pytest.raises(UserError, match="begun on other features than other features"):
        classifier(config)
    monkeypatch.undo()


def test_a_ledger_that_forgot_attempts_is_refused(config: RunConfig, monkeypatch: Patch) -> None:
    interrupted(config, monkeypatch, after=2)
    ledger = Run(config).ledger
    ledger.write_text("".join(line + "\n" for line in ledger.read_text().splitlines()[:3]))
    with pytest.raises(UserError, match="does not contain what the checkpoint"):
        classifier(config)


def test_a_lost_folder_is_not_paid_for_by_the_reserve(config: RunConfig) -> None:
    run, plan = classifier_run(config)
    classifier(config)
    with open_ledger(run.ledger, "scans", None) as ledger:
        while ledger.attempts(plan) <= plan.reserve_steps:
            ledger.charge(plan)
    shutil.rmtree(run.directory)
    with pytest.raises(UserError, match="put the run's folder back"):
        classifier(config)


def test_the_cap_must_be_declared_before_a_baseline_comes_first(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"declare privacy\.cap, the total"):
        classifier(changed(config, "privacy", cap=None))
    assert not Run(config).ledger.exists()
    list(finetune(changed(config, "privacy", cap=None)))
    with pytest.raises(UserError, match=r"has a cap of epsilon 0\.5"):
        classifier(changed(config, "privacy", cap=None))


def test_without_classes_or_test_images_nothing_is_charged(config: RunConfig) -> None:
    with pytest.raises(UserError, match=r"declare the classes with data\.labels"):
        classifier(changed(config, "data", labels=()))
    with pytest.raises(UserError, match=r"set data\.test_path"):
        classifier(changed(config, "data", test_path=None))
    with pytest.raises(UserError, match=r"privacy\.records is blank"):
        classifier(changed(config, "privacy", records=None))
    assert not Run(config).ledger.exists()


def test_a_classifier_is_no_model_to_release(config: RunConfig) -> None:
    classifier(config)
    run, _ = classifier_run(config)
    for asked in (config, run.config):
        with pytest.raises(UserError, match=r"has no tuned model|made under another privacy plan"):
            release(asked, "model")


# --- features -----------------------------------------------------------------------------------------------------


def test_without_the_extra_the_encoder_serves(config: RunConfig, monkeypatch: Patch) -> None:
    def missing(**settings: object) -> None:
        raise MissingExtra("efficientnet-lite-pytorch", "features", "The EfficientNet feature extractor")

    monkeypatch.setattr(module, "EfficientNetLite0", missing)
    extractor, backbone = public_features(config), load_backbone(config.backbone)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
    found = extractor(images)
    assert found.shape == (3, extractor.dim) == (3, 32)
    np.testing.assert_allclose(found, encode(backbone.autoencoder, images).mean.flatten(1).numpy(), atol=1e-6)
    assert extractor.name == f"tiny-encoder:{backbone.digest[:12]}"


def test_a_plan_of_the_baseline_is_a_plan_like_any_other(config: RunConfig) -> None:
    _, plan = classifier_run(config)
    assert PrivacyPlan.from_constants(plan.constants()) == plan
    assert plan.digest() != plan_of(config).digest()
    with pytest.raises(ValueError, match="name"):
        RunConfig.model_validate(config.model_dump() | {"name": plan.run})
