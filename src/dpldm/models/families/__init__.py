"""The families of latent diffusion models that can be a backbone: one file each, one class each, found by what a
directory or a network is."""

import re

from torch import nn

from dpldm.errors import UserError
from dpldm.models.families.captions import Captions
from dpldm.models.families.class_token import ClassToken
from dpldm.models.families.family import Family, Layout
from dpldm.models.families.transformer import Transformer
from dpldm.models.families.unconditional import Unconditional

__all__ = ["FAMILIES", "Family", "Layout", "family_of", "family_of_pipeline"]

FAMILIES: tuple[Family, ...] = (ClassToken(), Transformer(), Unconditional(), Captions())

REASONS = {
    r"StableDiffusionXL": "it is told image sizes and two encodings of a text",
    r"StableDiffusion3|Flux|Sana|AuraFlow|HunyuanDiT|Lumina": "it is trained by flow matching on several text encoders",
    r"PixArt": "it is told a text by T5, whose adaptive norms are shared by all blocks",
    r".*(Inpaint|Upscale|ControlNet|Img2Img|Depth2Img|Pix2Pix)": "it is told another image",
}
"""Why some that people have at hand do not work: pattern of the pipeline's name -> reason."""


def family_of(network: nn.Module) -> Family:
    """The family of a network in memory.

    Raises:
        UserError: it is of none.
    """
    for family in FAMILIES:
        if family.owns(network):
            return family
    raise UserError(f"A {type(network).__name__} without a condition of a known kind cannot be tuned.")


def family_of_pipeline(pipeline: str, place: str) -> Family:
    """The family of a directory by the `_class_name` of its model_index.json.

    Raises:
        UserError: it is of none.
    """
    for family in FAMILIES:
        if pipeline in family.layouts:
            return family
    reason = next((text for pattern, text in REASONS.items() if re.match(pattern, pipeline)), "its family is unknown")
    known = ", ".join(sorted(name for family in FAMILIES for name in family.layouts))
    raise UserError(f"The backbone {place} is a {pipeline}, which cannot be tuned ({reason}): use one of {known}.")
