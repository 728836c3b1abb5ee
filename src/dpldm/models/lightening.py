"""What makes a network take less memory while it is tuned. Nothing here changes a guarantee: clipping bounds whatever
gradient comes back, and sums, norms and tuned weights stay in float32.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from dpldm.errors import UserError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Whose weights are nearly all of a network; norms and embeddings stay as they are."""


def recompute_activations(network: Any) -> None:
    """From now on, compute activations again in the backward pass instead of keeping them.

    Raises:
        UserError: the network cannot do so.
    """
    denoiser = getattr(network, "unet", network)
    try:
        denoiser.enable_gradient_checkpointing()
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"A {type(denoiser).__name__} cannot compute activations again: leave out runtime.gradient_checkpointing."
        ) from error


def halve_frozen(network: nn.Module) -> None:
    """Store the weights of frozen layers in bfloat16, in place; `computing` says where to compute in it, too."""
    for layer in network.modules():
        if isinstance(layer, LAYERS):
            for parameter in layer.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()


def computing(network: nn.Module) -> AbstractContextManager[Any]:
    """bfloat16 where `halve_frozen` has put it; otherwise what it was before."""
    halved = next((parameter for parameter in network.parameters() if parameter.dtype == torch.bfloat16), None)
    return nullcontext() if halved is None else torch.autocast(halved.device.type, torch.bfloat16)
