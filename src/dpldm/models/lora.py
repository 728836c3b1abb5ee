"""Low-rank adapters (Hu et al. 2021): W + B A instead of W, with only A (r x in) and B (out x r) tuned.

peft puts them into the network that is trained. What is sampled has them merged: a stock network again, for which
nobody needs peft. So has what is released, but where the stock pipeline loads adapters: there they are released alone.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dpldm.errors import UserError

DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"  # peft's names of A and B


def add_adapters(denoiser: nn.Module, weights: list[str], rank: int) -> None:
    """Give the layers of the named weights an adapter, in place. B starts at zero: nothing changes before the first
    update. A starts at the same public random numbers in every run.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("trainable: lora-... needs the package peft: install dpldm[lora].") from None
    modules = [name.removesuffix(".weight") for name in weights]
    # alpha = rank: B A counts as it is, and the learning rate alone says how far it moves.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=modules), denoiser)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in denoiser.named_parameters():
        if name.endswith(DOWN):
            fresh = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
            parameter.data.copy_(fresh)


def merge_adapters(weights: Mapping[str, Tensor], public: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tuned tensors by their names in a stock network: an adapter's A and B become public W + B A.

    Args:
        weights: what was tuned, adapters by peft's names.
        public: the parameters of the network without adapters.
    """
    merged = {name: tensor for name, tensor in weights.items() if not name.endswith((DOWN, UP))}
    for name, down in weights.items():
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            whole = public[f"{layer}.weight"]
            update = weights[layer + UP].flatten(1) @ down.flatten(1)  # a convolution's A holds whole patches
            merged[f"{layer}.weight"] = whole + update.view_as(whole).to(whole.device)
    return merged


def save_adapters(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write tuned adapters under the names that `load_lora_weights` of a stock pipeline knows, in float32. Their scale
    is 1, as it is taken to be where a file says nothing of it.

    Args:
        weights: what was tuned, adapters by peft's names, and nothing else.
    """
    stored = {_stock_name(name): tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(stored, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _stock_name(name: str) -> str:
    """Without the name of the adapter, and with the prefix that transformers 5 leaves out in memory."""
    plain = re.sub(r"\.default\.weight$", ".weight", name)
    return re.sub(r"^text_encoder\.(?!text_model\.)", "text_encoder.text_model.", plain)
