"""What a stock class must be told to hold a checkpoint's weights: most of it is seen from their shapes.

What shapes do not tell (`Beyond`) comes from the checkpoint's YAML, or is known of three published models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from dpldm.errors import UserError

Weights = Mapping[str, Tensor]
HEAD = 64  # channels of an attention head in CLIP's text encoder and in CompVis' BERT
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


@dataclass(frozen=True)
class Beyond:
    """What weights do not tell about a latent diffusion model."""

    heads: int = 0  # of attention, the same on all levels; 0: see head_channels
    head_channels: int = 0  # of each head
    side: int = 64  # of the latents it was trained on
    scale: float = 1.0  # latents are multiplied by it; a buffer of that name in the checkpoint is believed instead
    betas: tuple[float, float] = (0.00085, 0.012)  # first and last; their roots are equally far apart
    timesteps: int = 1000
    prediction: str = "epsilon"


KNOWN = {
    "classes": Beyond(heads=1, side=64, scale=1.0, betas=(0.0015, 0.0195)),  # cin256
    "clip": Beyond(heads=8, side=64, scale=0.18215),  # Stable Diffusion 1.x
    "bert": Beyond(heads=8, side=32, scale=0.18215),  # txt2img-1.4B
}
"""Of the published models, by what tells them about an image."""


def beyond_of(path: Path) -> Beyond:
    """What a CompVis YAML says.

    Raises:
        UserError: it cannot be read, or describes something else.
    """
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        unet, kind = params["unet_config"]["params"], params.get("parameterization", "eps")
        if params.get("beta_schedule", "linear") != "linear":
            raise ValueError
        return Beyond(
            heads=max(0, int(unet.get("num_heads", 0))),
            head_channels=max(0, int(unet.get("num_head_channels", 0))),
            side=int(params["image_size"]),
            scale=float(params.get("scale_factor", 1.0)),
            betas=(float(params["linear_start"]), float(params["linear_end"])),
            timesteps=int(params["timesteps"]),
            prediction=PREDICTIONS[kind],
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} cannot be read as the YAML of a latent diffusion model ({type(error).__name__}): give the one "
            "that came with the checkpoint."
        ) from error


def unet_settings(weights: Weights, beyond: Beyond) -> dict[str, Any]:
    """Settings of the `UNet2DConditionModel` of weights named below `model.diffusion_model.`.

    Raises:
        LookupError: they are not those of a UNet with cross-attention.
    """
    levels: list[list[tuple[int, bool]]] = [[]]  # (channels, attention) of each residual block on the way down
    for place in range(1, _count(weights, "input_blocks.")):
        if f"input_blocks.{place}.0.op.weight" in weights:
            levels.append([])
        else:
            width = weights[f"input_blocks.{place}.0.out_layers.3.weight"].shape[0]
            levels[-1].append((width, f"input_blocks.{place}.1.norm.weight" in weights))
    widths, attending = zip(*(level[0] for level in levels), strict=True)
    middle = "middle_block.1."
    return {
        "sample_size": beyond.side,
        "in_channels": weights["input_blocks.0.0.weight"].shape[1],
        "out_channels": weights["out.2.weight"].shape[0],
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attending],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attending)],
        "block_out_channels": list(widths),
        "layers_per_block": len(levels[0]),
        # diffusers reads this as the number of heads
        "attention_head_dim": beyond.heads or [width // beyond.head_channels for width in widths],
        "cross_attention_dim": weights[f"{middle}transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "transformer_layers_per_block": _count(weights, f"{middle}transformer_blocks."),
        "use_linear_projection": weights[f"{middle}proj_in.weight"].dim() == 2,
    }


def autoencoder_settings(weights: Weights) -> dict[str, Any]:
    """Settings of the `AutoencoderKL`, or of the `VQModel` if there is a code book, of an autoencoder's weights.

    Raises:
        LookupError: they are not those of an autoencoder.
    """
    levels = _count(weights, "encoder.down.")
    settings: dict[str, Any] = {
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [weights[f"encoder.down.{k}.block.0.conv2.weight"].shape[0] for k in range(levels)],
        "layers_per_block": _count(weights, "encoder.down.0.block."),
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
    }
    if "quantize.embedding.weight" in weights:
        codes, width = weights["quantize.embedding.weight"].shape
        settings |= {"num_vq_embeddings": codes, "vq_embed_dim": width}
    return settings


def clip_settings(weights: Weights) -> dict[str, Any]:
    """Settings of the `CLIPTextModel` of weights named below `transformer.text_model.`.

    Raises:
        LookupError: they are not those of one.
    """
    tokens, width = weights["embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": tokens,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(weights, "encoder.layers."),
        "num_attention_heads": width // HEAD,
        "max_position_embeddings": weights["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def bert_settings(weights: Weights) -> dict[str, Any]:
    """Settings of the `LDMBertModel` of weights named below `transformer.`.

    Raises:
        LookupError: they are not those of one.
    """
    tokens, width = weights["token_emb.weight"].shape
    return {
        "vocab_size": tokens,
        "max_position_embeddings": weights["pos_emb.emb.weight"].shape[0],
        "encoder_layers": _count(weights, "attn_layers.layers.") // 2,
        "encoder_ffn_dim": weights["attn_layers.layers.1.1.net.0.0.weight"].shape[0],
        "encoder_attention_heads": weights["attn_layers.layers.0.1.to_q.weight"].shape[0] // HEAD,
        "head_dim": HEAD,
        "d_model": width,
        "pad_token_id": 0,
    }


def below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin so, named by the rest."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _count(weights: Weights, prefix: str) -> int:
    """How many numbers follow the prefix."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})
