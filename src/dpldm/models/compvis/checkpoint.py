"""A CompVis checkpoint, from which models take tensors by name until nothing is left."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dpldm.errors import UserError
from dpldm.models.compvis.names import average_name
from dpldm.models.compvis.reading import read_checkpoint

UNET, AUTOENCODER, CONDITION = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
CLASSES = f"{CONDITION}embedding.weight"
NOT_OF_A_MODEL = re.compile(
    r"(sqrt_|log_|posterior_)\w+|(alphas_cumprod|alphas_cumprod_prev|betas|logvar|lvlb_weights|cond_ids|scale_factor)"
    r"|model_ema\.(decay|num_updates)"
    r"|(first_stage_model\.)?loss\..+"
    r"|cond_stage_model\.transformer\.text_model\.embeddings\.position_ids"
)
"""What a training run keeps beside its networks: the noise schedule, counters, the loss of the autoencoder."""


class Checkpoint:
    """Tensors by name, and which of them were asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.weights = path, read_checkpoint(path)
        self._unused = {name for name in self.weights if not NOT_OF_A_MODEL.fullmatch(name)}

    @property
    def condition(self) -> str | None:
        """What tells the model about an image: classes, clip, bert; None for an autoencoder alone.

        Raises:
            UserError: something else.
        """
        if not any(name.startswith(UNET) for name in self.weights):
            return None
        signs = {"classes": CLASSES, "clip": f"{CONDITION}transformer.text_model.", "bert": f"{CONDITION}transformer.t"}
        for condition, sign in signs.items():
            if any(name.startswith(sign) for name in self.weights):
                return condition
        raise UserError(
            f"{self.path} is a latent diffusion model that is told neither classes nor a text by CLIP (Stable "
            "Diffusion 1.x) or BERT: convert one that is, or give a diffusers directory."
        )

    def take(self, name: str, shape: torch.Size) -> Tensor:
        """A tensor, or its moving average, in a shape that differs at most by sides of length 1.

        Raises:
            UserError: it is not there, or has another shape.
        """
        average = average_name(name)
        used = {name, average} if average in self.weights else {name}
        self._unused -= used
        if self._averaged and name.startswith(UNET):
            name = average
        found = self.weights.get(name)
        if found is None or found.squeeze().shape != torch.Size(side for side in shape if side != 1):
            what = "lacks" if found is None else "has another shape than expected of"
            raise UserError(f"{self.path} {what} {name}: it is incomplete, or of a kind that cannot be converted.")
        return found.float().view(shape)

    @property
    def _averaged(self) -> bool:
        return any(name.startswith("model_ema.diffusion_model") for name in self.weights)

    def fill(self, model: nn.Module, prefix: str, called: Callable[[str], str]) -> None:
        """Put the weights below `prefix` into a model, each of whose parameters is `called` so there."""
        state = {name: self.take(prefix + called(name), t.shape) for name, t in model.state_dict().items()}
        model.load_state_dict(state)

    def require_used_up(self) -> None:
        """Nothing is left that belongs to a model.

        Raises:
            UserError: something is, by its name.
        """
        if self._unused:
            further = f" and {len(self._unused) - 1} more" if len(self._unused) > 1 else ""
            raise UserError(
                f"{self.path} holds {min(self._unused)}{further}, which the converted model would lack: it is of a "
                "kind that cannot be converted."
            )
