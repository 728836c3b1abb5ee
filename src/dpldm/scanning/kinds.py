"""Kinds of models in a release: which parts they have and which files these are. No torch, so a table by hand; a test
holds it to the families' own layouts.

A kind is told from the weights that a statement names, since a statement cannot be without them; no two kinds have the
same parts. What is of none of them is refused.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

WEIGHTS = ("vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors")
"""Of our own backbones, and no other."""
DIFFUSERS = re.compile(r"diffusion_pytorch_model(-\d{5}-of-\d{5}\.safetensors|\.safetensors(\.index\.json)?)")
TRANSFORMERS = re.compile(r"model(-\d{5}-of-\d{5}\.safetensors|\.safetensors(\.index\.json)?)")
COMMON = re.compile(r"README\.md|(backbone|model_index)\.json|scheduler/scheduler_config\.json")
TOKENIZER = re.compile(
    r"tokenizer/((tokenizer(_config)?|vocab|special_tokens_map|added_tokens)\.json|(merges|vocab)\.txt)"
)


@dataclass(frozen=True)
class Kind:
    """Folders of a kind of model."""

    pipelines: tuple[str, ...]  # `_class_name` of its model_index.json
    denoiser: str = "unet"
    autoencoder: str | None = "vae"  # None: it draws pixels
    text_encoder: str | None = None

    @property
    def parts(self) -> set[str]:
        """Folders that hold weights."""
        return {part for part in (self.denoiser, self.autoencoder, self.text_encoder) if part is not None}

    def is_weights(self, name: str) -> bool:
        """Whether a file, named below the model's directory, is one of the weights of this kind."""
        part, _, file = name.partition("/")
        pattern = TRANSFORMERS if part == self.text_encoder else DIFFUSERS
        return name in WEIGHTS if self is OWN else part in self.parts and pattern.fullmatch(file) is not None

    def may_hold(self, name: str) -> bool:
        """Whether a released model may have this file, named below its directory."""
        part, _, file = name.partition("/")
        settings = part in self.parts and file == "config.json"
        told = self.text_encoder is not None and (
            TOKENIZER.fullmatch(name) is not None or name == f"{self.text_encoder}/generation_config.json"
        )
        return COMMON.fullmatch(name) is not None or settings or told or self.is_weights(name)


OWN = Kind(("ClassConditionalLDMPipeline",))
KINDS = (
    OWN,
    Kind(("DiTPipeline",), denoiser="transformer"),
    Kind(("LDMPipeline",), autoencoder="vqvae"),
    Kind(("DDPMPipeline", "DDIMPipeline"), autoencoder=None),
    Kind(("StableDiffusionPipeline",), text_encoder="text_encoder"),
    Kind(("LDMTextToImagePipeline",), autoencoder="vqvae", text_encoder="bert"),
)


def kind_of(names: Collection[str]) -> Kind | None:
    """The kind of a model with these weights, each named below the model's directory; None if there is none."""
    parts = {name.partition("/")[0] for name in names}
    kind = next((kind for kind in KINDS if kind.parts == parts), None)
    if kind is None or not all(kind.is_weights(name) for name in names):
        return None
    return None if kind is OWN and set(names) != set(WEIGHTS) else kind


def kind_of_statement(statement: Mapping[str, Any]) -> Kind | None:
    """The kind of the backbone that a statement names."""
    return kind_of(statement["backbone"]["sha256"])
