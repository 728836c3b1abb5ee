"""Names of the parameters that a choice of `trainable` tunes. No torch, so that `verify` can tell tuned from frozen.

The paper tunes the attention modules and the conditioning embedder (sec. 3), and asks in its ablation what becomes of
fewer of them (from the i-th module on) or of others (residual blocks). In diffusers' names attention modules are the
parameters below `.attentions.`, and the embedder is `encoder_hid_proj`.
"""

import re
from collections.abc import Iterable

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
LORA = re.compile(r"lora-([1-9]\d{0,3})(?::(.+))?")
FROM_MODULE = re.compile(r"attention-from-(\d+)")
ATTENTION_MODULE = re.compile(r"(?:(down|mid|up)_block(?:s\.(\d+))?)\.attentions\.(\d+)(?=\.|$)")

# With one context token, cross-attention's softmax runs over a single key and is constantly 1: queries, keys and
# the norm before them have exactly zero gradient. Noise on them would be pure loss.
WITHOUT_INFLUENCE = re.compile(r"\.attn2\.to_[qk]\.|\.transformer_blocks\.\d+\.norm2\.")


def tuned_names(names: Iterable[str], choice: str, *, embedder: bool = True) -> list[str]:
    """Those of a denoiser's parameter names that `choice` tunes, in their order.

    Args:
        names: of all parameters of a UNet conditioned on a single class token.
        choice: a preset; `attention-from-N` (attention modules from the N-th on, counted from 1 along the way of the
            data); a regular expression searched in parameter names; or `lora-R` and `lora-R:CHOICE`, adapters of rank R
            to the weights of CHOICE (attention, if left out), whose names are those of the weights they add to.
        embedder: also tune the conditioning embedder.

    Raises:
        UserError: nothing matches, there is no N-th module, or the expression is malformed.
    """
    names = list(names)
    if adapters := LORA.fullmatch(choice):
        whole = tuned_names(names, adapters[2] or "attention", embedder=embedder)
        return [name for name in whole if EMBEDDER.search(name) or _is_matrix(name)]
    pattern = _pattern(names, choice)
    chosen = [
        name
        for name in names
        if (embedder if EMBEDDER.search(name) else pattern.search(name)) and not WITHOUT_INFLUENCE.search(name)
    ]
    if not any(pattern.search(name) for name in chosen):
        raise UserError(f"trainable {choice!r} matches no parameter: use {_known()} or a regex that does.")
    return chosen


def rank_of(choice: str) -> int | None:
    """R of `lora-R...`; None for any other choice."""
    adapters = LORA.fullmatch(choice)
    return int(adapters[1]) if adapters else None


def attention_modules(names: Iterable[str]) -> list[str]:
    """Attention modules among parameter names, in the order in which data passes them: down, middle, up."""
    found = {match[0]: match for name in names if (match := ATTENTION_MODULE.match(name))}

    def place(module: str) -> tuple[int, int, int]:
        part, block, number = found[module].groups()
        return ("down", "mid", "up").index(part), int(block or 0), int(number)

    return sorted(found, key=place)


def _is_matrix(name: str) -> bool:
    """A weight of a linear or convolutional layer: all that an adapter can add to."""
    return name.endswith(".weight") and re.search(PRESETS["norms"], name) is None


def _pattern(names: list[str], choice: str) -> re.Pattern[str]:
    numbered = FROM_MODULE.fullmatch(choice)
    if numbered:
        modules, first = attention_modules(names), int(numbered[1])
        if not 1 <= first <= len(modules):
            raise UserError(f"trainable {choice!r}: the denoiser's attention modules are 1 to {len(modules)}.")
        return re.compile("|".join(rf"^{re.escape(name)}\." for name in modules[first - 1 :]))
    try:
        return re.compile(PRESETS.get(choice, choice))
    except re.error as error:
        raise UserError(f"trainable {choice!r} is no valid regular expression ({error}).") from None


def _known() -> str:
    return ", ".join([*PRESETS, "attention-from-N", "lora-R"])
