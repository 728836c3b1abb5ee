"""`plan`: right numbers, without an image, a ledger line or a trace on disk."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.models.backbone import load_backbone
from dpldm.models.denoiser import adapt_to_labels
from dpldm.outlook import HARD_TO_LEARN, Verdict
from dpldm.planning import Forecast, choices, plan
from dpldm.privacy.accounting import Adjacency
from dpldm.report.forecast import forecast_table
from dpldm.report.wording import upper
from dpldm.sampling import Sampler
from tiny_runs import ASKED


def forecast(raw: dict[str, Any], *, timed: bool = False, **changes: Any) -> Forecast:
    return plan(RunConfig.model_validate(raw | changes), timed=timed)


def shown(made: Forecast) -> str:
    console = Console(width=110)
    with console.capture() as capture:
        console.print(forecast_table(made))
    return " ".join(capture.get().split())


def test_a_plan_opens_no_image_and_spends_nothing(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    import yaml

    shutil.rmtree(raw["data"]["path"])
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    before = sorted(tmp_path.rglob("*"))
    assert main(["plan", "--config", str(path)]) == 0
    assert "plan of run tiny" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_says_what_it_leaves_a_person_with_several_images(raw: dict[str, Any]) -> None:
    made = forecast(raw)
    assert [images for images, _ in made.epsilon_of_person] == [2, 5, 10]
    values = [made.epsilon, *(value for _, value in made.epsilon_of_person)]
    assert values == sorted(values)
    assert values[1] > 1.9 * values[0], "at epsilon 0.5 hardly less than twice"
    assert f"for a person with several images: epsilon {upper(values[1])} with 2," in shown(made)
    grouped = raw | {
        "data": raw["data"] | {"group_column": "person"},
        "privacy": raw["privacy"] | {"unit": "group", "max_images_per_group": 2},
    }
    capped = raw | {"privacy": raw["privacy"] | {"max_batch_size": 60, "most_records": 60}}
    for other in (grouped, capped):
        assert forecast(other).epsilon_of_person == []
        assert "for a person" not in shown(forecast(other))


def test_a_selection_is_shown_with_what_it_can_miss(raw: dict[str, Any]) -> None:
    raw["privacy"] |= {"epsilon": 1.0}
    made = forecast(raw, selection={"learning_rates": [1e-3, 1e-2], "mean_trials": 3.0, "score_noise": 60.0})
    text = shown(made)
    assert "best of a secret number of trials, 3 on average" in text
    assert "tried with probability 75%" in text
    assert f"epsilon {upper(made.epsilon)}, delta 0.001" in text
    assert made.epsilon_of_person == []
    assert "for a person" not in text


def test_parameters_are_counted_after_the_embedder_got_its_labels(raw: dict[str, Any], tiny_backbone: Path) -> None:
    denoiser = load_backbone(str(tiny_backbone)).denoiser
    adapt_to_labels(denoiser, 2)
    counts = {name: p.numel() for name, p in denoiser.named_parameters()}
    useless = re.compile(r"attn2\.to_[qk]|norm2\.(weight|bias)")
    attention = {
        name: n
        for name, n in counts.items()
        if ".attentions." in name and not (useless.search(name) and "transformer_blocks" in name)
    }
    embedder = 3 * 8 + 8
    made = forecast(raw)
    assert made.trainable_parameters == sum(attention.values()) + embedder
    assert forecast(raw, trainable="condition").trainable_parameters == embedder
    dropped = sum(n for name, n in counts.items() if useless.search(name) and "transformer_blocks" in name)
    assert forecast(raw, trainable="all").trainable_parameters == sum(counts.values()) - dropped
    assert made.total_parameters == sum(counts.values()), "with 2 + 1 labels, not the public 5 + 1"


def test_noise_to_signal_is_sigma_root_P_over_L(raw: dict[str, Any]) -> None:
    made = forecast(raw)
    sigma, tuned = made.plan.noise_multiplier, made.trainable_parameters
    assert made.noise_to_signal == pytest.approx(sigma * math.sqrt(tuned) / 20, rel=1e-12)


def test_epsilons_are_the_plans(raw: dict[str, Any]) -> None:
    made = forecast(raw)
    assert made.epsilon == made.plan.epsilon_after(3) <= 0.5
    assert made.epsilon_replace_one == made.plan.epsilon_after(3, Adjacency.REPLACE_ONE)
    attempts, epsilons = zip(*made.epsilon_curve, strict=True)
    assert attempts == (1, 2, 3)
    assert list(epsilons) == sorted(epsilons)
    assert epsilons[-1] == made.epsilon


def test_time_and_memory_are_measured_on_demand(raw: dict[str, Any]) -> None:
    untimed, timed = forecast(raw), forecast(raw, timed=True)
    assert untimed.seconds is None
    assert timed.seconds is not None
    assert 0 < timed.seconds < 60
    assert untimed.seconds_of_drawing is None
    assert timed.seconds_of_drawing is not None
    assert 0 < timed.seconds_of_drawing < 60
    assert untimed.memory_bytes is None
    assert timed.memory_bytes is not None
    assert timed.memory_bytes > 4 * (timed.total_parameters + 6 * timed.trainable_parameters)
    unconditional = raw["data"] | {"labels": []}
    assert forecast(raw, timed=True, data=unconditional).seconds is not None


def test_drawing_is_timed_by_all_steps_of_all_images(raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock by which a network's pass takes a second, and decoding a batch ten."""
    now = 0.0

    class Slow(Sampler):
        def __call__(self, labels: torch.Tensor, generator: torch.Generator) -> np.ndarray:
            nonlocal now
            now += 10.0 + self.settings.steps * (1.0 if self.settings.guidance == 1.0 else 2.0)
            return super().__call__(labels, generator)

    monkeypatch.setattr("dpldm.planning.Sampler", Slow)
    monkeypatch.setattr("dpldm.planning.time.perf_counter", lambda: now)
    sampling = {"steps": 7, "batch_size": 4}
    for more, images, passes in (
        ({"count": 24}, 24, 7),
        ({"count": 24, "guidance": 2.0}, 24, 14),
        ({"count": 24, "keep": 0.5}, 48, 7),
        ({"label_counts": [3, 9]}, 12, 7),
    ):
        made = forecast(raw, timed=True, sampling=sampling | more)
        assert made.images_to_draw == images
        assert made.seconds_of_drawing == pytest.approx(images / 4 * (10 + passes))


def test_warnings_are_given_where_due(raw: dict[str, Any]) -> None:
    noisy = forecast(raw, trainable="all")
    assert noisy.noise_to_signal > HARD_TO_LEARN
    assert noisy.outlook.verdict is Verdict.NO
    calm = forecast(raw, trainable="condition", privacy=raw["privacy"] | {"public_benchmark": True})
    assert calm.noise_to_signal < HARD_TO_LEARN
    assert [warning.split(":")[0] for warning in calm.warnings] == ["Declared a public benchmark"]
    grouped = forecast(raw, trainable="condition", data=raw["data"] | {"group_column": "patient"})
    assert [next(t for t in ("per image", "privacy.cap") if t in told) for told in grouped.warnings] == [
        "per image",
        "privacy.cap",
    ]
    assert not forecast(raw, trainable="condition", privacy=raw["privacy"] | {"cap": [1.0, 2e-3]}).warnings


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"privacy": {"dataset_id": "x"}}, r"privacy\.records is blank"),
        ({"data": {"path": "x", "channels": 3, "image_size": 16}}, "the backbone tiny has 1"),
        ({"data": {"path": "x", "image_size": 17}}, "takes 13 to 16 pixels"),
        ({"backbone": "nowhere"}, "There is no backbone"),
    ],
)
def test_what_does_not_fit_is_refused(raw: dict[str, Any], change: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        forecast(raw, **change)


def test_the_table_shows_every_number(raw: dict[str, Any]) -> None:
    made = forecast(raw, timed=True, trainable="all")
    text = shown(made)
    for part in (
        f"epsilon {upper(made.epsilon)}, delta 0.001, adding or removing one image",
        f"epsilon {upper(made.epsilon_replace_one)} for replacing one image",
        "0.50000 = 20 / 40",
        "T = 2 updates + R = 1 in reserve",
        f"noise multiplier sigma │ {made.plan.noise_multiplier}",
        f"{made.trainable_parameters:,} of {made.total_parameters:,}",
        f"{made.noise_to_signal:.2f} = sigma sqrt(P) / L",
        "fine-tuning here",
        "for 24 images",
        "GB at most, with 128 examples in a pass",
        "Do not expect this to learn: noise-to-signal",
    ):
        assert part in text, part
    assert "fine-tuning here" not in shown(forecast(raw))


def test_noise_that_hides_the_variety_of_a_class_is_told(raw: dict[str, Any]) -> None:
    def warned(noise: float) -> bool:
        made = forecast(raw, privacy=raw["privacy"] | {"public_classes_noise": noise})
        assert "query public_class_histogram" in shown(made)
        return any(f"public_classes_noise {noise:g} hides what fewer than" in warning for warning in made.warnings)

    assert warned(30.0)
    records = {"records": 4000, "expected_batch_size": 20, "delta": 1e-5, "epsilon": 1.0}
    assert not any("hides" in line for line in forecast(raw, privacy=raw["privacy"] | records).warnings)
    many = forecast(raw, privacy=raw["privacy"] | records | {"public_classes_noise": 30.0})
    assert not any("hides" in line for line in many.warnings), "60 of 2,000 is less than a twentieth"


def test_questions_are_shown_with_what_they_cost(raw: dict[str, Any]) -> None:
    made = forecast(raw, privacy=raw["privacy"] | ASKED)
    text = shown(made)
    assert made.epsilon_of_queries == made.plan.epsilon_after(0)
    for part in (
        "query class_histogram │ noise 30, once, 2 in reserve",
        "query class_means │ noise 30, once, 2 in reserve",
        f"queries alone │ epsilon {upper(made.epsilon_of_queries)}, part of the guarantee's",
    ):
        assert part in text, part
    assert any("30 is large beside 20 records per class" in warning for warning in made.warnings)
    assert any("off by about 8.5 of the norm" in warning for warning in made.warnings), "30 sqrt(32) / 20"
    given = forecast(raw, privacy=raw["privacy"] | ASKED, sampling=raw["sampling"] | {"label_counts": [1, 2]})
    assert any("paid for, and sampling.label_counts is used" in warning for warning in given.warnings)
    assert "quer" not in shown(forecast(raw))


def test_questions_that_cost_more_than_the_budget_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="give queries more noise, or choose a larger epsilon"):
        forecast(raw, privacy=raw["privacy"] | {"histogram_noise": 1.0})


@given(st.floats(0, 1e6))
def test_a_shown_epsilon_is_never_below_the_true_one(epsilon: float) -> None:
    assert epsilon <= float(upper(epsilon)) <= epsilon + 0.01 + 1e-9 * epsilon


def test_choices_tell_what_each_would_tune_and_how_loud_the_noise_is(raw: dict[str, Any]) -> None:
    config = RunConfig.model_validate(raw)
    found = {choice.trainable: choice for choice in choices(config)}
    made = forecast(raw)
    assert found["attention"].parameters == made.trainable_parameters
    assert found["attention"].noise_to_signal == made.noise_to_signal
    assert found["attention"].share == made.trainable_parameters / made.total_parameters
    assert found["condition"].parameters < found["attn2"].parameters < found["attention"].parameters
    assert found["attention-from-7"].parameters < found["attention-from-2"].parameters < found["attention"].parameters
    assert "attention-from-8" not in found
    assert found["all"].parameters < made.total_parameters, "what has no influence is never tuned"
    without = {choice.trainable: choice for choice in choices(RunConfig.model_validate(raw | {"tune_embedder": False}))}
    assert "condition" not in without
    assert without["attn2"].parameters == found["attn2"].parameters - found["condition"].parameters
