"""A CompVis checkpoint to a directory that can be a backbone: `dpldm backbone convert`.

    what tells the model     it becomes                                     of the published models
    a class embedder         a class-token model of ours, a row a class     cin256 (the last row is "no class")
    CLIP's text encoder      `StableDiffusionPipeline`                      Stable Diffusion 1.x
    CompVis' BERT            `LDMTextToImagePipeline`                       txt2img-1.4B
    (an autoencoder alone)   `AutoencoderKL` or `VQModel`, no backbone yet  KL-f4, KL-f8, VQ-f4

Strict both ways: a parameter that the checkpoint lacks and a tensor of it that nothing asked for are refused by name.
Where a checkpoint holds moving averages of its denoiser, they are taken, as its makers sample with them.
"""

import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, VQModel
from torch import nn

from dpldm.errors import MissingExtra, UserError
from dpldm.models.backbone import OWN, certify, sha256_of
from dpldm.models.compvis import names
from dpldm.models.compvis.checkpoint import AUTOENCODER, CLASSES, CONDITION, UNET, Checkpoint
from dpldm.models.compvis.settings import (
    KNOWN,
    Beyond,
    autoencoder_settings,
    below,
    bert_settings,
    beyond_of,
    clip_settings,
    unet_settings,
)

IMAGENET = 1000
AUTOENCODERS_SIDE = 256  # pixels that the published autoencoders were trained on
TOKENIZERS = {
    "clip": ("CLIPTokenizer", "openai/clip-vit-large-patch14"),
    "bert": ("BertTokenizer", "google-bert/bert-base-uncased"),
}
"""A checkpoint has no vocabulary; these are the ones that the models were trained with."""


@dataclass(frozen=True)
class Converted:
    """What became of a checkpoint."""

    directory: Path
    pipeline: str  # its class; that of the autoencoder if there is nothing else
    is_backbone: bool


def convert(checkpoint: Path, output: Path, config: Path | None = None, tokenizer: str | None = None) -> Converted:
    """Write `checkpoint` as the directory `output`.

    Args:
        checkpoint: a `.ckpt` or a `.safetensors` with CompVis' names.
        config: its YAML; not needed for Stable Diffusion 1.x, txt2img-1.4B, cin256 and autoencoders.
        tokenizer: directory of the tokenizer of a model that is told texts, or its name on the Hugging Face hub; by
            default the one that the published models have, from the hub.

    Raises:
        UserError: `output` is in the way, or something cannot be read or converted.
    """
    if output.exists():
        raise UserError(f"{output} is there already: give --output a new folder.")
    beyond = None if config is None else beyond_of(config)
    found = Checkpoint(checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".converting-") as folder:
        made = Path(folder) / output.name
        try:
            pipeline = _write(found, made, beyond, tokenizer)
        except LookupError as error:
            raise UserError(f"{checkpoint} lacks {error.args[0]}: it is of a kind that cannot be converted.") from error
        made.rename(output)
    return Converted(output, pipeline, found.condition is not None)


def _write(found: Checkpoint, directory: Path, beyond: Beyond | None, tokenizer: str | None) -> str:
    """Everything of a checkpoint, and the class that it is of."""
    condition = found.condition
    if condition is None:
        alone: Any = _autoencoder(found, "", AUTOENCODERS_SIDE, scale=1.0)
        found.require_used_up()
        alone.save_pretrained(directory)
        return type(alone).__name__
    beyond = beyond or KNOWN[condition]
    scale = float(found.weights.get("scale_factor", beyond.scale))
    autoencoder = _autoencoder(found, AUTOENCODER, beyond.side, scale)
    parts: dict[str, Any] = {"unet": _unet(found, beyond), "scheduler": _schedule(found, beyond)}
    if condition == "classes":
        _add_classes(parts["unet"], found)
        pipeline = _class_token_model(parts | {"vae": autoencoder}, directory)
    else:
        encoder = _text_encoder(found, condition)
        parts["tokenizer"] = _tokenizer(condition, encoder.config, tokenizer)
        pipeline = _stock_pipeline(condition, parts, autoencoder, encoder, directory)
    found.require_used_up()
    origin = {"file": found.path.name, "sha256": sha256_of(found.path)}
    certify(directory, directory.name, {"pipeline": pipeline, "converted_from": origin})
    return pipeline


def _unet(found: Checkpoint, beyond: Beyond) -> UNet2DConditionModel:
    settings = unet_settings(below(found.weights, UNET), beyond)
    network = UNet2DConditionModel(**settings)
    ways = settings["up_block_types"]
    attending = {level for level, kind in enumerate(ways) if kind == "CrossAttnUpBlock2D"}
    called = partial(names.unet_name, layers=settings["layers_per_block"], attending=attending)
    found.fill(network, UNET, called)
    return network


def _autoencoder(found: Checkpoint, prefix: str, side: int, scale: float) -> nn.Module:
    """Args: side of the latents, or of the images where there is nothing but the autoencoder."""
    settings = autoencoder_settings(below(found.weights, prefix))
    levels = len(settings["block_out_channels"])
    kind = VQModel if "num_vq_embeddings" in settings else AutoencoderKL
    pixels = side * 2 ** (levels - 1) if prefix else side
    network: nn.Module = kind(**settings, sample_size=pixels, scaling_factor=scale)
    found.fill(network, prefix, partial(names.autoencoder_name, levels=levels))
    return network


@torch.no_grad()
def _add_classes(network: Any, found: Checkpoint) -> None:
    """The rows of the class embedder as the columns of a class-token model's layer (families/class_token.py): what it
    makes of a one-hot label is the label's row. The last row is the one for "no class".

    Raises:
        UserError: there is no such row.
    """
    rows, width = found.weights[CLASSES].shape
    if rows == IMAGENET:
        raise UserError(
            f"{found.path} has a row for each of ImageNet's {IMAGENET} classes and none for no class, without which "
            "nothing can be guided or hidden: convert cin256-v2 or another one that has it."
        )
    layer = nn.Linear(rows, width)
    layer.weight.copy_(found.take(CLASSES, torch.Size((rows, width))).T)
    layer.bias.zero_()
    network.encoder_hid_proj = layer
    network.register_to_config(encoder_hid_dim=rows, encoder_hid_dim_type="text_proj")


def _schedule(found: Checkpoint, beyond: Beyond) -> DDIMScheduler:
    """The noise schedule, held to the one in the checkpoint.

    Raises:
        UserError: they differ.
    """
    first, last = beyond.betas
    scheduler = DDIMScheduler(
        num_train_timesteps=beyond.timesteps,
        beta_start=first,
        beta_end=last,
        beta_schedule="scaled_linear",
        prediction_type=beyond.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    theirs, ours = found.weights.get("alphas_cumprod"), scheduler.alphas_cumprod
    if theirs is not None and (theirs.shape != ours.shape or not torch.allclose(theirs.float(), ours, atol=1e-4)):
        raise UserError(f"{found.path} has another noise schedule than expected: give its YAML with --config.")
    return scheduler


def _text_encoder(found: Checkpoint, condition: str) -> Any:
    try:
        from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError:
        raise MissingExtra("transformers", "text", "A model that is told texts") from None
    network: Any
    if condition == "clip":
        settings = clip_settings(below(found.weights, f"{CONDITION}transformer.text_model."))
        network, called = CLIPTextModel(CLIPTextConfig(**settings)), names.clip_name
    else:
        settings = bert_settings(below(found.weights, f"{CONDITION}transformer."))
        network, called = LDMBertModel(LDMBertConfig(**settings)), names.bert_name
    found.fill(network, CONDITION, called)
    return network


def _tokenizer(condition: str, encoder: Any, given: str | None) -> Any:
    """The tokenizer, which must fit the settings of the text encoder.

    Raises:
        UserError: it is not to be had, or is another one.
    """
    import transformers

    kind, published = TOKENIZERS[condition]
    place = given or published
    try:
        tokenizer = getattr(transformers, kind).from_pretrained(place)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"The tokenizer {place} can neither be read here nor fetched from the Hugging Face hub "
            f"({type(error).__name__}): give the folder of a copy with --tokenizer."
        ) from error
    if len(tokenizer) != encoder.vocab_size:
        raise UserError(
            f"The tokenizer {place} has {len(tokenizer)} tokens, the text encoder {encoder.vocab_size}: give the "
            "tokenizer that the model was trained with."
        )
    tokenizer.model_max_length = encoder.max_position_embeddings
    return tokenizer


def _stock_pipeline(condition: str, parts: dict[str, Any], autoencoder: Any, encoder: Any, directory: Path) -> str:
    if condition == "clip":
        unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        made = diffusers.StableDiffusionPipeline(vae=autoencoder, text_encoder=encoder, **parts, **unchecked)
    else:
        made = diffusers.LDMTextToImagePipeline(vqvae=autoencoder, bert=encoder, **parts)
    made.save_pretrained(directory)
    return type(made).__name__


def _class_token_model(parts: dict[str, Any], directory: Path) -> str:
    for name, part in parts.items():
        part.save_pretrained(directory / name)
    index = OWN | {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    (directory / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return str(OWN["_class_name"])
