"""Mark the parameters that are tuned on private images. Everything else stays bit-equal to the public backbone."""

from torch import nn

from dpldm.models.choices import is_tuned_whole, rank_of, tuned_names
from dpldm.models.families import family_of
from dpldm.models.lora import DOWN, UP, add_adapters


def choose_trainable(denoiser: nn.Module, choice: str, *, embedder: bool = True) -> dict[str, nn.Parameter]:
    """Mark the chosen parameters as trainable, freeze the rest, and return the chosen ones by name.

    Args:
        denoiser: a network of a known family; `lora-R` puts adapters into it.
        choice: see `tuned_names`.
        embedder: also tune the conditioning embedder. Rows of new classes are all alike until it is tuned.

    Raises:
        UserError: nothing matches, there is no N-th module, the expression is malformed, or adapters are wanted and
            peft is not installed.
    """
    called = family_of(denoiser).names
    names = tuned_names((name for name, _ in denoiser.named_parameters()), choice, embedder=embedder, called=called)
    rank = rank_of(choice)
    if rank is not None:
        add_adapters(denoiser, [name for name in names if not is_tuned_whole(name, called)], rank)
    wanted, chosen = set(names), dict[str, nn.Parameter]()
    for name, parameter in denoiser.named_parameters():
        tuned = name.endswith((DOWN, UP)) or name in wanted
        parameter.requires_grad_(tuned)
        if tuned:
            chosen[name] = parameter
    return chosen
