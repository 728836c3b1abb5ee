"""The optimizer and the average of Algorithm 1: functions of noised gradients and public constants, free of charge."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

LEAST_SHARE = 0.1
"""Least second moment that `CorrectedAdam` divides by, in units of the noise's variance: below it, what is left after
the subtraction is mostly the error of the moment's own estimate."""


class CorrectedAdam(torch.optim.Adam):
    """Adam whose second moment leaves out the variance of the privacy noise (Tang et al. 2023, DP-AdamBC).

    The noise adds the known constant (sigma / L)^2 to every coordinate's second moment, beside which the gradient's own
    nearly vanishes: Adam then divides all coordinates by the same number and is plain momentum.

        parameter -= rate * m / sqrt(max(v - (sigma / L)^2, LEAST_SHARE (sigma / L)^2))

    with m and v the usual bias-corrected moments. State and checkpoints are those of torch's Adam.

    Args:
        noise_deviation: sigma / L, the noise's standard deviation in the released gradient.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], noise_deviation: float
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas)
        self._noise = noise_deviation**2

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._update(parameter, group["lr"], *group["betas"])

    def _update(self, parameter: nn.Parameter, rate: float, beta1: float, beta2: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if gradient is None:
            return
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        number = float(state["step"])
        variance = state["exp_avg_sq"] / (1 - beta2**number) - self._noise
        divisor = variance.clamp_(min=max(LEAST_SHARE * self._noise, 1e-16)).sqrt_()
        parameter.addcdiv_(state["exp_avg"], divisor, value=-rate / (1 - beta1**number))


def averaged(kind: str, parameters: list[nn.Parameter], decay: float) -> EMAModel:
    """An average of the iterates, which is what is sampled and released.

    ema: decay min(`decay`, (1 + n) / (10 + n)) at update n: a moving average, over at most the last tenth or so.
    uniform: the mean of all iterates so far (Polyak and Juditsky 1992).
    """
    settings: dict[str, Any] = {"decay": decay}
    if kind == "uniform":
        settings = {"decay": 1.0, "use_ema_warmup": True, "inv_gamma": 1.0, "power": 1.0}
    return EMAModel(parameters, **settings)
