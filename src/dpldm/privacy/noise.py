"""Gaussian noise from OS entropy, in float64 until it is added.

Residual risk, stated in docs/privacy.md: a floating-point Gaussian is not the real-valued one of the proof. The
Box-Muller transform of 53-bit uniforms ends at 8.57 standard deviations and leaves gaps between representable
values (Mironov 2012). The noise is rounded once, after it is added to the sum in float64.
"""

import math

import torch
from torch import Tensor

from dpldm.privacy.entropy import Entropy, random_units


def standard_gaussian(count: int, entropy: Entropy) -> Tensor:
    """`count` independent N(0, 1) values, float64 (count,), by the Box-Muller transform."""
    pairs = (count + 1) // 2
    uniform = random_units(2 * pairs, entropy)
    radius = torch.sqrt(-2.0 * torch.log(uniform[:pairs] + 2.0**-53))  # argument in (0, 1], exactly
    angle = uniform[pairs:] * (2.0 * math.pi)
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count]


def add_gaussian(total: Tensor, standard_deviation: float, entropy: Entropy) -> Tensor:
    """total + N(0, standard_deviation**2) per entry: summed in float64, rounded once to float32."""
    noise = standard_gaussian(total.numel(), entropy).view(total.shape)
    return (total.double() + standard_deviation * noise).float()
