"""Names of the parameters that a choice of `trainable` tunes. No torch, so that `verify` can tell tuned from frozen.

The paper tunes the attention modules and the conditioning embedder (sec. 3), and asks in its ablation what becomes of
fewer of them (from the i-th module on) or of others (residual blocks). In diffusers' names attention modules of a UNet
are the parameters below `.attentions.`; each family of denoisers has names of its own.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
ATTENTION_MODULE = re.compile(r"(?:unet\.)?(?:(down|mid|up)_block(?:s\.(\d+))?)\.attentions\.(\d+)(?=\.|$)")

# With one context token, cross-attention's softmax runs over a single key and is constantly 1: queries, keys and
# the norm before them have exactly zero gradient. Noise on them would be pure loss.
WITHOUT_INFLUENCE = re.compile(r"\.attn2\.to_[qk]\.|\.transformer_blocks\.\d+\.norm2\.")

# A bias of the keys adds the same number to all logits of a query, which the softmax does not see.
KEY_BIAS = re.compile(r"\.(to_k|k_proj|key)\.bias$")


@dataclass(frozen=True)
class Names:
    """How a family of denoisers calls what may be tuned."""

    presets: Mapping[str, str]  # choice -> regular expression
    without_influence: re.Pattern[str]  # zero gradient whatever the input: never tuned
    embedder: re.Pattern[str] | None = None  # turns the condition into numbers; tuned beside any choice
    module: re.Pattern[str] = ATTENTION_MODULE  # one attention module; its groups say where it comes
    adapters_in_embedder: bool = False  # `lora-R` adds to the embedder too, which is otherwise tuned whole


CLASS_TOKEN = Names(PRESETS, WITHOUT_INFLUENCE, EMBEDDER)
UNCONDITIONAL = Names(
    {name: PRESETS[name] for name in PRESETS if name not in ("attn1", "attn2", "condition")}, KEY_BIAS
)
OF_A_TRANSFORMER = re.compile(r"\.norm1\.emb\.class_embedder\.")
TRANSFORMER = Names(
    {
        "attention": r"\.attn1\.",
        "feedforward": r"\.ff\.",
        "adaln": r"\.norm1\.linear\.",
        "timestep": r"\.norm1\.emb\.timestep_embedder\.",
        "condition": OF_A_TRANSFORMER.pattern,
        "all": r".*",
    },
    KEY_BIAS,
    OF_A_TRANSFORMER,
    re.compile(r"transformer_blocks\.(\d+)\.attn1(?=\.|$)"),
)
OF_A_TEXT = re.compile(
    r"^text_encoder\..*\.(self_attn|attention\.self|attention\.output\.dense)\.|^unet\.encoder_hid_proj\."
)
CAPTIONS = Names(
    {name: pattern.replace("^", r"^unet\.") for name, pattern in PRESETS.items()}
    | {"norms": r"^unet\..*norm\w*\.(weight|bias)$", "condition": OF_A_TEXT.pattern, "all": r"^unet\."},
    KEY_BIAS,
    OF_A_TEXT,
    adapters_in_embedder=True,
)


def tuned_names(names: Iterable[str], choice: str, *, embedder: bool = True, called: Names = CLASS_TOKEN) -> list[str]:
    """Those of a denoiser's parameter names that `choice` tunes, in their order.

    Args:
        names: of all parameters of the denoiser.
        choice: a preset; `attention-from-N` (attention modules from the N-th on, counted from 1 along the way of the
            data); a regular expression searched in parameter names; or `lora-R` and `lora-R:CHOICE`, adapters of rank R
            to the weights of CHOICE (attention, if left out), whose names are those of the weights they add to.
        embedder: also tune the conditioning embedder.
        called: the names of the denoiser's family.

    Raises:
        UserError: nothing matches, there is no N-th module, or the expression is malformed.
    """
    names = list(names)
    if adapters := LORA.fullmatch(choice):
        tuned = tuned_names(names, adapters[2] or "attention", embedder=embedder, called=called)
        return [name for name in tuned if is_tuned_whole(name, called) or _is_matrix(name)]
    pattern = _pattern(names, choice, called)
    chosen = [
        name
        for name in names
        if (embedder if is_of_embedder(name, called) else pattern.search(name))
        and not called.without_influence.search(name)
    ]
    if not any(pattern.search(name) for name in chosen):
        raise UserError(f"trainable {choice!r} matches no parameter: use {_known(called)} or a regex that does.")
    return chosen


def is_of_embedder(name: str, called: Names) -> bool:
    """Whether a parameter belongs to the conditioning embedder."""
    return called.embedder is not None and called.embedder.search(name) is not None


def is_tuned_whole(name: str, called: Names) -> bool:
    """Whether a parameter is tuned itself where the others get adapters."""
    return is_of_embedder(name, called) and not called.adapters_in_embedder


def rank_of(choice: str) -> int | None:
    """R of `lora-R...`; None for any other choice."""
    adapters = LORA.fullmatch(choice)
    return int(adapters[1]) if adapters else None


def attention_modules(names: Iterable[str], called: Names = CLASS_TOKEN) -> list[str]:
    """Attention modules among parameter names, in the order in which data passes them: down, middle, up."""
    found = {match[0]: match for name in names if (match := called.module.match(name))}
    parts = {"down": 0, "mid": 1, "up": 2, None: 0}

    def place(module: str) -> list[int]:
        return [parts[group] if group in parts else int(group) for group in found[module].groups()]

    return sorted(found, key=place)


def _is_matrix(name: str) -> bool:
    """A weight of a linear or convolutional layer: all that an adapter can add to."""
    return name.endswith(".weight") and re.search(PRESETS["norms"], name) is None


def _pattern(names: list[str], choice: str, called: Names) -> re.Pattern[str]:
    numbered = FROM_MODULE.fullmatch(choice)
    if numbered:
        modules, first = attention_modules(names, called), int(numbered[1])
        if not 1 <= first <= len(modules):
            raise UserError(f"trainable {choice!r}: the denoiser's attention modules are 1 to {len(modules)}.")
        return re.compile("|".join(rf"^{re.escape(name)}\." for name in modules[first - 1 :]))
    try:
        return re.compile(called.presets.get(choice, choice))
    except re.error as error:
        raise UserError(f"trainable {choice!r} is no valid regular expression ({error}).") from None


def _known(called: Names) -> str:
    return ", ".join([*called.presets, "attention-from-N", "lora-R"])
