"""Is what will be clipped an example's gradient, and no other example's? Checks at set-up, for what no list of layers
can show.

Clipping bounds what an example adds through its own gradient. If examples meet inside the network (statistics over the
batch, a functional `x - x.mean(0)`), an example also changes the gradients of others, and nothing bounds that. And if
the rows of a layer are not those of examples (positions that all examples share, axes in another order), the engine
would add up parts of all examples where it means one.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.layers import UnsupportedModel

TOLERANCE = 1e-4
"""Relative difference that rounding alone may make; a coupling of examples is far above it."""


class ExamplesMeet(ValueError):
    """The gradient of one example changes when another example of the same pass is changed."""


def check_independence(
    losses_of: Callable[[Tensor], Tensor], examples: Tensor, others: Tensor, parameters: Sequence[nn.Parameter]
) -> None:
    """Compare the gradient of the first example's loss beside two different second examples.

    Args:
        losses_of: examples (2, ...) to losses (2,), the same function on every call: draws held fixed, no dropout.
        examples, others: two pairs (2, ...); only the second example of `others` is used.
        parameters: the trained ones.

    Raises:
        ExamplesMeet: they differ.
    """
    beside_one = _gradient(losses_of(examples)[0], parameters)
    beside_another = _gradient(losses_of(torch.stack([examples[0], others[1]]))[0], parameters)
    difference = float((beside_one - beside_another).norm())
    if not difference <= TOLERANCE * float(beside_one.norm()):
        raise ExamplesMeet(
            "The gradient of one example depends on another example of the same batch, so clipping cannot bound what "
            "an example changes: remove what takes statistics over the batch."
        )


def check_example_gradients(
    model: nn.Module,
    trainable: Mapping[str, nn.Parameter],
    losses_of: Callable[[Tensor], Tensor],
    examples: Tensor,
) -> None:
    """Compare the engine's gradient of the first example alone with autograd's, beside one and beside two others.

    Two numbers of examples, because a layer that sees T rows in every pass (T shared positions, say) passes for one
    row an example where there happen to be T of them.

    Args:
        model, trainable: as for `ClippedSum`.
        losses_of: examples (B, ...) to losses (B,), the same function on every call: draws held fixed, no dropout.
        examples: (3, ...).

    Raises:
        UnsupportedModel: the engine refuses the model, or gets another gradient than autograd.
    """
    for count in (2, 3):
        truth = _gradient(losses_of(examples[:count])[0], list(trainable.values()))
        with ClippedSum(model, trainable, math.inf) as clipped:
            losses = losses_of(examples[:count])
            clipped.accumulate(losses, torch.arange(count, device=losses.device) == 0)
            ours = torch.cat([total.flatten() for total in clipped.take().values()]).to(truth)
        if not float((ours - truth).norm()) <= TOLERANCE * float(truth.norm()):
            raise UnsupportedModel(
                "The gradient of a single example cannot be told from that of others: a trained layer is called with "
                "rows that are not examples, or otherwise than its class says. Freeze it."
            )


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])
