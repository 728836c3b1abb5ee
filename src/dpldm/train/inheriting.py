"""Start a network of stages 1 and 2 from that of another public backbone, which saves most of its training."""

import torch
from torch import Tensor, nn

from dpldm.errors import UserError


@torch.no_grad()
def inherit(network: nn.Module, other: nn.Module) -> None:
    """Copy every tensor of `other` that fits into `network`, in place.

    Grey fits colour: a convolution from one channel looks at the mean of three, and one to one channel paints three
    alike. Whatever is left over keeps its random start.

    Raises:
        UserError: hardly anything fits.
    """
    theirs, taken = other.state_dict(), 0
    for name, own in network.state_dict().items():
        fitting = _fitted(theirs[name], own.shape) if name in theirs else None
        if fitting is not None:
            own.copy_(fitting)
            taken += own.numel()
    if 2 * taken < sum(own.numel() for own in network.state_dict().values()):
        raise UserError("The weights that a stage of the recipe starts from have other sizes: give it the same widths.")


def _fitted(tensor: Tensor, shape: torch.Size) -> Tensor | None:
    if tensor.shape == shape:
        return tensor
    if tensor.dim() != len(shape) or (tensor.shape[-2:] != shape[-2:] and tensor.dim() == 4):
        return None
    grey_in = tensor.dim() == 4 and tensor.shape[:2] == (shape[0], 1)
    if grey_in:
        return tensor.expand(shape) / shape[1]
    grey_out = tensor.shape == (1, *shape[1:])
    return tensor.expand(shape) if grey_out else None
