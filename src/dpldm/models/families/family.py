"""What a family of latent diffusion models must say about itself. Everything else in the package treats all alike.

A *network* is what is tuned: the denoiser, with whatever turns a condition into numbers inside it. What a network is
told about an image is a row of integers (`ids`): a class, or the tokens of a caption. So labels and captions take one
way through the private cache, label dropout, and guidance.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dpldm.errors import UserError
from dpldm.models.choices import Names


@dataclass(frozen=True)
class Layout:
    """Folders of a stock pipeline's directory."""

    denoiser: str = "unet"
    autoencoder: str | None = "vae"  # None: the model draws pixels
    text_encoder: str | None = None
    takes_adapters: bool = False  # the stock pipeline has load_lora_weights


class Family(ABC):
    """Stateless: one instance serves all networks of a family."""

    title: ClassVar[str]
    """In messages and docs."""
    layouts: ClassVar[Mapping[str, Layout]]
    """Stock pipeline classes whose directories are of this family."""
    names: ClassVar[Names]
    """What its parameters are called."""
    told: ClassVar[Literal["classes", "captions", "nothing"]]
    """What a network can be told about an image."""
    side: ClassVar[Literal["padded", "fixed", "free"]] = "fixed"
    """Image sizes: those that are `fixed` by the network, also smaller ones that are `padded`, or any (`free`)."""

    @abstractmethod
    def owns(self, network: nn.Module) -> bool:
        """Whether `network` is of this family."""

    @abstractmethod
    def load(self, directory: Path, index: Mapping[str, Any], layout: Layout) -> nn.Module:
        """The network of a stock directory, in float32.

        Args:
            index: its model_index.json.

        Raises:
            UserError: it has parts that this family cannot use.
        """

    @abstractmethod
    def save(self, network: nn.Module, directory: Path, layout: Layout, source: Path | None) -> None:
        """Write the network's folders as float16; parts that were not tuned are copied from `source` as they are."""

    @abstractmethod
    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """What the network says of `noisy` (N, c, h, w) at `timesteps` (N,) or (), in the shape of `noisy`."""

    def index(self, index: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """model_index.json of a tuned directory: that of the public one, with private class names where it has any."""
        return dict(index)

    def null(self, network: nn.Module) -> Tensor:
        """The ids that tell nothing: () for classes, (T,) for captions."""
        return torch.tensor(0)

    def condition(self, network: nn.Module, ids: Tensor) -> Tensor:
        """What `predict` takes for ids (N,) or (N, T), one row each."""
        return ids

    def public_classes(self, settings: Mapping[str, Any]) -> int:
        """How many classes a public denoiser of these settings is told, if private ones can join them; else 0."""
        return 0

    def tokens(self, network: nn.Module, texts: Sequence[str]) -> Tensor:
        """The ids of captions, (N, T) int64; only for a family that is told captions."""
        raise NotImplementedError

    def adapt(self, network: nn.Module, classes: int, *, keep_public: bool = False) -> None:
        """Make room for so many private classes, in place, by a rule that sees no private image.

        Args:
            keep_public: keep the public classes too, where there are any (`public_classes`): an image is then told by
                two ids, one of each kind.

        Raises:
            UserError: there is none.
        """
        if classes and self.told == "nothing":
            raise UserError("The backbone takes no condition: leave data.labels out, or use another backbone.")

    def settings(self, network: nn.Module) -> Any:
        """Config of the denoiser proper."""
        return network.config

    def latent_side(self, network: nn.Module) -> int:
        """Side of the latents that the network was made for."""
        return side_of(self.settings(network))


def side_of(config: Any) -> int:
    """`sample_size` of a denoiser's config.

    Raises:
        UserError: it is not square.
    """
    size = config["sample_size"]
    sides = {int(size)} if isinstance(size, int) else {int(side) for side in size}
    if len(sides) != 1:
        raise UserError("The backbone draws images that are not square: use one that draws square images.")
    return sides.pop()
