"""Does one example's gradient depend on another example? A check at set-up, for what no list of layers can show.

Clipping bounds what an example adds through its own gradient. If examples meet inside the network (statistics over the
batch, a functional `x - x.mean(0)`), an example also changes the gradients of others, and nothing bounds that.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

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


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])
