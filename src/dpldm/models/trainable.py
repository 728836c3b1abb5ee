"""Which parameters are tuned on private images. Everything else stays bit-equal to the public backbone.

The paper tunes the attention modules and the conditioning embedder (sec. 3), and asks in its ablation what becomes of
fewer of them (from the i-th module on) or of others (residual blocks). In diffusers' names attention modules are the
parameters below `.attentions.`, and the embedder is `encoder_hid_proj`.
"""

import re

from torch import nn

from dpldm.errors import UserError

EMBEDDER = re.compile(r"^encoder_hid_proj\.")
PRESETS: dict[str, str] = {
    "attention": r"\.?attentions\.",
    "attention-in": r"^down_blocks\.\d+\.attentions\.",
    "attention-mid": r"^mid_block\.attentions\.",
    "attention-out": r"^up_blocks\.\d+\.attentions\.",
    "attn1": r"\.attn1\.",
    "attn2": r"\.attn2\.",
    "resblocks": r"\.resnets\.",
    "norms": r"norm\w*\.(weight|bias)$",
    "condition": EMBEDDER.pattern,
    "all": r".*",
}
FROM_MODULE = re.compile(r"attention-from-(\d+)")

# With one context token, cross-attention's softmax runs over a single key and is constantly 1: queries, keys and
# the norm before them have exactly zero gradient. Noise on them would be pure loss.
WITHOUT_INFLUENCE = re.compile(r"\.attn2\.to_[qk]\.|\.transformer_blocks\.\d+\.norm2\.")


def choose_trainable(denoiser: nn.Module, choice: str, *, embedder: bool = True) -> dict[str, nn.Parameter]:
    """Mark the chosen parameters as trainable, freeze the rest, and return the chosen ones by name.

    Args:
        denoiser: a UNet conditioned on a single class token.
        choice: a preset, `attention-from-N` (attention modules from the N-th on, counted from 1 along the way of the
            data), or a regular expression searched in parameter names.
        embedder: also tune the conditioning embedder. Rows of new classes are all alike until it is tuned.

    Raises:
        UserError: nothing matches, there is no N-th module, or the expression is malformed.
    """
    pattern = _pattern(denoiser, choice)
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in denoiser.named_parameters():
        wanted = embedder if EMBEDDER.search(name) else bool(pattern.search(name))
        wanted = wanted and not WITHOUT_INFLUENCE.search(name)
        parameter.requires_grad_(wanted)
        if wanted:
            chosen[name] = parameter
    if not any(pattern.search(name) for name in chosen):
        raise UserError(f"trainable {choice!r} matches no parameter: use {_known()} or a regex that does.")
    return chosen


def attention_modules(denoiser: nn.Module) -> list[str]:
    """Names of the attention modules in the order in which data passes them: down, middle, up."""
    names = [name for name, _ in denoiser.named_modules() if re.search(r"(^|\.)attentions\.\d+$", name)]
    return sorted(names, key=lambda name: ("down", "mid", "up").index(name.split("_")[0]))  # stable within each


def _pattern(denoiser: nn.Module, choice: str) -> re.Pattern[str]:
    numbered = FROM_MODULE.fullmatch(choice)
    if numbered:
        modules, first = attention_modules(denoiser), int(numbered[1])
        if not 1 <= first <= len(modules):
            raise UserError(f"trainable {choice!r}: the denoiser's attention modules are 1 to {len(modules)}.")
        return re.compile("|".join(rf"^{re.escape(name)}\." for name in modules[first - 1 :]))
    try:
        return re.compile(PRESETS.get(choice, choice))
    except re.error as error:
        raise UserError(f"trainable {choice!r} is no valid regular expression ({error}).") from None


def _known() -> str:
    return ", ".join([*PRESETS, "attention-from-N"])
