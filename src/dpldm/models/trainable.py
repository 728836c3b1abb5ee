"""Mark the parameters that are tuned on private images. Everything else stays bit-equal to the public backbone."""

from diffusers import UNet2DConditionModel
from torch import nn

from dpldm.models.choices import EMBEDDER, rank_of, tuned_names
from dpldm.models.lora import DOWN, UP, add_adapters


def choose_trainable(denoiser: UNet2DConditionModel, choice: str, *, embedder: bool = True) -> dict[str, nn.Parameter]:
    """Mark the chosen parameters as trainable, freeze the rest, and return the chosen ones by name.

    Args:
        denoiser: a UNet conditioned on a single class token; `lora-R` puts adapters into it.
        choice: see `tuned_names`.
        embedder: also tune the conditioning embedder. Rows of new classes are all alike until it is tuned.

    Raises:
        UserError: nothing matches, there is no N-th module, the expression is malformed, or adapters are wanted and
            peft is not installed.
    """
    names = tuned_names((name for name, _ in denoiser.named_parameters()), choice, embedder=embedder)
    rank = rank_of(choice)
    if rank is not None:
        add_adapters(denoiser, [name for name in names if not EMBEDDER.search(name)], rank)
    wanted, chosen = set(names), dict[str, nn.Parameter]()
    for name, parameter in denoiser.named_parameters():
        tuned = name.endswith((DOWN, UP)) or name in wanted
        parameter.requires_grad_(tuned)
        if tuned:
            chosen[name] = parameter
    return chosen
