"""Diffusion transformers that are told a class: `DiTTransformer2DModel` (Peebles and Xie 2023), stock `DiTPipeline`.

Every block has a table of class embeddings of its own; its last row means "no label". In training mode every block
would draw its own label dropout, several for one example: the network stays in evaluation mode, and labels are dropped
once per example before it.

While it is tuned a table has a row for each private class and the null row, so that no noise goes into rows that no
class has. The stock pipeline looks for the null row at 1000: saving puts it there.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from dpldm.errors import UserError
from dpldm.models.choices import TRANSFORMER
from dpldm.models.families.family import Family, Layout
from dpldm.models.families.parts import load_part, require_class, save_half

STOCK_CLASSES = 1000
"""`DiTPipeline` takes this number for "no label", whatever the config says."""


class Transformer(Family):
    """See the head of this file."""

    title = "diffusion transformer"
    layouts: ClassVar[Mapping[str, Layout]] = {"DiTPipeline": Layout(denoiser="transformer")}
    names = TRANSFORMER
    told = "classes"

    def owns(self, network: nn.Module) -> bool:
        """See `Family.owns`."""
        return isinstance(network, DiTTransformer2DModel)

    def load(self, directory: Path, index: Mapping[str, Any], layout: Layout) -> nn.Module:
        """See `Family.load`."""
        require_class(index, layout.denoiser, ("DiTTransformer2DModel", "Transformer2DModel"))  # an older name
        return load_part(DiTTransformer2DModel, directory / layout.denoiser)

    def save(self, network: nn.Module, directory: Path, layout: Layout, source: Path | None) -> None:
        """See `Family.save`."""
        stock = deepcopy(network)
        _resize(stock, STOCK_CLASSES)
        save_half(stock, directory / layout.denoiser, source and source / layout.denoiser)

    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """See `Family.predict`. Of a network that predicts variances too (its second half), the mean alone."""
        predicted: Tensor = network(noisy, timestep=timesteps.expand(len(noisy)), class_labels=condition).sample
        return predicted[:, : noisy.shape[1]]

    def index(self, index: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """See `Family.index`. `DiTPipeline` takes a comma to separate names of one class."""
        names = {str(number): label.replace(",", ";") for number, label in enumerate(labels)}
        stock = dict(index) | {"transformer": ["diffusers", "DiTTransformer2DModel"]}
        return stock | ({"id2label": names} if labels else {})

    def null(self, network: nn.Module) -> Tensor:
        """See `Family.null`."""
        return torch.tensor(int(self.settings(network)["num_embeds_ada_norm"]))

    def adapt(self, network: nn.Module, classes: int, *, keep_public: bool = False) -> None:
        """See `Family.adapt`. Every class starts at the mean of the public ones, as in families/class_token.py."""
        if classes > STOCK_CLASSES:
            raise UserError(f"data.labels has {classes} classes, a DiTPipeline holds {STOCK_CLASSES}: declare fewer.")
        _resize(network, classes, start_at_mean=True)


@torch.no_grad()
def _resize(network: Any, classes: int, *, start_at_mean: bool = False) -> None:
    """Give every table so many class rows, the null row after them; new rows are the mean of those there were."""
    for part in network.modules():
        if type(part).__name__ != "LabelEmbedding":
            continue
        old = part.embedding_table
        rows, null = old.weight[: part.num_classes], old.weight[-1:]
        mean = rows.mean(0, keepdim=True) if len(rows) else null
        kept = rows[: 0 if start_at_mean else classes]
        table = torch.cat([kept, mean.expand(classes - len(kept), -1), null])
        part.embedding_table = nn.Embedding(len(table), table.shape[1], _weight=table)
        part.embedding_table.requires_grad_(old.weight.requires_grad)
        part.num_classes = classes
    network.register_to_config(num_embeds_ada_norm=classes)
