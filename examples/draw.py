"""Draw from a released model with stock diffusers alone: what is released needs no dpldm to be used.

    python examples/draw.py runs/run/release/model --label 0 --count 16 --output drawn.png

For models that `dpldm pretrain` made the backbone of, such as the bundled grey32. Of other kinds the release is a stock
pipeline (docs/backbones.md says how each is loaded).
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from PIL import Image


@torch.no_grad()
def draw(model: Path, label: int, count: int, steps: int, seed: int) -> torch.Tensor:
    """Images (count, C, H, W) in 0..1 of a class; its number is its place in the card of the model."""
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32)
    solver = DPMSolverMultistepScheduler.from_pretrained(model, subfolder="scheduler", timestep_spacing="trailing")

    # The network is told a class as one row of ones and zeros; the last place means "no class".
    told = F.one_hot(torch.full((count, 1), label), unet.config.encoder_hid_dim).float()
    if (model / "public_classes.json").is_file():  # and one of the backbone's own, which such a class often resembles
        shares = torch.tensor(json.loads((model / "public_classes.json").read_text())["shares"], dtype=torch.float64)
        chance = shares[label].expand(count, -1)
        resembled = torch.multinomial(chance, 1, generator=torch.Generator().manual_seed(seed))
        told += F.one_hot(len(shares) + resembled, unet.config.encoder_hid_dim)
    side = unet.config.sample_size
    latents = torch.randn((count, unet.config.in_channels, side, side), generator=torch.Generator().manual_seed(seed))
    solver.set_timesteps(steps)
    for t in solver.timesteps:
        prediction = unet(latents, t, encoder_hidden_states=told).sample
        latents = solver.step(prediction, t, latents).prev_sample
    images = vae.decode(latents / vae.config.scaling_factor).sample
    return (images / 2 + 0.5).clamp(0, 1)


def main() -> None:
    """Draw, and write one picture of all images in a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the folder `model` of a release (dpldm release --what both)")
    parser.add_argument("--label", type=int, default=0, help="number of the class (0)")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="solver steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("drawn.png"))
    given = parser.parse_args()

    images = draw(given.model, given.label, given.count, given.steps, given.seed)
    row = torch.cat(list(images), dim=2).mul(255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(row.squeeze()).save(given.output)
    print(given.output)


if __name__ == "__main__":
    main()
