"""Memory: what is counted, how many examples fit, and that what saves memory changes no clipped sum by much."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

import dpldm
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.models.autoencoder import Pixels, encode, images_at_once, tile
from dpldm.models.backbone import load_backbone
from dpldm.models.lightening import computing, recompute_activations
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.entropy import SeededEntropy
from dpldm.privacy.grid import add_gaussian_on_grid
from dpldm.privacy.noise import add_gaussian
from dpldm.privacy.queries import Places, spread_sums
from dpldm.privacy.questions import ClassSpreads
from dpldm.run import plan_of
from dpldm.train import tuner as tuning
from dpldm.train.finetune import finetune
from dpldm.train.made_up import made_up_losses
from dpldm.train.memory import (
    ALLOCATOR,
    SPREADS,
    USABLE,
    Memory,
    Meter,
    PassCost,
    pass_cost,
    peak_of,
    rows_that_fit,
)
from dpldm.train.tuner import Tuner
from stock_models import kl_autoencoder, make

CPU = torch.device("cpu")
BUNDLED = Path(dpldm.__file__).with_name("backbones")


# --- counting -------------------------------------------------------------------------------------------------------


def test_a_meter_counts_what_lives_and_the_most_that_ever_did() -> None:
    old = torch.zeros(1000)
    with Meter() as meter:
        first = torch.ones(250)  # 1000 bytes
        view = first.view(25, 10)[3:]
        assert (meter.live, meter.most) == (1000, 1000), "a view holds nothing of its own"
        second = old + 1  # 4000, but what was there before does not count
        old.add_(1)
        assert meter.live == 5000
        del second
        assert (meter.live, meter.most) == (1000, 5000)
        del first
        assert meter.live == 1000, "the view holds it"
        del view
        assert meter.live == 0


@pytest.mark.parametrize(("noise", "classes", "entries"), [("float", 60, 128), ("grid", 4, 64)])
def test_what_covariances_take_while_they_are_asked_for(noise: str, classes: int, entries: int) -> None:
    question = ClassSpreads(noise_multiplier=2.0, clip_norm=8.0)
    places = Places(torch.arange(classes)[:, None], torch.arange(classes)[:, None], torch.ones(classes, 1))
    latents, centres = torch.randn(classes, entries), torch.zeros(classes, 1, entries)

    def asked() -> None:
        total = spread_sums(question, places, latents, centres)
        if noise == "grid":
            add_gaussian_on_grid(total, 2.0, 1.0, total.numel(), SeededEntropy(0))
        else:
            add_gaussian(total, 2.0, SeededEntropy(0))

    predicted = SPREADS[noise] * classes * entries**2
    assert 0.6 * predicted < peak_of(asked, CPU) < predicted


def test_what_autograd_keeps_counts_until_the_backward_pass() -> None:
    weight = torch.ones(10, 10, requires_grad=True)

    def work() -> None:
        x = torch.ones(100, 10)  # 4000
        for _ in range(5):
            x = torch.sigmoid(x @ weight)  # the product is let go, what it became is kept
        x.sum().backward()

    kept = 6 * 4000
    assert kept < peak_of(work, CPU) < kept + 3 * 4000


def test_a_pass_costs_more_for_every_further_example() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    examples, trainable = torch.randn(8, 3, 4), dict(network.named_parameters())
    plan = plan_of(RunConfig.model_validate(PLAN))
    cost = pass_cost(network, trainable, plan, lambda rows: network(examples[:rows]).mean((1, 2)))
    assert cost.first > 0
    measured = peak_of(lambda: one_pass(network, examples), CPU)
    assert cost.of(8) == pytest.approx(measured, rel=0.1), "a straight line through one and two"


PLAN: dict[str, Any] = {
    "data": {"path": "x", "image_size": 16},
    "privacy": {"dataset_id": "x", "records": 40, "epsilon": 0.5, "delta": 1e-3, "steps": 2, "reserve_steps": 1}
    | {"expected_batch_size": 20},
}


def one_pass(network: torch.nn.Module, examples: Tensor) -> None:
    with ClippedSum(network, dict(network.named_parameters()), 1e-3) as clipped:
        clipped.accumulate(network(examples).mean((1, 2)))


def test_as_many_rows_as_fit() -> None:
    cost = PassCost(first=1000, further=100)
    free = int((500 + cost.of(7)) * ALLOCATOR / USABLE) + 1
    assert rows_that_fit(cost, 500, free, most=50) == 7
    assert rows_that_fit(cost, 500, free, most=3) == 3
    assert rows_that_fit(cost, 500, 0, most=50) == 1, "one is tried whatever it costs"
    assert rows_that_fit(PassCost(1000, 0), 0, free, most=50) == 50
    assert rows_that_fit(cost, 0, 1 << 60, most=10**6) == 256


def test_the_peak_is_that_of_the_worst_phase() -> None:
    memory = Memory(loading=9, checks=2, encoding=3, asking=1, update=4, before_a_pass=5, a_pass=PassCost(1, 2))
    assert [memory.peak(rows) for rows in (1, 2, 3)] == [9, 9, 10]


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tuner_of(raw: dict[str, Any]) -> Callable[..., tuple[Tuner, RunConfig, Any]]:
    def build(**runtime: Any) -> tuple[Tuner, RunConfig, Any]:
        config = RunConfig.model_validate(raw | {"runtime": raw["runtime"] | runtime})
        backbone, plan = load_backbone(config.backbone), plan_of(config)
        tuner = Tuner(backbone, config, plan)
        tuner.settle(backbone, config, plan)
        return tuner, config, backbone

    return build


def clipped_sum(tuner: Tuner, config: RunConfig, backbone: Any, rows: int = 6) -> Tensor:
    plan = plan_of(config)
    torch.manual_seed(0)
    losses = made_up_losses(backbone, config, plan, entropy=SeededEntropy(3))
    with ClippedSum(tuner.network, tuner.trainable, plan.max_grad_norm) as clipped:
        clipped.accumulate(losses(rows))
        return torch.cat([total.flatten() for total in clipped.take().values()])


def test_checkpointing_changes_no_sum(tuner_of: Callable[..., Any]) -> None:
    plain, again = clipped_sum(*tuner_of()), clipped_sum(*tuner_of(gradient_checkpointing=True))
    assert float(plain.norm()) > 0
    assert torch.allclose(plain, again, rtol=1e-4, atol=1e-7 * float(plain.abs().max()))


def test_bfloat16_is_for_what_is_frozen_and_bounds_stay(tuner_of: Callable[..., Any]) -> None:
    tuner, config, backbone = tuner_of(frozen_dtype="bfloat16")
    halves = {name for name, p in tuner.network.named_parameters() if p.dtype == torch.bfloat16}
    assert halves
    assert halves.isdisjoint(tuner.trainable)
    assert not [name for name in halves if "norm" in name]
    rough, plain = clipped_sum(tuner, config, backbone), clipped_sum(*tuner_of())
    assert rough.dtype == torch.float32
    assert 0 < float((rough - plain).norm()) < 0.1 * float(plain.norm())
    assert float(rough.norm()) <= 6 * config.privacy.max_grad_norm * (1 + 1e-6)
    alone = clipped_sum(tuner, config, backbone, rows=1)
    assert float(alone.norm()) <= config.privacy.max_grad_norm * (1 + 1e-6)


def test_both_take_less(tuner_of: Callable[..., Any]) -> None:
    def cost(**runtime: Any) -> PassCost:
        tuner, config, backbone = tuner_of(**runtime)
        plan = plan_of(config)
        return pass_cost(tuner.network, tuner.trainable, plan, made_up_losses(backbone, config, plan))

    plain = cost()
    assert cost(gradient_checkpointing=True).further < plain.further
    assert cost(frozen_dtype="bfloat16").further < plain.further


def test_auto_looks_at_the_machine_and_at_no_image(
    tuner_of: Callable[..., Any], raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["data"]["path"] = "/nowhere"
    assert tuner_of(physical_batch_size=7)[0].rows_at_once == 7
    plenty, config, backbone = tuner_of(physical_batch_size="auto")
    assert plenty.rows_at_once == config.privacy.expected_batch_size
    plan = plan_of(config)
    cost = pass_cost(plenty.network, plenty.trainable, plan, made_up_losses(backbone, config, plan))
    tuned = sum(p.numel() for p in plenty.trainable.values())
    beside = 2 * 4 * tuned + 40 * 2 * 4 * 32
    free = int((beside + cost.of(5)) * ALLOCATOR / USABLE) + 1
    monkeypatch.setattr(tuning, "free_memory", lambda device: free)
    assert tuner_of(physical_batch_size="auto")[0].rows_at_once == 5


def test_a_run_with_everything_that_saves_memory(raw: dict[str, Any]) -> None:
    light = {"physical_batch_size": "auto", "frozen_dtype": "bfloat16", "gradient_checkpointing": True, "tiling": True}
    config = RunConfig.model_validate(raw | {"runtime": raw["runtime"] | light})
    assert [step.number for step in finetune(config)] == [1, 2]


def test_captions_and_adapters_can_be_lightened(tmp_path: Path) -> None:
    backbone = load_backbone(str(make("stable diffusion", tmp_path / "public")))
    settings = PLAN | {"data": {"path": "x", "image_size": 32, "channels": 3}, "trainable": "lora-2"}
    config = RunConfig.model_validate(
        settings | {"runtime": {"frozen_dtype": "bfloat16", "gradient_checkpointing": True}}
    )
    tuner = Tuner(backbone, config, plan_of(config))
    tuner.settle(backbone, config, plan_of(config))
    assert float(clipped_sum(tuner, config, backbone).norm()) > 0


def test_what_cannot_be_lightened_says_so() -> None:
    with pytest.raises(UserError, match=r"A Linear cannot compute activations again: leave out"):
        recompute_activations(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"runtime\.tiling is for autoencoders of the class AutoencoderKL"):
        tile(Pixels(3))


def test_nothing_is_computed_in_halves_unless_asked() -> None:
    network = torch.nn.Linear(2, 2)
    with computing(network):
        assert network(torch.ones(1, 2)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), computing(network):
        assert network(torch.ones(1, 2)).dtype == torch.bfloat16, "somebody else asked"


# --- images ---------------------------------------------------------------------------------------------------------


def test_large_images_go_through_the_autoencoder_few_at_a_time() -> None:
    assert images_at_once(32) == 256
    assert images_at_once(256) == 4
    assert images_at_once(1024) == 1


@pytest.mark.parametrize("weights", sorted(BUNDLED.glob("*/vae/*.safetensors")), ids=lambda file: file.parts[-3])
def test_images_of_a_bundled_backbones_own_size_are_not_cut(weights: Path) -> None:
    made_for = json.loads((weights.parents[1] / "backbone.json").read_text(encoding="utf-8"))["recipe"]
    autoencoder, size = AutoencoderKL.from_pretrained(weights.parent).eval(), made_for["image_size"]
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, made_for["channels"]), dtype=np.uint8)
    whole = encode(autoencoder, images).mean
    tile(autoencoder)
    assert torch.equal(encode(autoencoder, images).mean, whole)


def test_large_images_are_encoded_in_tiles_which_takes_less() -> None:
    torch.manual_seed(0)
    autoencoder = kl_autoencoder(4).eval()  # made for 32 pixels
    small, large = (np.random.default_rng(0).integers(0, 256, (1, n, n, 3), dtype=np.uint8) for n in (32, 256))
    before, most = encode(autoencoder, small).mean, peak_of(lambda: encode(autoencoder, large), CPU)
    tile(autoencoder)
    assert torch.equal(encode(autoencoder, small).mean, before)
    assert peak_of(lambda: encode(autoencoder, large), CPU) < most / 2
    assert encode(autoencoder, large).mean.shape == (1, 4, 32, 32)
