"""A checkpoint's tensors, by their names in it.

A `.ckpt` is a pickle. It is opened by another process that reads weights and nothing else (`unpickling`), and comes
back as safetensors: neither code in it nor a fault in its reader meets this process.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dpldm.errors import UserError


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a `.ckpt` or `.safetensors` file.

    Raises:
        UserError: it is not there, holds something else than weights, or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}: check the path.")
    if path.suffix == ".safetensors":
        return _loaded(path, path)
    with tempfile.TemporaryDirectory(prefix="dpldm-") as folder:
        target = Path(folder) / "weights.safetensors"
        words = [sys.executable, "-m", "dpldm.models.compvis.unpickling", str(path), str(target)]
        child = subprocess.run(words, capture_output=True, text=True, check=False)
        if child.returncode:
            reason = child.stderr.strip().splitlines()[-1] if child.returncode == REFUSED else "its reader ended"
            raise UserError(f"{path} cannot be read as weights, {reason}: take the checkpoint from its makers again.")
        return _loaded(target, path)


REFUSED = 3
"""Exit code of `unpickling` that comes with a reason."""


def _loaded(file: Path, named: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{named} is no safetensors file that can be read: take it from its makers again.") from error
    return weights
