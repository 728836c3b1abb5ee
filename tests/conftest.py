"""Shared by all tests: one thread (so that suites can share a machine) and a tiny public backbone."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dpldm.config import RunConfig
from dpldm.models.autoencoder import build_autoencoder
from dpldm.models.backbone import Backbone
from dpldm.models.denoiser import build_denoiser, build_scheduler
from tiny_runs import ASKED, SELECTION, tiny_settings, write_images

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def account(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The account's data folder, where ledgers lie by default, is the test's own."""
    folder = tmp_path_factory.mktemp("account")
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone directory with random weights: 16x16 grey images, latents 4x4x2, a UNet of a few thousand weights."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("backbone") / "tiny"
    autoencoder = build_autoencoder(1, 2, (8, 8, 8)).eval()
    denoiser = build_denoiser(2, 4, 5, widths=(16, 16), layers_per_block=1, heads=2, condition_dim=8).eval()
    Backbone("tiny", autoencoder, denoiser, build_scheduler("v_prediction"), {"recipe": "random"}).save(directory)
    return directory


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 40 grey 16x16 images in two classes."""
    return write_images(tmp_path / "images")


@pytest.fixture
def raw(tmp_path: Path, tiny_backbone: Path, image_folder: Path) -> dict[str, Any]:
    """Raw values of a config that runs, to be changed by the test."""
    return tiny_settings(tmp_path, tiny_backbone, image_folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> RunConfig:
    """A run that was fine-tuned and sampled, shared by all tests: look, do not touch (see `finished_copy`)."""
    return _finished(tmp_path_factory.mktemp("finished"), tiny_backbone, {})


@pytest.fixture(scope="session")
def answered(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> RunConfig:
    """A finished run that asked for a class histogram and class means: look, do not touch (see `answered_copy`)."""
    return _finished(tmp_path_factory.mktemp("answered"), tiny_backbone, ASKED)


@pytest.fixture(scope="session")
def selected(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> RunConfig:
    """A finished selection of the middle one of three learning rates, in two trials: look, do not touch (see
    `selected_copy`)."""
    from dpldm.sampling import sample
    from dpldm.train import selecting

    directory = tmp_path_factory.mktemp("selected")
    settings = tiny_settings(directory, tiny_backbone, write_images(directory / "images"))
    settings["privacy"]["epsilon"] = 1.0
    config = RunConfig.model_validate(settings | {"selection": SELECTION, "trainable": "condition"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selecting, "draw_trials", lambda plan, entropy: [1, 1])
        selecting.select(config)
    list(sample(config))
    return config


@pytest.fixture
def finished_copy(tmp_path: Path, finished: RunConfig) -> RunConfig:
    """The finished run in a folder of the test's own."""
    return _copy(finished, tmp_path / "copied-runs")


@pytest.fixture
def answered_copy(tmp_path: Path, answered: RunConfig) -> RunConfig:
    """The answered run in a folder of the test's own."""
    return _copy(answered, tmp_path / "copied-answered-runs")


@pytest.fixture
def selected_copy(tmp_path: Path, selected: RunConfig) -> RunConfig:
    """The finished selection in a folder of the test's own."""
    return _copy(selected, tmp_path / "copied-selection")


def _finished(directory: Path, backbone: Path, privacy: dict[str, Any]) -> RunConfig:
    from dpldm.sampling import sample
    from dpldm.train.finetune import finetune

    settings = tiny_settings(directory, backbone, write_images(directory / "images"))
    settings["privacy"] |= privacy
    config = RunConfig.model_validate(settings)
    assert len(list(finetune(config))) == 2
    assert list(sample(config))[-1].done == 24
    return config


def _copy(config: RunConfig, output: Path) -> RunConfig:
    shutil.copytree(config.runtime.output, output)
    return config.model_copy(
        update={
            "runtime": config.runtime.model_copy(update={"output": output}),
            "privacy": config.privacy.model_copy(update={"ledger": output / "ledgers" / "scans.jsonl"}),
        }
    )
