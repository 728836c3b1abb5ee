"""Stages 1 and 2: seeded by step, so that a resumed run is the uninterrupted one; and both together make a backbone."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpldm.cli import main
from dpldm.commands.backbone import draw
from dpldm.config import RunConfig
from dpldm.data.public.collection import PublicSet
from dpldm.errors import UserError
from dpldm.loading import load_config, validate
from dpldm.models.autoencoder import Posterior, decode, encode
from dpldm.models.backbone import load_backbone
from dpldm.recipe import AdversarialRecipe, AutoencoderRecipe, BackboneRecipe, DiffusionRecipe
from dpldm.releasing import release
from dpldm.sampling import sample
from dpldm.train import adversarial
from dpldm.train.autoencoder import (
    AutoencoderTraining,
    autoencoder_loss,
    mean_absolute_error,
    reconstruction_loss,
)
from dpldm.train.diffusion import DiffusionTraining, pseudo_classes, told_classes
from dpldm.train.finetune import finetune
from dpldm.train.pretrain import pretrain, what_is_told
from dpldm.train.public_data import batch_of, jitter, load_public_images, step_generator
from dpldm.train.public_training import PublicTraining
from dpldm.train.schedule import DECAYS, rate
from dpldm.verdict import Verdict, verdict
from dpldm.verifying import verify


def public_images(count: int = 80, size: int = 16) -> np.ndarray:
    """Bars and blobs: something to learn."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, size, size, 1), np.uint8)
    for image in images:
        top, left = rng.integers(0, size - 4, 2)
        height, width = rng.integers(3, size // 2, 2)
        image[top : top + height, left : left + width] = rng.integers(100, 255)
    return images


def autoencoder_recipe(**more: Any) -> AutoencoderRecipe:
    small = {"latent_channels": 2, "widths": (8, 8, 8), "batch_size": 4, "steps": 4, "warmup_steps": 2, "bf16": False}
    return AutoencoderRecipe(**(small | {"checkpoint_every": 2} | more))


def diffusion_recipe(**more: Any) -> DiffusionRecipe:
    small = {"widths": (16,), "heads": 2, "condition_dim": 8, "pseudo_classes": 4, "batch_size": 4, "steps": 4}
    return DiffusionRecipe(**(small | {"warmup_steps": 2, "checkpoint_every": 2} | more))


class Autoencoder:
    """Makes stage 1 at a place."""

    @staticmethod
    def make(path: Path, **more: Any) -> PublicTraining:
        return AutoencoderTraining(autoencoder_recipe(**more), public_images(), 3, path)


class Diffusion:
    """Makes stage 2 at a place."""

    @staticmethod
    def make(path: Path, **more: Any) -> PublicTraining:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(40) % 4
        mean = torch.randn(4, 2, 4, 4, generator=generator)[labels]  # one pattern a class
        posterior = Posterior(mean, torch.full_like(mean, -4.0))
        return DiffusionTraining(diffusion_recipe(**more), posterior, told_classes(labels, 4), 3, path)


STAGES = [Autoencoder, Diffusion]


def everything(training: PublicTraining) -> list[Tensor]:
    state = [entry[key] for entry in training.optimizer.state.values() for key in sorted(entry)]
    return [*training.parameters, *training.average.shadow_params, *state]


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_stage_is_the_uninterrupted_one_bit_for_bit(stage: Any, stop: int, tmp_path: Path) -> None:
    """Stopped after any step; what lies behind the last checkpoint is done again, alike."""
    whole = stage.make(tmp_path / "whole")
    losses = {step.number: step.loss for step in whole.steps()}
    first = stage.make(tmp_path / "resumed")
    steps = first.steps()
    for _ in range(stop):
        next(steps)
    steps.close()
    resumed = stage.make(tmp_path / "resumed")
    assert resumed.done == stop // 2 * 2
    again = {step.number: step.loss for step in resumed.steps()}
    assert again == {n: loss for n, loss in losses.items() if n > stop // 2 * 2}
    assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(resumed), strict=True))
    a, b = (training.averaged().state_dict() for training in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert list(stage.make(tmp_path / "resumed").steps()) == [], "a finished stage does nothing"


@pytest.mark.parametrize("stage", STAGES)
def test_another_seed_of_the_process_changes_nothing(stage: Any, tmp_path: Path) -> None:
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        training = stage.make(tmp_path / str(seed))
        torch.manual_seed(seed + 10)
        losses.append([step.loss for step in training.steps()])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stage", STAGES)
def test_training_lowers_the_loss(stage: Any, tmp_path: Path) -> None:
    training = stage.make(
        tmp_path / "c",
        steps=30 if stage is Autoencoder else 40,
        learning_rate=5e-3,
        batch_size=8,
        checkpoint_every=1000,
    )
    losses = [step.loss for step in training.steps()]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert all(np.isfinite(losses))


@pytest.mark.parametrize("stage", STAGES)
def test_the_result_is_the_average_frozen(stage: Any, tmp_path: Path) -> None:
    training = stage.make(tmp_path / "c", ema_decay=0.5)
    list(training.steps())
    last = [p.detach().clone() for p in training.parameters]
    network = training.averaged()
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    for parameter, average in zip(network.parameters(), training.average.shadow_params, strict=True):
        assert torch.equal(parameter, average)
    assert not all(torch.equal(a, b) for a, b in zip(last, network.parameters(), strict=True))


class Line(PublicTraining):
    """The least that can be trained: one weight, loss |w|, so its gradient is 1."""

    def loss(self, generator: torch.Generator) -> Tensor:
        return self.network.weight.abs().sum()


def test_the_learning_rate_follows_the_schedule(tmp_path: Path) -> None:
    recipe = autoencoder_recipe(steps=8, warmup_steps=3, learning_rate=0.5)
    training = Line(nn.Linear(1, 1, bias=False), recipe, 0, tmp_path / "c")
    rates = [training.optimizer.param_groups[0]["lr"] for _ in training.steps()]
    assert rates == [0.5 * rate("cosine", n, 8, 3) for n in range(8)]


@given(steps=st.integers(1, 500), warmup=st.integers(0, 600), decay=st.sampled_from(sorted(DECAYS)))
def test_the_schedule_rises_then_falls(steps: int, warmup: int, decay: str) -> None:
    factors = [rate(decay, n, steps, warmup) for n in range(steps + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    turn = min(warmup, steps)
    assert factors[:turn] == [(n + 1) / (warmup + 1) for n in range(turn)]
    assert factors[turn:] == sorted(factors[turn:], reverse=True)
    if warmup < steps:
        assert factors[warmup] == 1.0
        assert factors[-2] > 0  # the last update still moves
        assert factors[-1] == pytest.approx(1.0 if decay == "constant" else 0.0, abs=1e-12)


# --- public data ----------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**40), step=st.integers(0, 10**6))
def test_every_step_has_a_stream_of_its_own(seed: int, step: int) -> None:
    def numbers(a: int, b: int) -> list[float]:
        return torch.rand(4, generator=step_generator(a, b)).tolist()

    assert numbers(seed, step) == numbers(seed, step)
    assert numbers(seed, step) != numbers(seed, step + 1)
    assert numbers(seed, step) != numbers(seed + 1, step)
    assert numbers(seed, step + 1) != numbers(seed + 1, step)


def test_a_batch_is_of_the_images() -> None:
    images = np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 6, 1), np.uint8)
    batch = batch_of(images, 400, torch.Generator().manual_seed(0))
    assert batch.shape == (400, 1, 6, 6)
    levels = ((batch + 1) * 127.5).round()
    assert torch.equal(levels, levels[:, :, :1, :1].expand_as(levels))
    assert set(levels[:, 0, 0, 0].int().tolist()) == set(range(50)), "all are drawn, with replacement"


@settings(deadline=None, max_examples=20)
@given(size=st.integers(8, 20), seed=st.integers(0, 1000))
def test_jitter_stays_in_range_and_in_shape(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(16, 1, size, size, generator=generator) * 2 - 1
    before = images.clone()
    out = jitter(images, generator)
    assert out.shape == images.shape
    assert -1 - 1e-5 <= float(out.min()) <= float(out.max()) <= 1 + 1e-5
    assert torch.equal(images, before)
    assert not torch.allclose(out, images)


def test_half_of_the_images_are_framed_as_smaller_ones_will_be() -> None:
    generator = torch.Generator().manual_seed(0)
    out = jitter(torch.rand(2000, 1, 16, 16, generator=generator) * 2 - 1, generator)
    framed = (out[:, :, 0] == out[:, :, 2]).all(-1).all(-1) & (out[..., 0] == out[..., 2]).all(-1).all(-1)
    assert 0.45 < framed.float().mean() < 0.55


def saved(directory: Path, images: np.ndarray) -> Path:
    n = len(images)
    labels = np.zeros(n, np.int64)
    return PublicSet(images, labels, ("a",), np.full(n, "f"), np.full(n, "n"), {"made": "by a test"}).save(directory)


def test_public_sets_are_joined_and_must_fit(tmp_path: Path) -> None:
    one, two = saved(tmp_path / "one", public_images(5)), saved(tmp_path / "two", public_images(7))
    joined = load_public_images([one, two], 16, 1)
    assert np.array_equal(joined.pixels, np.concatenate([public_images(5), public_images(7)]))
    assert (joined.labels.tolist(), joined.classes) == ([0] * 5 + [1] * 7, 2), "labels of later sets are others"
    for size, channels in ((32, 1), (16, 3)):
        with pytest.raises(UserError, match=r"make it again with that --image-size and --channels"):
            load_public_images([one], size, channels)
    with pytest.raises(UserError, match="is not a public set"):
        load_public_images([tmp_path / "three"], 16, 1)


# --- the losses -----------------------------------------------------------------------------------------------------


def test_reconstruction_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 1, 5, 6, generator=generator) for _ in range(2))
    expected = []
    for x, y in zip(a.double().numpy()[:, 0], b.double().numpy()[:, 0], strict=True):
        e = x - y
        slopes = np.abs(np.diff(e, axis=1)).mean() + np.abs(np.diff(e, axis=0)).mean()
        expected.append(np.abs(e).mean() + (e**2).mean() + slopes)
    np.testing.assert_allclose(reconstruction_loss(a, b), expected, rtol=1e-5)
    assert reconstruction_loss(a, a).tolist() == [0, 0, 0]


def test_the_divergence_is_the_librarys(tmp_path: Path) -> None:
    """A difference of two weights isolates the KL term; diffusers computes it independently."""
    network = AutoencoderTraining(autoencoder_recipe(), public_images(), 0, tmp_path / "c").network
    images = torch.from_numpy(public_images(4)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        losses = [
            float(autoencoder_loss(network, images, weight, torch.Generator().manual_seed(0))) for weight in (1.0, 3.0)
        ]
        expected = float(network.encode(images).latent_dist.kl().mean())
    assert losses[1] - losses[0] == pytest.approx(2 * expected, rel=1e-4)


def test_the_finished_autoencoder_has_standard_latents(tmp_path: Path) -> None:
    training = AutoencoderTraining(autoencoder_recipe(), public_images(), 0, tmp_path / "c")
    list(training.steps())
    network = training.finish()
    means = encode(network, public_images()).mean
    assert means.mean((0, 2, 3)).abs().max() < 1e-3
    assert (means.std((0, 2, 3)) - 1).abs().max() < 1e-3
    restored = decode(network, means, 16).astype(float)
    expected = np.abs(restored - public_images()).mean() / 127.5
    assert mean_absolute_error(network, public_images()) == pytest.approx(expected, rel=1e-5)


def test_pseudo_classes_are_the_clusters() -> None:
    """Three clouds far apart: each becomes one class, whatever the order."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([-20.0, 0.0, 20.0])
    truth = torch.arange(90) % 3
    latents = centres[truth].view(-1, 1, 1, 1) + torch.randn(90, 2, 2, 2, generator=generator)
    labels = pseudo_classes(latents, 3, seed=1)
    assert labels.dtype == torch.int64
    assert {tuple(set(labels[truth == k].tolist())) for k in range(3)} == {(0,), (1,), (2,)}
    assert torch.equal(labels, pseudo_classes(latents, 3, seed=1))


# --- both stages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> BackboneRecipe:
    return BackboneRecipe(
        name="little",
        image_size=16,
        channels=1,
        public=(saved(tmp_path / "public", public_images(40)),),
        output=tmp_path / "backbones" / "little",
        autoencoder=autoencoder_recipe(steps=4),
        diffusion=diffusion_recipe(steps=4),
    )


def interrupted(steps: Iterator[Any], after: int) -> None:
    for _ in range(after):
        next(steps)
    steps.close()


def test_two_stages_make_a_backbone_that_loads(recipe: BackboneRecipe) -> None:
    steps = list(pretrain(recipe))
    assert [(s.stage, s.number, s.steps) for s in steps] == [
        (stage, n, 4) for stage in ("autoencoder", "diffusion") for n in (1, 2, 3, 4)
    ]
    backbone = load_backbone(str(recipe.output))
    assert (backbone.name, backbone.channels) == ("little", 1)
    assert backbone.denoiser.config.sample_size == 4
    card = json.loads((recipe.output / "backbone.json").read_text())
    assert card["public_images"] == 40 == sum(card["pseudo_class_sizes"])
    assert len(card["pseudo_class_sizes"]) == 4
    assert card["public_sets"][0]["made"] == "by a test"
    assert card["recipe"]["diffusion"]["pseudo_classes"] == 4
    assert 0 < card["reconstruction_l1"] < 2
    text = "".join(path.read_text() for path in recipe.output.rglob("*.json"))
    assert str(recipe.output.parent.parent) not in text, "no place of this machine"


# (what is changed after so many steps, what the refusal names; None: it goes on)
CHANGES: list[tuple[int, dict[str, Any], str | None]] = [
    (3, {"autoencoder": autoencoder_recipe(learning_rate=0.1)}, "autoencoder.learning_rate"),
    (3, {"autoencoder": autoencoder_recipe(steps=5)}, "autoencoder.steps"),
    (3, {"seed": 1, "jitter": False}, "jitter, seed"),
    (3, {"autoencoder_of": "grey32"}, "autoencoder_of"),
    (3, {"diffusion": diffusion_recipe(start="grey32", steps=5)}, None),
    (3, {"device": "cpu", "name": "other"}, None),
    (3, {"autoencoder": autoencoder_recipe(checkpoint_every=1)}, None),
    (7, {"diffusion": diffusion_recipe(label_dropout=0.5)}, "diffusion.label_dropout"),
    (7, {"diffusion": diffusion_recipe(start="grey32")}, "diffusion.start"),
    (7, {"autoencoder": autoencoder_recipe(kl_weight=1.0)}, "autoencoder.kl_weight"),
    (7, {"diffusion": diffusion_recipe(checkpoint_every=3)}, None),
    (1, {"seed": 1, "autoencoder": autoencoder_recipe(learning_rate=0.1)}, None),  # no checkpoint yet
]


@pytest.mark.parametrize(("after", "changes", "named"), CHANGES)
def test_what_has_begun_goes_on_by_its_own_recipe_alone(
    after: int, changes: dict[str, Any], named: str | None, recipe: BackboneRecipe
) -> None:
    interrupted(pretrain(recipe), after)
    work = recipe.output.with_name("little.work")
    kept = {path.name: path.read_bytes() for path in work.iterdir()}
    other = recipe.model_copy(update=changes)
    if named is None:
        next(pretrain(other))
        return
    with pytest.raises(UserError, match=rf"was begun with other settings \({re.escape(named)}\): put them back, give"):
        next(pretrain(other))
    assert {path.name: path.read_bytes() for path in work.iterdir()} == kept
    assert len(list(pretrain(recipe))) == 8 - after // 2 * 2, "with its own recipe it goes on"


def test_other_images_in_the_place_of_a_public_set_are_refused(recipe: BackboneRecipe, tmp_path: Path) -> None:
    interrupted(pretrain(recipe), 3)
    moved = recipe.public[0].rename(tmp_path / "moved")
    saved(recipe.public[0], public_images(39))
    with pytest.raises(UserError, match=r"with other settings \(public\)"):
        next(pretrain(recipe))
    next(pretrain(recipe.model_copy(update={"public": (moved,)})))


def test_a_backbone_to_start_from_is_missed_before_stage_1(recipe: BackboneRecipe) -> None:
    changed = recipe.model_copy(update={"diffusion": diffusion_recipe(start="nowhere")})
    with pytest.raises(UserError, match="There is no backbone 'nowhere'"):
        next(pretrain(changed))


def test_damaged_settings_of_a_pretraining_are_refused_with_what_to_do(recipe: BackboneRecipe) -> None:
    interrupted(pretrain(recipe), 3)
    (recipe.output.with_name("little.work") / "settings.json").write_text("{")
    with pytest.raises(UserError, match="restore it, or delete"):
        next(pretrain(recipe))


def labelled(directory: Path, images: np.ndarray) -> Path:
    """Three classes in turn."""
    n = len(images)
    names = np.full(n, "n")
    return PublicSet(images, np.arange(n) % 3, ("a", "b", "c"), names, names, {"made": "by a test"}).save(directory)


KINDS = {
    "labels": ({"told": "labels"}, "latents", "ClassConditionalLDMPipeline", 3),
    "pixels": (
        {"told": "labels", "attention": (True, False), "widths": (16, 16)},
        "pixels",
        "ClassConditionalPixelPipeline",
        3,
    ),
    "nothing": ({"told": "nothing"}, "latents", "LDMPipeline", 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_backbones_are_made_tuned_and_drawn_from(
    kind: str, recipe: BackboneRecipe, tmp_path: Path, raw: dict[str, Any]
) -> None:
    """Told the labels of the public set, or nothing; over latents, or over pixels without an autoencoder."""
    more, space, pipeline, classes = KINDS[kind]
    changes = {
        "public": (labelled(tmp_path / "public-labelled", public_images(30)),),
        "space": space,
        "diffusion": diffusion_recipe(**more),
        "jitter": False,
    }
    made = BackboneRecipe.model_validate(recipe.model_copy(update=changes).model_dump())
    assert {step.stage for step in pretrain(made)} == (
        {"diffusion"} if kind == "pixels" else {"autoencoder", "diffusion"}
    )
    backbone = load_backbone(str(made.output))
    assert backbone.index["_class_name"] == pipeline
    folders = {name for name, value in backbone.index.items() if isinstance(value, list)}
    assert folders == {path.name for path in made.output.iterdir() if path.is_dir()}, "what the index names is there"
    assert int(backbone.family.null(backbone.denoiser)) == classes
    draw(str(made.output), tmp_path / "drawn.png")
    labels = [] if kind == "nothing" else raw["data"]["labels"]
    changes = {"backbone": str(made.output), "data": raw["data"] | {"labels": labels}}
    config = RunConfig.model_validate(raw | changes | {"optimizer": {"mirror": kind == "pixels"}})
    assert [step.number for step in finetune(config)] == [1, 2]
    assert list(sample(config))[-1].done == 24
    checks = verify(release(config, "model"), made.output)
    assert verdict(checks) is Verdict.VERIFIED, [check for check in checks if not check.passed]


def test_told_labels_means_the_labels_of_the_set(recipe: BackboneRecipe, tmp_path: Path) -> None:
    """One-hot, with one more row for no label."""
    place = labelled(tmp_path / "public-labelled", public_images(30))
    public = load_public_images([place], 16, 1)
    changed = recipe.model_copy(update={"diffusion": diffusion_recipe(told="labels")})
    posterior = Posterior(torch.zeros(30, 1, 1, 1), torch.zeros(30, 1, 1, 1))
    told = what_is_told(changed, public, posterior, tmp_path)
    assert told.rows.tolist() == [0, 1, 2] * 10
    assert torch.equal(told.table[:, 0], torch.eye(4))


def test_sizes_that_do_not_fit_are_refused(recipe: BackboneRecipe) -> None:
    for diffusion, space in (
        ({"heads": (1, 2)}, "latents"),
        ({"attention": (True, False)}, "latents"),
        ({"told": "nothing", "heads": (2,)}, "latents"),
        ({"told": "nothing"}, "pixels"),
        ({"told": "names"}, "pixels"),
    ):
        raw = recipe.model_dump() | {"diffusion": diffusion_recipe().model_dump() | diffusion, "space": space}
        with pytest.raises(UserError, match=r"diffusion\.(heads|told|attention)"):
            validate(BackboneRecipe, raw)
    named = {"autoencoder": {"codebook": 12}, "diffusion": {"told": "names"}}
    with pytest.raises(UserError, match=r"autoencoder\.codebook does not go with diffusion\.told: names"):
        validate(BackboneRecipe, recipe.model_dump() | named)
    with pytest.raises(UserError, match="leave autoencoder_of out"):
        validate(BackboneRecipe, recipe.model_dump() | {"space": "pixels", "autoencoder_of": "grey32"})


def test_a_backbone_may_have_the_papers_loss_and_a_codebook(recipe: BackboneRecipe, monkeypatch: Any) -> None:
    """Its latents are those of the codebook's autoencoder, standardised; and it says how it was trained, not where."""
    weights = recipe.output / "vgg16.pth"
    papers = AdversarialRecipe(
        discriminator_start=2,
        discriminator_width=4,
        discriminator_layers=2,
        perceptual="vgg-lpips",
        perceptual_weights=(weights,),
    )
    given: list[tuple[str, Any]] = []
    nothing = lambda first, second: (first - second).square().flatten(1).mean(1)  # noqa: E731
    monkeypatch.setattr(adversarial, "build_perceptual", lambda *what: given.append(what) or nothing)
    first = recipe.autoencoder.model_copy(update={"codebook": 12, "adversarial": papers})
    list(pretrain(recipe.model_copy(update={"autoencoder": first})))
    assert given == [("vgg-lpips", (weights,))]
    backbone = load_backbone(str(recipe.output))
    assert type(backbone.autoencoder).__name__ == "VQModel"
    assert backbone.index["vae"] == ["diffusers", "VQModel"]
    latents = encode(backbone.autoencoder, public_images(40)).mean
    assert float(latents.square().mean()) == pytest.approx(1, abs=0.1)
    assert decode(backbone.autoencoder, latents, 16).shape == (40, 16, 16, 1)
    card = json.loads((recipe.output / "backbone.json").read_text())
    assert card["recipe"]["autoencoder"]["codebook"] == 12
    assert card["recipe"]["autoencoder"]["adversarial"]["perceptual"] == "vgg-lpips"
    assert str(weights.parent) not in json.dumps(card)


def test_an_interrupted_pretraining_gives_the_same_backbone(recipe: BackboneRecipe, tmp_path: Path) -> None:
    """Interrupted twice: in stage 1, and again in stage 2."""
    list(pretrain(recipe))
    other = recipe.model_copy(update={"output": tmp_path / "again"})
    interrupted(pretrain(other), 3)
    interrupted(pretrain(other), 2 + 3)
    assert not other.output.exists()
    assert [(step.stage, step.number) for step in pretrain(other)] == [("diffusion", 3), ("diffusion", 4)]
    for path in recipe.output.rglob("*.safetensors"):
        assert (other.output / path.relative_to(recipe.output)).read_bytes() == path.read_bytes()


def test_the_command_makes_and_draws_a_backbone(
    recipe: BackboneRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))
    assert load_config(BackboneRecipe, path) == recipe
    assert main(["pretrain", "--recipe", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"--backbone {recipe.output}" in shown
    assert (tmp_path / "backbones" / "little.work" / "samples.png").exists()
    assert main(["backbone", "draw", str(recipe.output), "--output", str(tmp_path / "s.png")]) == 0
    assert (tmp_path / "s.png").exists()


def test_a_recipe_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nimage_sise: 32\n")
    assert main(["pretrain", "--recipe", str(path)]) == 2
    assert "image_sise is not a setting: did you mean image_size?" in capsys.readouterr().err
