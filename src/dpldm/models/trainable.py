"""Which parameters are tuned on private images. Everything else stays bit-equal to the public backbone.

The paper tunes the attention modules and the conditioning embedder (sec. 3). In diffusers' names those are the
parameters below `.attentions.` and `encoder_hid_proj`.
"""

import re

from torch import nn

from dpldm.errors import UserError

PRESETS: dict[str, str] = {
    "attention": r"\.attentions\.|^encoder_hid_proj\.",
    "condition": r"^encoder_hid_proj\.",
    "all": r".*",
}

# With one context token, cross-attention's softmax runs over a single key and is constantly 1: queries, keys and
# the norm before them have exactly zero gradient. Noise on them would be pure loss.
WITHOUT_INFLUENCE = re.compile(r"\.attn2\.to_[qk]\.|\.transformer_blocks\.\d+\.norm2\.")


def choose_trainable(denoiser: nn.Module, choice: str) -> dict[str, nn.Parameter]:
    """Mark the chosen parameters as trainable, freeze the rest, and return the chosen ones by name.

    Args:
        denoiser: a UNet conditioned on a single class token.
        choice: a preset name, or a regular expression searched in parameter names.

    Raises:
        UserError: nothing matches, or the expression is malformed.
    """
    try:
        pattern = re.compile(PRESETS.get(choice, choice))
    except re.error as error:
        raise UserError(f"trainable {choice!r} is no valid regular expression ({error}).") from None
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in denoiser.named_parameters():
        wanted = bool(pattern.search(name)) and not WITHOUT_INFLUENCE.search(name)
        parameter.requires_grad_(wanted)
        if wanted:
            chosen[name] = parameter
    if not chosen:
        raise UserError(f"trainable {choice!r} matches no parameter: use {', '.join(PRESETS)} or a regex that does.")
    return chosen
