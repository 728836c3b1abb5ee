"""Memory of a DP step of a network as large as Stable Diffusion 1.5's, beside what `dpldm plan` predicts.

    python tools/memory.py --output results/memory.json [--work DIR] [--arm NAME] [--small]

Writes a stock pipeline with random weights (860 million in the UNet; 2 GB on disk) and a few made-up images with
captions, then for every arm, in a process of its own each: `plan`, and `finetune` for one step with two images in its
batch, one in a pass. What the kernel calls the peak of that process is what was measured. An hour on two cores, up to
16 GB.
"""

import argparse
import json
import platform
import string
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ARMS: dict[str, dict[str, Any]] = {
    "lora-8": {"trainable": "lora-8", "tune_embedder": False},
    "attention": {"trainable": "attention", "tune_embedder": False},
    "lora-8, bfloat16": {"trainable": "lora-8", "tune_embedder": False, "runtime": {"frozen_dtype": "bfloat16"}},
}
SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--work", type=Path, help="folder for the model (a temporary one)")
    parser.add_argument("--small", action="store_true", help="a small network, to try the script")
    parser.add_argument("--arm", choices=ARMS, action="append", help="only this, beside what OUTPUT has of the others")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "ARM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(CHILDREN[given.child[0]](given.work, given.child[1], given.small)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        in_a_child(given, work, "make", "none")
        found = json.loads(given.output.read_text())["arms"] if given.arm and given.output.exists() else {}
        for arm in given.arm or ARMS:
            predicted, measured = (in_a_child(given, work, what, arm) for what in ("predict", "measure"))
            found[arm] = predicted | measured | {"ratio": predicted["predicted_bytes"] / measured["measured_bytes"]}
            print(arm, json.dumps(found[arm]), flush=True)
    import torch

    facts = {"machine": platform.machine(), "torch": torch.__version__, "image_size": side_of(given.small)}
    facts |= {"physical_batch_size": 1, "device": "cpu", "arms": found}
    given.output.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def in_a_child(given: argparse.Namespace, work: Path, what: str, arm: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--output", "-", "--work", str(work), "--child", what, arm]
    command += ["--small"] if given.small else []
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def side_of(small: bool) -> int:
    return 64 if small else 256


# --- in a child -------------------------------------------------------------------------------------------------------


def make(work: Path, arm: str, small: bool) -> dict[str, Any]:
    """The pipeline and the images."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from PIL import Image
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    widths = (32, 64) if small else (128, 256, 512, 512)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    of_unet: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    if small:
        of_unet |= SMALL | {
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    of_text = CLIPTextConfig(
        vocab_size=54 if small else 49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=2 if small else 12,
        num_attention_heads=12,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    with torch.no_grad():
        StableDiffusionPipeline(
            vae=autoencoder.half(),
            text_encoder=CLIPTextModel(of_text).half(),
            tokenizer=CLIPTokenizer(vocab=words, merges=[], model_max_length=77),
            unet=UNet2DConditionModel(**of_unet).half(),
            scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(work / "public")
    images, rng, rows = work / "images", np.random.default_rng(0), ["file_name,caption"]
    images.mkdir(parents=True)
    for number in range(20):
        pixels = rng.integers(0, 256, (side_of(small), side_of(small), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,a square")
    (images / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return {}


def config_of(work: Path, arm: str, small: bool) -> Any:
    from dpldm.config import RunConfig

    (work / "prompts.txt").write_text("a square\n", encoding="utf-8")
    return RunConfig.model_validate(
        {
            "name": arm.replace(", ", "-"),
            "data": {"path": work / "images", "image_size": side_of(small), "channels": 3, "caption_column": "caption"},
            "backbone": str(work / "public"),
            "privacy": {"dataset_id": "made-up", "records": 20, "expected_batch_size": 2, "steps": 1, "delta": 1e-3}
            | {"reserve_steps": 1, "ledger": work / f"{arm}.jsonl"},
            "sampling": {"prompts": work / "prompts.txt"},
            **ARMS[arm],
            "runtime": {"output": work / "runs", "physical_batch_size": 1} | ARMS[arm].get("runtime", {}),
        }
    )


def predict(work: Path, arm: str, small: bool) -> dict[str, Any]:
    """What `dpldm plan` says."""
    from dpldm.planning import plan

    made = plan(config_of(work, arm, small))
    found = {"parameters": made.total_parameters, "tuned": made.trainable_parameters}
    return found | {"predicted_bytes": made.memory_bytes, "seconds_per_example": round((made.seconds or 0) / 2, 1)}


def measure(work: Path, arm: str, small: bool) -> dict[str, Any]:
    """Peak of a real step. The images are made up, so its batch may be chosen: a drawn one could be empty."""
    import torch

    from dpldm.privacy import mechanism
    from dpldm.train.finetune import finetune
    from dpldm.train.memory import peak_so_far

    mechanism.poisson_batch = lambda *arguments: torch.tensor([0, 1])  # type: ignore[assignment]
    assert [step.number for step in finetune(config_of(work, arm, small))] == [1]
    return {"measured_bytes": peak_so_far()}


CHILDREN = {"make": make, "predict": predict, "measure": measure}

if __name__ == "__main__":
    main()
