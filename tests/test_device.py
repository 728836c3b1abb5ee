"""Where networks compute: the choice, that everything moves there and back, and the same results on CUDA."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.data.latents import PrivateLatents
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.models.autoencoder import Posterior, decode, encode
from dpldm.models.backbone import load_backbone
from dpldm.privacy import clipping
from dpldm.privacy.entropy import SeededEntropy
from dpldm.privacy.ledger import open_ledger
from dpldm.run import Run, plan_of
from dpldm.sampling import Sampler, sample
from dpldm.train import tuner as tuning
from dpldm.train.algorithm_1 import algorithm_1
from dpldm.train.checkpoint import optimizer_tensors
from dpldm.train.finetune import finetune
from dpldm.train.tuner import Tuner

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def config_on(device: str, raw: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate(raw | {"runtime": raw["runtime"] | {"device": device}})


def test_cpu_is_the_cpu_and_auto_takes_what_there_is() -> None:
    assert chosen_device("cpu").type == "cpu"
    assert chosen_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@no_cuda
def test_cuda_where_there_is_none_is_refused_before_anything_is_written(raw: dict[str, Any]) -> None:
    config = config_on("cuda", raw)
    for attempt in (lambda: next(finetune(config)), lambda: next(sample(config))):
        with pytest.raises(UserError, match=r"^runtime\.device is cuda, but .* use auto or cpu"):
            attempt()
    assert not Run(config).directory.exists()
    assert not Run(config).ledger.exists()


def made_up(count: int) -> PrivateLatents:
    """Latents of records that never were images."""
    mean = torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    posterior = Posterior(mean, torch.full_like(mean, -3.0))
    return PrivateLatents(posterior, torch.arange(count) % 2, torch.ones(count, dtype=torch.bool))


def update_on(device: torch.device, config: RunConfig) -> dict[str, Tensor]:
    """The averaged weights after the plan's updates on made-up latents, from one seed, on the CPU."""
    torch.manual_seed(0)
    backbone, plan, run = load_backbone(config.backbone, device), plan_of(config), Run(config)
    tuner = Tuner(backbone, config, plan)
    run.create()
    with open_ledger(run.ledger, plan.dataset_id, (plan.epsilon, plan.delta)) as ledger:
        ledger.register(plan)
        steps = algorithm_1(tuner, backbone.scheduler, made_up(40), plan, ledger, run, SeededEntropy(1))
        assert len(list(steps)) == plan.steps
    assert {p.device.type for p in tuner.network.parameters()} == {device.type}
    return {n: t.cpu() for n, t in zip(tuner.trainable, tuner.average.shadow_params, strict=True)}


@needs_cuda
def test_fine_tuning_on_cuda_is_that_of_the_cpu(raw: dict[str, Any], tmp_path: Path) -> None:
    results = []
    for device in ("cpu", "cuda"):
        runtime = raw["runtime"] | {"output": str(tmp_path / device)}
        privacy = raw["privacy"] | {"ledger": str(tmp_path / device / "ledger.jsonl")}
        settings = raw | {"runtime": runtime, "privacy": privacy}
        results.append(update_on(torch.device(device), config_on(device, settings)))
    for name, expected in results[0].items():
        assert torch.allclose(results[1][name], expected, rtol=1e-3, atol=1e-5), name


@needs_cuda
def test_encoding_and_sampling_on_cuda_are_those_of_the_cpu(raw: dict[str, Any]) -> None:
    config, images = config_on("cuda", raw), np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1), np.uint8)
    latents, drawn = [], []
    for device in ("cpu", "cuda"):
        backbone = load_backbone(config.backbone, torch.device(device))
        latents.append(encode(backbone.autoencoder, images).mean)
        draw = Sampler(backbone, backbone.denoiser, config.sampling, 16)
        drawn.append(draw(torch.tensor([0, 1, -1]), torch.Generator().manual_seed(0)).astype(int))
    assert latents[1].device.type == "cpu"
    assert torch.allclose(*latents, rtol=1e-3, atol=1e-4)
    assert np.abs(drawn[0] - drawn[1]).max() <= 2


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Torch's meta device as a stand-in for CUDA. It computes shapes only, but as strictly: an operation on tensors of
    it and of the CPU is an error. What comes back from it is made zero, or what a test of it needs."""

    def back(tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor

    monkeypatch.setattr(Tensor, "cpu", back)
    monkeypatch.setattr(clipping, "_full_precision", lambda device: nullcontext())  # meta has no autocast
    monkeypatch.setattr(clipping, "_some", lambda flags: True)  # asks for a value
    monkeypatch.setattr(tuning, "save_checkpoint", lambda *arguments: None)  # asks for values
    return torch.device("meta")


def test_meta_notices_what_was_not_moved(elsewhere: torch.device) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device=elsewhere) + torch.zeros(2)


def test_every_tensor_of_an_update_is_where_it_must_be(raw: dict[str, Any], elsewhere: torch.device) -> None:
    """Latents, draws, gradients, noise and averages, through whole updates of Algorithm 1."""
    config = config_on("cpu", raw)
    averages = update_on(elsewhere, config)
    assert averages, "updates were made; their values are of no use"


def test_encoding_and_sampling_move_there_and_back(raw: dict[str, Any], elsewhere: torch.device) -> None:
    backbone, config = load_backbone(raw["backbone"], elsewhere), config_on("cpu", raw)
    posterior = encode(backbone.autoencoder, np.zeros((3, 16, 16, 1), np.uint8))
    assert posterior.mean.device.type == "cpu"
    assert decode(backbone.autoencoder, posterior.mean, 16).shape == (3, 16, 16, 1)
    draw = Sampler(backbone, backbone.denoiser, config.sampling, 16)
    assert draw(torch.tensor([0, 1, -1]), torch.Generator().manual_seed(0)).shape == (3, 16, 16, 1)


def test_a_checkpoint_is_put_back_on_the_device(raw: dict[str, Any], elsewhere: torch.device, tmp_path: Path) -> None:
    config = config_on("cpu", raw)
    here, there = (
        Tuner(load_backbone(config.backbone, device), config, plan_of(config))
        for device in (torch.device("cpu"), elsewhere)
    )
    here.update({name: torch.ones_like(p) for name, p in here.trainable.items()})
    groups = {
        "network": dict(here.trainable),
        "average": dict(zip(here.trainable, here.average.shadow_params, strict=True)),
        "optimizer": optimizer_tensors(here.optimizer, list(here.trainable)),
    }
    there.load(groups, 1, 1)
    there.update({name: torch.ones(p.shape) for name, p in there.trainable.items()})
    assert {t.device.type for t in there.average.shadow_params} == {"meta"}


@pytest.mark.parametrize("harm", [lambda: torch.set_float32_matmul_precision("medium"), lambda: None])
def test_products_of_norms_are_in_full_precision_whatever_the_process_uses(harm: Callable[[], None]) -> None:
    seen: list[tuple[str, bool]] = []
    model = torch.nn.Linear(4, 4)
    before = torch.get_float32_matmul_precision()
    try:
        harm()
        asked = torch.get_float32_matmul_precision()
        with clipping.ClippedSum(model, dict(model.named_parameters()), 1.0) as clipped:
            record = clipped._clip_factors

            def noted(*arguments: Any) -> Tensor:
                seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
                return record(*arguments)

            clipped._clip_factors = noted
            with torch.autocast("cpu", torch.bfloat16):
                clipped.accumulate(model(torch.randn(3, 4)).float().square().sum(1))
            assert torch.get_float32_matmul_precision() == asked, "and the process keeps what it uses"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [("highest", False)]
