"""`dpldm pretrain --recipe FILE` and `dpldm backbone list|show|draw`."""

import argparse
from pathlib import Path

from dpldm.config import BackboneRecipe
from dpldm.console import add_manners, conclude, follow, manners, out
from dpldm.loading import load_config


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Make a backbone, or tell about the bundled ones."""
    return _pretrain(parser, words) if name == "pretrain" else _backbone(parser, words)


def _pretrain(parser: argparse.ArgumentParser, words: list[str]) -> int:
    parser.add_argument("--recipe", type=Path, required=True, help="YAML like recipes/grey32.yaml")
    add_manners(parser)
    given = parser.parse_args(words)
    recipe = load_config(BackboneRecipe, given.recipe)
    from dpldm.train.pretrain import PretrainStep, pretrain

    def describe(step: PretrainStep) -> tuple[int, int, str]:
        return step.number, step.steps, f"{step.stage}, loss {step.loss:.4f}"

    with manners(given):
        follow(pretrain(recipe), "pretrain", describe)
        grid = recipe.output.with_name(recipe.output.name + ".work") / "samples.png"
        _draw(str(recipe.output), grid)
        then = [f"dpldm run --config FILE --backbone {recipe.output}"]
        conclude(given, {"backbone": recipe.name}, {"backbone": recipe.output, "samples": grid}, then)
    return 0


def _draw(name: str, path: Path) -> None:
    """A grid of what a backbone has learnt: images of its first pseudo-classes."""
    import torch

    from dpldm.config import SamplingConfig
    from dpldm.models.backbone import load_backbone
    from dpldm.models.denoiser import class_count
    from dpldm.sampling import Sampler
    from dpldm.sheet import save_contact_sheet

    backbone = load_backbone(name)
    labels = torch.arange(min(16, class_count(backbone.denoiser))).repeat_interleave(20)
    size = int(backbone.provenance["recipe"]["image_size"])
    images = Sampler(backbone, backbone.denoiser, SamplingConfig(), size)(labels, torch.Generator().manual_seed(0))
    save_contact_sheet(path, images, labels.numpy())


def _backbone(parser: argparse.ArgumentParser, words: list[str]) -> int:
    from dpldm.models.backbone import bundled_backbones, read_card

    parser.add_argument("action", choices=("list", "show", "draw"))
    parser.add_argument("name", nargs="?", help="bundled name or directory")
    parser.add_argument("--output", type=Path, default=Path("samples.png"), help="picture to draw (samples.png)")
    given = parser.parse_args(words)
    if given.action == "list" or given.name is None:
        known = bundled_backbones()
        out.print("\n".join(known) if known else "No backbone is bundled: make one with `dpldm pretrain`.")
        return 0
    if given.action == "draw":
        _draw(given.name, given.output)
        out.print(f"samples: {given.output}")
        return 0
    out.print_json(data=read_card(given.name))
    return 0
