"""`python -m dpldm.models.compvis.unpickling CKPT TARGET`: the tensors of a pickled checkpoint, as safetensors.

Only what torch itself can build from tensors, numbers, texts and containers is built (`weights_only`). One class beside
them occurs in published checkpoints, as a key of what a training run noted: an empty class stands for it.
"""

import pickle
import re
import sys

import torch
from safetensors.torch import save_file
from torch import Tensor

from dpldm.models.compvis.reading import REFUSED

CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


class Nothing:
    """Stands for a class that is not wanted."""


def tensors_of(path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint.

    Raises:
        ValueError: it holds something else in their place.
    """
    with torch.serialization.safe_globals([(Nothing, CALLBACK)]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(name, str) and isinstance(t, Tensor) for name, t in state.items()):
        raise ValueError("it is no table of tensors")
    return {name: tensor.contiguous() for name, tensor in state.items()}


def main(source: str, target: str) -> int:
    """Convert, or say why not on the last line of stderr."""
    try:
        save_file(tensors_of(source), target)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds a {foreign[1]} beside them" if foreign else f"{type(error).__name__}"
        print(str(error) if type(error) is ValueError else reason, file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
