"""No command but `app` and `push` makes a socket: each is run with sockets forbidden."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from compvis_models import autoencoder, random_weights
from dpldm.cli import COMMANDS, main
from sockets import no_socket
from tiny_runs import hurry, write_images

WITH_SOCKETS = {"app", "push"}
RUN = (
    "inspect DATA --write started.yaml",
    "plan --config run.yaml --choices",
    "rehearse --config run.yaml",
    "finetune --config run.yaml",
    "sample --config run.yaml --gen-npz gen.npz",
    "evaluate --config run.yaml",
    "evaluate --config run.yaml --synthetic gen.npz",
    "release --config run.yaml --what both",
    "run --config run.yaml --what both",
    "report runs/tiny",
    "verify runs/tiny/release",
    "memorisation runs/tiny",
    "baseline classifier --config run.yaml",
    "baseline real --config run.yaml --stand-in",
    "baseline noiseless --config run.yaml --stand-in",
    "audit --config run.yaml",
    "audit --release runs/tiny/release",
    "ledger show runs/ledgers/scans.jsonl",
    "ledger verify runs/ledgers/scans.jsonl",
    "clean runs/tiny",
)
PUBLIC = (
    "public check",
    "public check cifar10",
    "reproduce",
    "public digits --output digits",
    "public folder --source DATA --licence CC0-1.0 --origin drawn --image-size 16 --output set",
    "pretrain --recipe recipe.yaml",
    "backbone list",
    "backbone show grey32",
    "backbone draw little --output drawn.png",
    "backbone convert vae.safetensors --output vae",
)


@pytest.fixture
def forbidden() -> Iterator[list[str]]:
    with no_socket() as tried:
        yield tried


def little_recipe() -> dict[str, Any]:
    stage = {"batch_size": 4, "steps": 2, "warmup_steps": 1}
    return {
        "name": "little",
        "image_size": 16,
        "channels": 1,
        "public": ["set"],
        "output": "little",
        "autoencoder": stage | {"latent_channels": 2, "widths": [8, 8, 8], "bf16": False},
        "diffusion": stage | {"widths": [16], "heads": 2, "condition_dim": 8, "pseudo_classes": 4},
    }


def test_what_is_forbidden_is_noticed(forbidden: list[str]) -> None:
    with pytest.raises(RuntimeError):
        socket.socket()
    with pytest.raises(RuntimeError):
        socket.getaddrinfo("localhost", 80)
    assert forbidden == ["socket.__new__", "socket.getaddrinfo"]


def test_every_command_is_run_here() -> None:
    """`public icons` and `public glyphs`, which need sources of their own: data/public/test_public_no_socket.py.

    Of `reproduce`, the list of rows; a row goes through functions of the other commands.
    """
    assert {line.split()[0] for line in RUN + PUBLIC} == COMMANDS.keys() - WITH_SOCKETS


def test_a_run_and_what_follows_it(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbidden: list[str]
) -> None:
    """Features are those of the real network here, whose weights would have to be fetched if they were not there."""
    hurry(monkeypatch)
    monkeypatch.chdir(tmp_path)
    raw["data"]["test_path"] = str(write_images(tmp_path / "test", seed=1))
    raw["privacy"]["cap"] = [1.0, 2e-3]
    Path("run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    for line in RUN:
        assert main(line.replace("DATA", "images").split()) == 0, line
        assert forbidden == [], line


def test_what_makes_public_things(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, forbidden: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(json.dumps(little_recipe()))
    save_file(random_weights(autoencoder(3, (1, 2)), "", 5), tmp_path / "vae.safetensors")
    for line in PUBLIC:
        assert main(line.replace("DATA", str(image_folder)).split()) == 0, line
        assert forbidden == [], line
