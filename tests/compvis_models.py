"""Small random checkpoints with the names and shapes of CompVis' latent diffusion code, written out from the structure
of its modules (`UNetModel`, `Encoder` and `Decoder`, `TransformerWrapper`), not from any converter."""

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
HEADS, CHANNELS, MULTIPLES, BLOCKS = 2, 32, (1, 2), 1  # of the small UNets


def layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


# --- the UNet -------------------------------------------------------------------------------------------------------


def residual(name: str, before: int, after: int, time: int) -> Shapes:
    skip = layer(f"{name}.skip_connection", after, before, 1, 1) if before != after else {}
    return {
        **norm(f"{name}.in_layers.0", before),
        **layer(f"{name}.in_layers.2", after, before, 3, 3),
        **layer(f"{name}.emb_layers.1", after, time),
        **norm(f"{name}.out_layers.0", after),
        **layer(f"{name}.out_layers.3", after, after, 3, 3),
        **skip,
    }


def spatial_transformer(name: str, width: int, context: int) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    shapes = {**norm(f"{name}.norm", width), **layer(f"{name}.proj_in", width, width, 1, 1)}
    for attention, inputs in (("attn1", width), ("attn2", context)):
        shapes[f"{block}.{attention}.to_q.weight"] = (width, width)
        shapes |= {f"{block}.{attention}.to_{each}.weight": (width, inputs) for each in "kv"}
        shapes |= layer(f"{block}.{attention}.to_out.0", width, width)
    shapes |= layer(f"{block}.ff.net.0.proj", 8 * width, width) | layer(f"{block}.ff.net.2", width, 4 * width)
    for number in (1, 2, 3):
        shapes |= norm(f"{block}.norm{number}", width)
    return shapes | layer(f"{name}.proj_out", width, width, 1, 1)


def unet(latent_channels: int, context: int, attending: tuple[int, ...]) -> Shapes:
    time, width = 4 * CHANNELS, CHANNELS
    shapes = layer("time_embed.0", time, width) | layer("time_embed.2", time, time)
    shapes |= layer("input_blocks.0.0", width, latent_channels, 3, 3)
    seen, number = [width], 1
    for level, multiple in enumerate(MULTIPLES):
        for _ in range(BLOCKS):
            shapes |= residual(f"input_blocks.{number}.0", width, multiple * CHANNELS, time)
            width = multiple * CHANNELS
            if level in attending:
                shapes |= spatial_transformer(f"input_blocks.{number}.1", width, context)
            seen, number = [*seen, width], number + 1
        if level < len(MULTIPLES) - 1:
            shapes |= layer(f"input_blocks.{number}.0.op", width, width, 3, 3)
            seen, number = [*seen, width], number + 1
    shapes |= residual("middle_block.0", width, width, time)
    shapes |= spatial_transformer("middle_block.1", width, context)
    shapes |= residual("middle_block.2", width, width, time)
    number = 0
    for level in reversed(range(len(MULTIPLES))):
        for block in range(BLOCKS + 1):
            shapes |= residual(f"output_blocks.{number}.0", width + seen.pop(), MULTIPLES[level] * CHANNELS, time)
            width = MULTIPLES[level] * CHANNELS
            place = 1
            if level in attending:
                shapes |= spatial_transformer(f"output_blocks.{number}.1", width, context)
                place = 2
            if level and block == BLOCKS:
                shapes |= layer(f"output_blocks.{number}.{place}.conv", width, width, 3, 3)
            number += 1
    return shapes | norm("out.0", width) | layer("out.2", latent_channels, width, 3, 3)


# --- the autoencoder ------------------------------------------------------------------------------------------------


def plain_block(name: str, before: int, after: int) -> Shapes:
    skip = layer(f"{name}.nin_shortcut", after, before, 1, 1) if before != after else {}
    return {
        **norm(f"{name}.norm1", before),
        **layer(f"{name}.conv1", after, before, 3, 3),
        **norm(f"{name}.norm2", after),
        **layer(f"{name}.conv2", after, after, 3, 3),
        **skip,
    }


def middle(name: str, width: int) -> Shapes:
    shapes = plain_block(f"{name}.block_1", width, width) | plain_block(f"{name}.block_2", width, width)
    shapes |= norm(f"{name}.attn_1.norm", width)
    for each in ("q", "k", "v", "proj_out"):
        shapes |= layer(f"{name}.attn_1.{each}", width, width, 1, 1)
    return shapes


def autoencoder(latent_channels: int, multiples: tuple[int, ...], codes: int = 0) -> Shapes:
    """Args: codes: entries of the code book; 0 for a KL autoencoder."""
    width, last = CHANNELS, CHANNELS * multiples[-1]
    moments = latent_channels if codes else 2 * latent_channels
    shapes = layer("encoder.conv_in", width, 3, 3, 3)
    for level, multiple in enumerate(multiples):
        for block in range(BLOCKS):
            shapes |= plain_block(f"encoder.down.{level}.block.{block}", width, multiple * CHANNELS)
            width = multiple * CHANNELS
        if level < len(multiples) - 1:
            shapes |= layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    shapes |= middle("encoder.mid", width) | norm("encoder.norm_out", width)
    shapes |= layer("encoder.conv_out", moments, width, 3, 3)
    shapes |= layer("quant_conv", moments, moments, 1, 1)
    shapes |= layer("post_quant_conv", latent_channels, latent_channels, 1, 1)
    shapes |= layer("decoder.conv_in", last, latent_channels, 3, 3) | middle("decoder.mid", last)
    for level in reversed(range(len(multiples))):
        for block in range(BLOCKS + 1):
            shapes |= plain_block(f"decoder.up.{level}.block.{block}", width, multiples[level] * CHANNELS)
            width = multiples[level] * CHANNELS
        if level:
            shapes |= layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    shapes |= norm("decoder.norm_out", width) | layer("decoder.conv_out", 3, width, 3, 3)
    return shapes | ({"quantize.embedding.weight": (codes, latent_channels)} if codes else {})


# --- what tells them ------------------------------------------------------------------------------------------------


def clip(tokens: int, width: int, length: int) -> Shapes:
    model = "transformer.text_model"
    shapes = {
        f"{model}.embeddings.token_embedding.weight": (tokens, width),
        f"{model}.embeddings.position_embedding.weight": (length, width),
        **norm(f"{model}.final_layer_norm", width),
    }
    for number in range(2):
        one = f"{model}.encoder.layers.{number}"
        for each in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= layer(f"{one}.self_attn.{each}", width, width)
        shapes |= layer(f"{one}.mlp.fc1", 2 * width, width) | layer(f"{one}.mlp.fc2", width, 2 * width)
        shapes |= norm(f"{one}.layer_norm1", width) | norm(f"{one}.layer_norm2", width)
    return shapes


def bert(tokens: int, width: int, length: int, heads: int = 2) -> Shapes:
    inner, layers = 64 * heads, "transformer.attn_layers.layers"
    shapes = {"transformer.token_emb.weight": (tokens, width), "transformer.pos_emb.emb.weight": (length, width)}
    for number in range(2):
        attention, forward = f"{layers}.{2 * number}", f"{layers}.{2 * number + 1}"
        shapes |= norm(f"{attention}.0", width) | norm(f"{forward}.0", width)
        shapes |= {f"{attention}.1.to_{each}.weight": (inner, width) for each in "qkv"}
        shapes |= layer(f"{attention}.1.to_out", width, inner)
        shapes |= layer(f"{forward}.1.net.0.0", 4 * width, width) | layer(f"{forward}.1.net.2", width, 4 * width)
    return shapes | norm("transformer.norm", width) | layer("transformer.to_logits", tokens, width)


# --- whole checkpoints ----------------------------------------------------------------------------------------------


def random_weights(shapes: Shapes, prefix: str, seed: int) -> dict[str, Tensor]:
    """Norms near 1, everything else small, so that numbers stay tame through a network."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        is_norm = len(shape) == 1 and name.endswith("weight")
        found[prefix + name] = 1 + 0.1 * noise if is_norm else noise / max(1, torch.Size(shape[1:]).numel()) ** 0.5
    return found


def schedule(first: float, last: float) -> dict[str, Tensor]:
    betas = torch.linspace(first**0.5, last**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    return {"betas": betas.float(), "alphas_cumprod": kept.float(), "sqrt_alphas_cumprod": kept.sqrt().float()}


CONTEXT = {"classes": 16, "clip": 64, "bert": 16}
CLASSES, LENGTH = 5, 7  # class rows with the one for no class; tokens of a text
TOKENS = {"clip": 54, "bert": 9}  # of the tokenizers in stock_models.py


def checkpoint(kind: str) -> dict[str, Tensor]:
    """state_dict of a small model that is told classes (latents of a VQ autoencoder) or texts (of a KL one)."""
    told, quantised = CONTEXT[kind], kind == "classes"
    channels, attending = (3, (1,)) if quantised else (4, (0, 1))
    weights = schedule(0.0015, 0.0195) if quantised else schedule(0.00085, 0.012)
    weights |= random_weights(unet(channels, told, attending), "model.diffusion_model.", 1)
    weights |= random_weights(autoencoder(channels, (1, 2), 64 if quantised else 0), "first_stage_model.", 2)
    condition = {
        "classes": lambda: {"embedding.weight": (CLASSES, told)},
        "clip": lambda: clip(TOKENS["clip"], told, LENGTH),
        "bert": lambda: bert(TOKENS["bert"], told, LENGTH),
    }[kind]()
    return weights | random_weights(condition, "cond_stage_model.", 3)


def settings(kind: str) -> dict[str, Any]:
    """The part of a CompVis YAML that weights do not tell."""
    first, last, scale = (0.0015, 0.0195, 1.0) if kind == "classes" else (0.00085, 0.012, 0.18215)
    return {
        "model": {
            "params": {
                "linear_start": first,
                "linear_end": last,
                "timesteps": 1000,
                "image_size": 8,
                "scale_factor": scale,
                "unet_config": {"params": {"num_heads": HEADS, "use_spatial_transformer": True}},
            }
        }
    }


def write(folder: Path, kind: str, weights: dict[str, Tensor]) -> tuple[Path, Path]:
    """(model.safetensors, config.yaml) below `folder`: no other process is needed to read them."""
    folder.mkdir(parents=True, exist_ok=True)
    path, config = folder / "model.safetensors", folder / "config.yaml"
    save_file(weights, path)
    config.write_text(yaml.safe_dump(settings(kind)))
    return path, config
