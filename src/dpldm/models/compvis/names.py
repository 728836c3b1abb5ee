"""What the parameters of stock classes are called in a CompVis checkpoint.

Every map goes from the stock name to that of the checkpoint. So a model asks for each of its parameters, none can be
missing, and what nobody asked for is known too. (diffusers' own converters go the other way, and pass over names that
they do not expect; they are an oracle in the tests.)
"""

import re
from collections.abc import Collection

Rules = tuple[tuple[str, str], ...]

OF_UNET = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(?:conv\.)?(.+)")
OF_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
RESIDUAL: Rules = (
    (r"^norm1\.", "in_layers.0."),
    (r"^conv1\.", "in_layers.2."),
    (r"^time_emb_proj\.", "emb_layers.1."),
    (r"^norm2\.", "out_layers.0."),
    (r"^conv2\.", "out_layers.3."),
    (r"^conv_shortcut\.", "skip_connection."),
)
AROUND: Rules = (
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
)
AUTOENCODER: Rules = (
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r".up.\1.block.\2."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)
BERT: Rules = (
    (r"^model\.embed_tokens\.", "token_emb."),
    (r"^model\.embed_positions\.", "pos_emb.emb."),
    (r"^model\.layer_norm\.", "norm."),
)
BERT_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
BERT_ATTENTION: Rules = (
    (r"^self_attn_layer_norm\.", "0."),
    (r"^self_attn\.([qkv])_proj\.", r"1.to_\1."),
    (r"^self_attn\.out_proj\.", "1.to_out."),
)
BERT_FEEDFORWARD: Rules = (
    (r"^final_layer_norm\.", "0."),
    (r"^fc1\.", "1.net.0.0."),
    (r"^fc2\.", "1.net.2."),
)


def unet_name(name: str, layers: int, attending: Collection[int]) -> str:
    """The name below `model.diffusion_model.` of a parameter of a `UNet2DConditionModel`.

    CompVis numbers all blocks of the way down in a row, those that halve the image among them, and all of the way up;
    inside a block come the residual part, attention if there is any, and what doubles the image.

    Args:
        layers: residual blocks a level on the way down; the way up has one more.
        attending: levels of the way up, counted from the middle, that have attention.
    """
    if middle := OF_MIDDLE.fullmatch(name):
        kind, number, rest = middle.groups()
        return f"middle_block.{2 * int(number) + (kind == 'attentions')}.{_inside(kind, rest)}"
    found = OF_UNET.fullmatch(name)
    if found is None:
        return _renamed(name, AROUND)
    way, level, kind, number, rest = found.group(1), int(found[2]), found[3], int(found[4]), found[5]
    first = level * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{1 + (level in attending)}.conv.{rest}"
    blocks, place = ("input_blocks", first + number + 1) if way == "down" else ("output_blocks", first + number)
    return f"{blocks}.{place}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def autoencoder_name(name: str, levels: int) -> str:
    """The name of a parameter of an `AutoencoderKL` or `VQModel`. CompVis counts levels from the image on both ways."""
    turned = re.sub(r"\.up_blocks\.(\d+)\.", lambda found: f".up_blocks.{levels - 1 - int(found[1])}.", name)
    return _renamed(turned, AUTOENCODER)


def clip_name(name: str) -> str:
    """The name below `cond_stage_model.` of a parameter of a `CLIPTextModel`, with or without its older prefix."""
    return "transformer.text_model." + name.removeprefix("text_model.")


def bert_name(name: str) -> str:
    """The name below `cond_stage_model.` of a parameter of an `LDMBertModel`: attention and feed-forward layers stand
    in one row."""
    if layer := BERT_LAYER.fullmatch(name):
        number, rest = 2 * int(layer[1]), layer[2]
        attention = rest.startswith("self_attn")
        inside = _renamed(rest, BERT_ATTENTION if attention else BERT_FEEDFORWARD)
        return f"transformer.attn_layers.layers.{number if attention else number + 1}.{inside}"
    return "transformer." + _renamed(name, BERT)


def average_name(name: str) -> str:
    """The name of a parameter's moving average, which CompVis keeps under its name without dots."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def _inside(kind: str, rest: str) -> str:
    return _renamed(rest, RESIDUAL) if kind == "resnets" else rest


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
