"""Drawing from the tuned model: which labels, which network, which solver, and that a resumed draw is the same draw."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from dpldm.config import RunConfig, SamplingConfig
from dpldm.errors import UserError
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.models.denoiser import adapt_to_labels, build_scheduler, condition
from dpldm.run import Run
from dpldm.sampling import Sampler, build_solver, load_synthetic, planned_labels, sample
from dpldm.train.checkpoint import load_checkpoint, save_checkpoint
from dpldm.tuned import tuned_network


def with_sampling(config: RunConfig, **changes: Any) -> RunConfig:
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=changes)})


def batches(config: RunConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Run(config).synthetic.iterdir()}


# --- labels -------------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 500), classes=st.integers(1, 20))
def test_labels_are_as_equal_as_the_count_allows(count: int, classes: int) -> None:
    labels = planned_labels(SamplingConfig(count=count), classes)
    shares = torch.bincount(labels, minlength=classes)
    assert len(labels) == count
    assert len(shares) == classes
    assert shares.max() - shares.min() <= 1
    assert labels[:classes].tolist() == list(range(classes))[:count], "every class shows early"


@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), seed=st.integers(0, 99))
def test_given_counts_are_kept_and_mixed_by_the_seed(counts: list[int], seed: int) -> None:
    asked = SamplingConfig(count=7, label_counts=tuple(counts), seed=seed)
    labels = planned_labels(asked, len(counts))
    assert torch.bincount(labels, minlength=len(counts)).tolist() == counts
    assert torch.equal(labels, planned_labels(asked, len(counts)))


def test_given_counts_are_not_in_order() -> None:
    labels = planned_labels(SamplingConfig(label_counts=(50, 50)), 2).tolist()
    assert labels != sorted(labels)
    assert labels != planned_labels(SamplingConfig(label_counts=(50, 50), seed=1), 2).tolist()


def test_without_classes_there_are_no_labels() -> None:
    assert planned_labels(SamplingConfig(count=3), 0).tolist() == [-1, -1, -1]


# --- which network --------------------------------------------------------------------------------------------------


def test_the_sampled_network_is_the_average_where_tuned_and_public_elsewhere(finished: RunConfig) -> None:
    groups, _ = load_checkpoint(Run(finished).checkpoint)
    public = load_backbone(finished.backbone)
    tuned = dict(tuned_network(finished, load_backbone(finished.backbone)).named_parameters())
    adapt_to_labels(public.denoiser, 2)
    raw = dict(public.denoiser.named_parameters())
    assert tuned.keys() == raw.keys()
    assert 0 < len(groups["average"]) < len(raw)
    assert any(not torch.equal(groups["average"][n], groups["network"][n]) for n in groups["average"])
    for name, parameter in tuned.items():
        assert not parameter.requires_grad
        expected = groups["average"].get(name, raw[name])
        assert torch.equal(parameter, expected), name
    assert not any(torch.equal(tuned[name], raw[name]) for name in groups["average"]), "all that was tuned has moved"


# --- solvers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> Backbone:
    loaded = load_backbone(str(tiny_backbone))
    adapt_to_labels(loaded.denoiser, 3)
    # Weights that make prediction depend on the label, which random ones hardly do.
    with torch.no_grad():
        loaded.denoiser.encoder_hid_proj.weight.normal_(0, 2, generator=torch.Generator().manual_seed(1))
    return loaded


def ddim_by_hand(backbone: Backbone, labels: Tensor, steps: int, guidance: float, noise: Tensor) -> Tensor:
    """Eq. 12 of Song, Meng and Ermon (2021) with sigma = 0, on timesteps N-1, N-1-N/S, ...; float64 arithmetic."""
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)
    x = noise.double()
    kind = backbone.scheduler.config.prediction_type
    times = [round(1000 - k * 1000 / steps) - 1 for k in range(steps)]
    for t, before in zip(times, [*times[1:], -1], strict=True):
        a = alpha_bar[t]
        b = alpha_bar[before] if before >= 0 else torch.tensor(1.0, dtype=torch.float64)  # no noise at the end

        def predict(context: Tensor, x: Tensor = x, t: int = t) -> Tensor:
            with torch.no_grad():
                return backbone.denoiser(x.float(), t, encoder_hidden_states=context).sample.double()

        with_label, without = predict(condition(labels, 3)), predict(condition(torch.full_like(labels, 3), 3))
        out = without + guidance * (with_label - without)
        if kind == "v_prediction":
            clean, epsilon = a.sqrt() * x - (1 - a).sqrt() * out, a.sqrt() * out + (1 - a).sqrt() * x
        else:
            clean, epsilon = (x - (1 - a).sqrt() * out) / a.sqrt(), out
        x = b.sqrt() * clean + (1 - b).sqrt() * epsilon
    return x


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize(("degree", "calls"), [(0.01, 1), (0.4, 4), (1.0, 10)])
def test_a_variation_goes_back_part_of_the_way(
    backbone: Backbone, sampler: str, degree: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts at the noise of the schedule after that share of the steps, and ends where a latent ends."""
    draw = Sampler(backbone, backbone.denoiser, SamplingConfig(sampler=sampler, steps=10), 16)
    seen: list[tuple[int, Tensor]] = []
    guided = Sampler._guided

    def heard(self: Sampler, x: Tensor, t: Tensor, wanted: Tensor, unlabelled: Tensor) -> Tensor:
        seen.append((int(t), x.clone()))
        return guided(self, x, t, wanted, unlabelled)

    monkeypatch.setattr(Sampler, "_guided", heard)
    latents, labels = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, -1])
    found = draw.varied(latents, labels, degree, torch.Generator().manual_seed(5))
    assert [t for t, _ in seen] == [100 * k - 1 for k in range(calls, 0, -1)]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    kept = backbone.scheduler.alphas_cumprod[seen[0][0]]
    torch.testing.assert_close(seen[0][1], kept.sqrt() * latents + (1 - kept).sqrt() * noise, rtol=1e-3, atol=1e-3)
    again = draw.varied(latents, labels, degree, torch.Generator().manual_seed(5))
    assert torch.equal(found, again)
    assert not torch.equal(found, draw.varied(latents, labels, degree, torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("steps", [1, 5])
def test_ddim_is_the_published_recursion(backbone: Backbone, kind: str, guidance: float, steps: int) -> None:
    made = replace(backbone, scheduler=build_scheduler(kind))
    labels = torch.tensor([0, 1, 2, 1])
    asked = SamplingConfig(sampler="ddim", steps=steps, guidance=guidance)
    draw = Sampler(made, made.denoiser, asked, 16)
    ours = draw.latents(labels, torch.Generator().manual_seed(3))
    noise = torch.randn((4, 2, 4, 4), generator=torch.Generator().manual_seed(3))
    expected = ddim_by_hand(made, labels, steps, guidance, noise)
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(ours.double(), expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_guidance_1_asks_the_network_once_and_equals_none(backbone: Backbone, sampler: str) -> None:
    labels = torch.tensor([0, 1, 2])

    def drawn(guidance: float) -> Tensor:
        asked = SamplingConfig(sampler=sampler, steps=3, guidance=guidance)
        return Sampler(backbone, backbone.denoiser, asked, 16).latents(labels, torch.Generator().manual_seed(0))

    calls: list[int] = []
    handle = backbone.denoiser.register_forward_hook(lambda *_: calls.append(1))
    plain = drawn(1.0)
    once = len(calls)
    nearly = drawn(1.0 + 1e-6)
    handle.remove()
    assert (once, len(calls) - once) == (3, 6)
    torch.testing.assert_close(plain, nearly, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain, drawn(3.0), rtol=1e-2, atol=1e-2)


def test_labels_matter_and_no_label_is_the_null_label(backbone: Backbone) -> None:
    draw = Sampler(backbone, backbone.denoiser, SamplingConfig(steps=3), 16)
    one, other, none, null = (
        draw.latents(torch.tensor([label]), torch.Generator().manual_seed(0)) for label in (0, 1, -1, 3)
    )
    assert not torch.allclose(one, other, rtol=1e-2, atol=1e-2)
    assert torch.equal(none, null)


def test_eta_adds_noise_of_the_same_generator(backbone: Backbone) -> None:
    labels = torch.tensor([0, 1])

    def drawn(eta: float, seed: int = 0) -> Tensor:
        draw = Sampler(backbone, backbone.denoiser, SamplingConfig(sampler="ddim", steps=4, eta=eta), 16)
        return draw.latents(labels, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1.0), drawn(1.0))
    assert not torch.allclose(drawn(1.0), drawn(0.0))
    assert not torch.allclose(drawn(1.0), drawn(1.0, seed=1))


def test_dpm_solver_ends_where_ddim_ends(backbone: Backbone) -> None:
    """Both solve the same differential equation: with many steps they agree, and second order needs fewer."""
    labels = torch.tensor([0, 1])

    def drawn(sampler: str, steps: int) -> Tensor:
        draw = Sampler(backbone, backbone.denoiser, SamplingConfig(sampler=sampler, steps=steps), 16)
        return draw.latents(labels, torch.Generator().manual_seed(5))

    limit = drawn("ddim", 60)
    error = {name: float((drawn(name, 20) - limit).norm() / limit.norm()) for name in ("ddim", "dpmsolver++")}
    assert error["dpmsolver++"] < 0.1
    assert error["dpmsolver++"] < error["ddim"]


@settings(deadline=None, max_examples=5)
@given(steps=st.integers(1, 12), sampler=st.sampled_from(["ddim", "dpmsolver++"]), size=st.integers(13, 16))
def test_any_number_of_steps_gives_images(backbone: Backbone, steps: int, sampler: str, size: int) -> None:
    draw = Sampler(backbone, backbone.denoiser, SamplingConfig(sampler=sampler, steps=steps), size)
    images = draw(torch.tensor([0, 2]), torch.Generator().manual_seed(0))
    assert (images.shape, images.dtype) == ((2, size, size, 1), np.uint8)
    assert images.std() > 0


def test_the_solver_keeps_the_schedule_of_the_training() -> None:
    for kind in ("epsilon", "v_prediction"):
        scheduler = build_scheduler(kind)
        for sampler in ("ddim", "dpmsolver++"):
            solver = build_solver(scheduler, SamplingConfig(sampler=sampler))
            assert solver.config.prediction_type == kind
            torch.testing.assert_close(torch.as_tensor(solver.alphas_cumprod), scheduler.alphas_cumprod)


# --- a draw on disk ---------------------------------------------------------------------------------------------------


def test_a_draw_holds_what_was_asked_for(finished: RunConfig) -> None:
    drawn = load_synthetic(finished)
    assert (drawn.images.shape, drawn.images.dtype) == ((24, 16, 16, 1), np.uint8)
    assert drawn.labels.tolist() == [0, 1] * 12
    assert len(np.unique(drawn.images.reshape(24, -1), axis=0)) == 24, "every image is another"


def test_a_lost_batch_is_drawn_again_byte_for_byte(finished_copy: RunConfig) -> None:
    before = batches(finished_copy)
    assert len(before) == 3
    lost = sorted(Run(finished_copy).synthetic.iterdir())[1]
    lost.unlink()
    with pytest.raises(UserError, match="has not been sampled to its end"):
        load_synthetic(finished_copy)
    assert [step.done for step in sample(finished_copy)] == [10, 20, 24]
    assert batches(finished_copy) == before


def test_a_finished_draw_is_not_drawn_again(finished_copy: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "__call__", lambda *_: pytest.fail("drew again"))
    assert [step.done for step in sample(finished_copy)] == [10, 20, 24]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"guidance": 2.0}, {"count": 20}, {"sampler": "ddim"}, {"batch_size": 24}]
)
def test_other_settings_never_mix_with_an_old_draw(finished_copy: RunConfig, change: dict[str, Any]) -> None:
    before, other = batches(finished_copy), with_sampling(finished_copy, **change)
    with pytest.raises(UserError, match="has not been sampled to its end: run `dpldm sample` first"):
        load_synthetic(other)
    list(sample(other))
    drawn = load_synthetic(other)
    assert len(drawn.labels) == other.sampling.count
    assert set(before) < set(batches(other)), "the old batches stay, under names of their own"
    assert not np.array_equal(drawn.images[:20], load_synthetic(finished_copy).images[:20]) or "count" in change


def test_another_model_never_mixes_with_an_old_draw(finished_copy: RunConfig) -> None:
    path = Run(finished_copy).checkpoint
    groups, facts = load_checkpoint(path)
    groups["average"]["encoder_hid_proj.bias"] += 1
    save_checkpoint(path, groups, facts)
    with pytest.raises(UserError, match="has not been sampled"):
        load_synthetic(finished_copy)


def test_an_unfinished_model_is_not_sampled(finished_copy: RunConfig) -> None:
    path = Run(finished_copy).checkpoint
    groups, facts = load_checkpoint(path)
    save_checkpoint(path, groups, facts | {"updates": 1})
    with pytest.raises(UserError, match="has not come to its end: run `dpldm finetune` again"):
        list(sample(finished_copy))
    path.unlink()
    with pytest.raises(UserError, match="has no tuned model or portraits: run `dpldm finetune` first"):
        list(sample(finished_copy))


# --- keeping the plainest -----------------------------------------------------------------------------------------


def test_as_many_are_kept_as_were_asked_for_and_they_are_among_the_drawn(finished_copy: RunConfig) -> None:
    config = with_sampling(finished_copy, count=31, keep=0.5)
    list(sample(config))
    kept = load_synthetic(config)
    assert np.bincount(kept.labels).tolist() == [16, 15]
    drawn = {image.tobytes() for path in Run(config).synthetic.glob("batch-*") for image in images_in(path)}
    assert len(planned_labels(config.sampling, 2)) == 62
    assert {image.tobytes() for image in kept.images} <= drawn


def images_in(path: Path) -> np.ndarray:
    with np.load(path) as arrays:
        return np.asarray(arrays["x"])


def test_what_is_kept_is_chosen_once_and_again_when_lost(finished_copy: RunConfig) -> None:
    config = with_sampling(finished_copy, count=30, keep=0.6)
    list(sample(config))
    (path,) = Run(config).synthetic.glob("kept-*")
    before = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match="not been sampled to its end"):
        load_synthetic(config)
    list(sample(config))
    assert path.read_bytes() == before


def test_without_classes_nothing_can_be_plain(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"declare data\.labels"):
        RunConfig.model_validate(raw | {"data": raw["data"] | {"labels": []}, "sampling": {"keep": 0.5}})
