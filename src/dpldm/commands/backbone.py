"""`dpldm backbone list|show|draw|convert`."""

import argparse
from pathlib import Path

from dpldm.console import out


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Tell about backbones, draw from one, or make one of a checkpoint of the CompVis code."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|draw|convert")
    actions.add_parser("list", help="names of the bundled backbones")
    show = actions.add_parser("show", help="the card of a backbone: provenance, recipe, sha256")
    drawn = actions.add_parser("draw", help="a picture of what a backbone of ours has learnt")
    for action in (show, drawn):
        action.add_argument("name", help="bundled name or directory")
    drawn.add_argument("--output", type=Path, default=Path("samples.png"), help="picture to draw (samples.png)")
    converted = actions.add_parser("convert", help="a .ckpt of the CompVis code to a directory")
    converted.add_argument(
        "checkpoint", type=Path, help="Stable Diffusion 1.x, txt2img-1.4B, cin256, or an autoencoder"
    )
    converted.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    converted.add_argument("--config", type=Path, metavar="YAML", help="of the checkpoint, for other models than these")
    converted.add_argument(
        "--tokenizer", metavar="DIR", help="of a model that is told texts (the published one, from the hub)"
    )
    given = parser.parse_args(words)
    if given.action == "list":
        return _list()
    if given.action == "show":
        return _show(given.name)
    if given.action == "draw":
        draw(given.name, given.output)
        out.print(f"samples: {given.output}")
        return 0
    return _convert(given)


def _list() -> int:
    from dpldm.models.backbone import bundled_backbones

    known = bundled_backbones()
    out.print("\n".join(known) if known else "No backbone is bundled: make one with `dpldm pretrain`.")
    return 0


def _show(name: str) -> int:
    from dpldm.models.backbone import read_card

    out.print_json(data=read_card(name))
    return 0


def _convert(given: argparse.Namespace) -> int:
    from dpldm.models.compvis.convert import convert

    made = convert(given.checkpoint, given.output, given.config, given.tokenizer)
    use = (
        f"use it with  backbone: {made.directory}"
        if made.is_backbone
        else "an autoencoder alone is no backbone yet, a denoiser for it has to be trained"
    )
    out.print(f"{made.directory} holds a {made.pipeline}: {use}")
    return 0


def draw(name: str, path: Path) -> None:
    """A grid of what a backbone has learnt: images of its first classes, or some captions, if it is told any."""
    import torch

    from dpldm.config import SamplingConfig
    from dpldm.models.backbone import load_backbone
    from dpldm.sampling import Sampler
    from dpldm.sheet import save_contact_sheet

    backbone = load_backbone(name)
    texts = backbone.provenance.get("some_captions", ())
    kinds = len(texts) or min(
        16, int(backbone.family.null(backbone.denoiser))
    )  # the null label comes after all classes
    labels = torch.arange(kinds).repeat_interleave(20) if kinds else torch.full((100,), -1)
    size, settings = int(backbone.provenance["recipe"]["image_size"]), SamplingConfig()
    sampler = Sampler(backbone, backbone.denoiser, settings, size, texts)
    save_contact_sheet(path, sampler(labels, torch.Generator().manual_seed(0)), labels.numpy(), texts)
