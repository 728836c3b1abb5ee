"""Where networks compute. Random draws, noise and the private cache stay on the CPU: a device changes no guarantee."""

import torch

from dpldm.errors import UserError


def chosen_device(choice: str) -> torch.device:
    """The device of `runtime.device`: auto (CUDA where there is one), cpu or cuda.

    On CUDA, products of float32 numbers are kept in float32: TF32 would round them to 10 bits. (The gradient engine
    sees to that itself, too; here it is for gradients and images to be those of the CPU up to rounding.)

    Raises:
        UserError: cuda is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise UserError(
            "runtime.device is cuda, but this torch finds no CUDA device: use auto or cpu, or install a CUDA build of "
            "torch and its driver."
        )
    if choice == "cpu" or not available:
        return torch.device("cpu")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")
