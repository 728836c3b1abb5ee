"""Mark the parameters that are tuned on private images. Everything else stays bit-equal to the public backbone."""

from torch import nn

from dpldm.models.choices import tuned_names


def choose_trainable(denoiser: nn.Module, choice: str, *, embedder: bool = True) -> dict[str, nn.Parameter]:
    """Mark the chosen parameters as trainable, freeze the rest, and return the chosen ones by name.

    Args:
        denoiser: a UNet conditioned on a single class token.
        choice: see `tuned_names`.
        embedder: also tune the conditioning embedder. Rows of new classes are all alike until it is tuned.

    Raises:
        UserError: nothing matches, there is no N-th module, or the expression is malformed.
    """
    names = set(tuned_names((name for name, _ in denoiser.named_parameters()), choice, embedder=embedder))
    chosen: dict[str, nn.Parameter] = {}
    for name, parameter in denoiser.named_parameters():
        wanted = name in names
        parameter.requires_grad_(wanted)
        if wanted:
            chosen[name] = parameter
    return chosen
