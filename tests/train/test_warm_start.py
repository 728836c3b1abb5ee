"""A start from noised class means: what it moves, what it teaches, and that it happens once."""

import re
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from pydantic import ValidationError
from torch import Tensor

from dpldm.config import OptimizerConfig, RunConfig
from dpldm.models.backbone import load_backbone
from dpldm.models.denoiser import adapt_to_labels, build_denoiser, build_scheduler, condition, denoising_losses
from dpldm.models.trainable import choose_trainable
from dpldm.privacy.ledger import open_ledger
from dpldm.privacy.questions import ClassMeans, ClassSpreads
from dpldm.run import Run, plan_of
from dpldm.train import tuner as tuning
from dpldm.train.asking import answered
from dpldm.train.centres import centres_of
from dpldm.train.finetune import finetune
from dpldm.train.portraits import Portraits
from dpldm.train.warm_start import warm_start
from tiny_runs import ASKED

SCHEDULER = build_scheduler("v_prediction")
MEANS = 2 * torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(7))
ONE = torch.ones(3, 1)
POINTS = Portraits(MEANS[:, None], ONE, torch.zeros(3, 32, 0))
SPREAD = Portraits(MEANS[:, None], ONE, torch.randn(3, 32, 4, generator=torch.Generator().manual_seed(8)))


def network() -> UNet2DConditionModel:
    torch.manual_seed(0)
    made = build_denoiser(2, 4, 5, widths=(16, 16), layers_per_block=1, heads=2, condition_dim=8).eval()
    adapt_to_labels(made, 3)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if re.search(r"attn2\.to_(v|out\.0)\.weight|conv_out\.weight", name):
                parameter.mul_(6)  # as if it had learnt to obey labels
    return made


def started(
    steps: int, choice: str = "attention", portraits: Portraits = POINTS, **settings: Any
) -> UNet2DConditionModel:
    made, given = network(), OptimizerConfig(warm_start_steps=steps, **settings)
    warm_start(made, choose_trainable(made, choice), SCHEDULER, portraits, given)
    return made


@torch.no_grad()
def guesses(made: UNet2DConditionModel) -> Tensor:
    """The clean latent that each class row stands for, seen from pure noise, (3, 2, 4, 4)."""
    noise = torch.randn(200, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    time = torch.full((200,), 990)
    kept = SCHEDULER.alphas_cumprod[990]
    found = []
    for label in range(3):
        velocity = made(noise, time, encoder_hidden_states=condition(torch.full((200,), label), 3)).sample
        found.append((kept.sqrt() * noise - (1 - kept).sqrt() * velocity).mean(0))
    return torch.stack(found)


def test_from_pure_noise_classes_differ_afterwards_as_their_means_do() -> None:
    def differences(of_classes: Tensor) -> Tensor:
        return (of_classes - of_classes.mean(0)).flatten(1)

    assert float(differences(guesses(network())).norm()) < 1e-4, "before, all classes are alike"
    similar = differences(guesses(started(60))) @ differences(MEANS).T
    assert similar.argmax(1).tolist() == [0, 1, 2]
    assert bool((similar.diagonal() > 0).all())


@pytest.mark.parametrize("choice", ["attention", "condition"])
def test_nothing_moves_but_the_embedder_and_the_null_row_stays(choice: str) -> None:
    before, after = dict(network().named_parameters()), dict(started(5, choice).named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"encoder_hid_proj.weight", "encoder_hid_proj.bias"}
    weight = "encoder_hid_proj.weight"
    assert torch.equal(before[weight][:, 3], after[weight][:, 3])
    assert all(parameter.grad is None for parameter in after.values())


@pytest.mark.parametrize("portraits", [POINTS, SPREAD])
def test_the_same_portraits_give_the_same_weights(portraits: Portraits) -> None:
    torch.manual_seed(1)
    first = started(5, portraits=portraits).state_dict()
    torch.manual_seed(2)
    again = started(5, portraits=portraits).state_dict()
    assert all(torch.equal(tensor, first[name]) for name, tensor in again.items())


def test_what_can_be_drawn_teaches_all_that_is_tuned_and_nothing_else() -> None:
    before, after = dict(network().named_parameters()), dict(started(5, portraits=SPREAD).named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(choose_trainable(network(), "attention"))
    assert all(parameter.grad is None for parameter in after.values())


def test_the_loss_on_what_is_drawn_falls() -> None:
    """At timesteps of every kind, on draws that the start has not seen."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(300) % 3
    latents, noise = SPREAD.draw(labels, generator), torch.randn(300, 2, 4, 4, generator=generator)
    times = torch.randint(1000, (300,), generator=generator)

    @torch.no_grad()
    def loss(made: UNet2DConditionModel) -> float:
        return float(denoising_losses(made, SCHEDULER, latents, condition(labels, 3), times, noise).mean())

    assert loss(started(120, portraits=SPREAD)) < 0.8 * loss(network())


def test_the_null_row_learns_only_if_labels_are_hidden() -> None:
    weight = "encoder_hid_proj.weight"
    for dropout, learns in ((0.0, False), (0.5, True)):
        rows = started(5, portraits=SPREAD, label_dropout=dropout).state_dict()[weight]
        assert torch.equal(rows[:, 3], network().state_dict()[weight][:, 3]) is not learns


def with_start(raw: dict[str, Any], **privacy: Any) -> RunConfig:
    return RunConfig.model_validate(
        raw | {"privacy": raw["privacy"] | privacy, "optimizer": raw.get("optimizer", {}) | {"warm_start_steps": 2}}
    )


@pytest.mark.parametrize("spreads", [False, True])
def test_a_run_starts_once_from_the_answers_that_it_paid_for(
    raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, spreads: bool
) -> None:
    config, seen = with_start(raw, **ASKED, **({"class_spreads_noise": 40.0} if spreads else {})), list[Portraits]()

    def spy(*given: Any) -> None:
        seen.append(given[3])
        warm_start(*given)

    monkeypatch.setattr(tuning, "warm_start", spy)
    run = finetune(config)
    next(run)
    run.close()
    list(finetune(config))  # goes on
    assert len(seen) == 1
    plan, where = plan_of(config), Run(config)
    with open_ledger(where.ledger, plan.dataset_id, (plan.epsilon, plan.delta)) as ledger:
        digest = load_backbone(config.backbone).digest
        known = answered(ClassMeans, where, plan, ledger, digest)
        assert (answered(ClassSpreads, where, plan, ledger, digest) is not None) is spreads
    assert known is not None
    assert torch.equal(seen[0].means.flatten(2), centres_of(*known, 2).means.float())


def test_the_average_begins_where_the_start_ends(raw: dict[str, Any]) -> None:
    config = with_start(raw, **ASKED)
    backbone, plan = load_backbone(config.backbone), plan_of(config)
    tuner = tuning.Tuner(backbone, config, plan)
    size = tuner.network.config.sample_size
    means = torch.randn(2, 1, tuner.network.config.in_channels, size, size)
    points = Portraits(means, torch.ones(2, 1), torch.zeros(2, means[0].numel(), 0))
    tuner.start_from(points, backbone.scheduler)
    averages = zip(tuner.average.shadow_params, tuner.trainable.values(), strict=True)
    assert all(torch.equal(average, parameter) for average, parameter in averages)


def test_without_means_it_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="class_means_noise"):
        with_start(raw)
