"""One file per checkpoint: tensors of several groups and a few numbers, written so that a kill leaves old or new.

safetensors only (no pickle).
"""

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpldm.errors import UserError
from dpldm.privacy.durable import replacing

Groups = dict[str, dict[str, Tensor]]


def save_checkpoint(path: Path, groups: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Write `groups` (group -> name -> tensor) and `facts` (JSON values) to one file, all or nothing."""
    flat = {
        f"{group}/{name}": t.detach().contiguous() for group, tensors in groups.items() for name, t in tensors.items()
    }
    with replacing(path) as temporary:
        try:
            save_file(flat, temporary, metadata={"facts": json.dumps(dict(facts))})  # from the tensors' own memory
        except SafetensorError as error:
            raise OSError(errno.EIO, "a checkpoint cannot be written") from error
        temporary.chmod(0o600)  # safetensors may have made it anew


def load_checkpoint(path: Path, *, paid_for: bool = False) -> tuple[Groups, dict[str, Any]]:
    """What `save_checkpoint` wrote, each tensor in memory of its own.

    Args:
        paid_for: it holds updates that cost privacy: the advice is then never to delete it.

    Raises:
        UserError: the file is not a checkpoint or is damaged.
        OSError: it is not there, or cannot be read.
    """
    path.open("rb").close()  # whatever it is that cannot be opened, safetensors says that it is not there
    groups: Groups = {}
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                group, name = key.split("/", 1)
                # What comes is the file itself, mapped: kept, it would hold a file that was long replaced on the disk.
                groups.setdefault(group, {})[name] = file.get_tensor(key).clone()
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        remedy = (
            "restore it from a copy (deleting it would lose updates that are paid for)"
            if paid_for
            else "delete it to start this stage again"
        )
        raise UserError(f"The checkpoint {path.name} is damaged: {remedy}.") from error
    return groups, facts


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, in the order of its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in zip(names, parameters, strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        prefix = f"{name}/"
        state = {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}
        if state:  # Adam counts its steps on the CPU, whatever the parameter's device
            optimizer.state[parameter] = {k: t if k == "step" else t.to(parameter.device) for k, t in state.items()}
