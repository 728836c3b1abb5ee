"""Where private randomness comes from: the operating system, never a seed.

Every Poisson draw and every noise value starts as bytes from here. Nothing of it is stored: whoever knows the
noise of a step can subtract it. `SeededEntropy` exists for tests alone; what is made with it is not private,
and `private` says so to everything downstream.
"""

import hashlib
import os
from typing import Protocol

import torch
from torch import Tensor


class Entropy(Protocol):
    """A source of uniform random bytes."""

    private: bool

    def bytes(self, count: int) -> bytes:
        """`count` fresh bytes."""
        ...


class SystemEntropy:
    """Bytes of the operating system's cryptographic generator."""

    private = True

    def bytes(self, count: int) -> bytes:
        """Fresh bytes from `os.urandom`."""
        return os.urandom(count)


class SeededEntropy:
    """Reproducible bytes for tests (SHAKE-256 in counter mode): NOT PRIVATE."""

    private = False

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._calls = 0

    def bytes(self, count: int) -> bytes:
        """The next bytes of the stream that the seed fixes."""
        self._calls += 1
        return hashlib.shake_256(f"{self._seed}/{self._calls}".encode()).digest(count)


def random_words(count: int, entropy: Entropy) -> Tensor:
    """`count` uniform 64-bit words as int64 (two's complement), shape (count,)."""
    return (
        torch.frombuffer(bytearray(entropy.bytes(8 * count)), dtype=torch.int64)
        if count
        else torch.empty(0, dtype=torch.int64)
    )


def random_units(count: int, entropy: Entropy) -> Tensor:
    """`count` independent uniform multiples of 2**-53 in [0, 1), float64 (count,): the upper 53 bits of a word each."""
    words = random_words(count, entropy)
    return ((words >> 11) & (2**53 - 1)).double() * 2.0**-53  # arithmetic shift, then drop the sign's copies
