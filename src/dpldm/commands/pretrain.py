"""`dpldm pretrain --recipe FILE`."""

import argparse
from pathlib import Path

from dpldm.commands.backbone import draw
from dpldm.console import add_manners, conclude, follow, manners
from dpldm.loading import load_config
from dpldm.recipe import BackboneRecipe


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Make a backbone from public sets."""
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
        draw(str(recipe.output), grid)
        then = [f"dpldm run --config FILE --backbone {recipe.output}"]
        conclude(given, {"backbone": recipe.name}, {"backbone": recipe.output, "samples": grid}, then)
    return 0
