"""Kinds of models in a release: which parts they have and which files these are. No torch, so a table by hand; a test
holds it to the families' own layouts.

A kind is told from the files that a statement binds its backbone to, since a statement cannot be without them; no two
kinds have the same parts. What is of none of them is refused.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dpldm.models.choices import CAPTIONS, CLASS_TOKEN, TRANSFORMER, UNCONDITIONAL, Names

WEIGHTS = ("vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors")
"""Of our own backbones, and no other."""
ADAPTERS = "pytorch_lora_weights.safetensors"
"""All weights of a release of adapters: what `load_lora_weights` of a stock pipeline looks for."""
SHARES = "public_classes.json"
"""Beside the weights of a network that is told public classes too: how often each is found within each class."""
DIFFUSERS = re.compile(r"diffusion_pytorch_model(-\d{5}-of-\d{5}\.safetensors|\.safetensors(\.index\.json)?)")
TRANSFORMERS = re.compile(r"model(-\d{5}-of-\d{5}\.safetensors|\.safetensors(\.index\.json)?)")
COMMON = re.compile(r"README\.md|(backbone|model_index)\.json|scheduler/scheduler_config\.json")
TOKENIZER = re.compile(
    r"tokenizer/((tokenizer(_config)?|vocab|special_tokens_map|added_tokens)\.json|(merges|vocab)\.txt)"
)


@dataclass(frozen=True)
class Kind:
    """Folders of a kind of model, and what its parameters are called."""

    pipelines: tuple[str, ...]  # `_class_name` of its model_index.json
    called: Names
    denoiser: str = "unet"
    autoencoder: str | None = "vae"  # None: it draws pixels
    text_encoder: str | None = None
    takes_adapters: bool = False  # its stock pipeline loads them, so adapters are released as such

    @property
    def parts(self) -> set[str]:
        """Folders that hold weights."""
        return {part for part in (self.denoiser, self.autoencoder, self.text_encoder) if part is not None}

    @property
    def tuned_parts(self) -> set[str]:
        """Those of them that may be tuned."""
        return self.parts - {self.autoencoder}

    def in_network(self, part: str, name: str) -> str:
        """What a tensor of one of the tuned parts' files is called in the network that is tuned."""
        if self.text_encoder is None:
            return name
        # transformers 5 leaves out a prefix that files have
        return f"unet.{name}" if part == self.denoiser else f"text_encoder.{name.removeprefix('text_model.')}"

    def is_weights(self, name: str) -> bool:
        """Whether a file, named below the model's directory, is one of the weights of this kind."""
        part, _, file = name.partition("/")
        pattern = TRANSFORMERS if part == self.text_encoder else DIFFUSERS
        return name in WEIGHTS if self is OWN else part in self.parts and pattern.fullmatch(file) is not None

    def is_bound(self, name: str) -> bool:
        """Whether a file is one that a backbone of this kind is identified by: weights, and a tokenizer's."""
        return self.is_weights(name) or (self.text_encoder is not None and TOKENIZER.fullmatch(name) is not None)

    def may_hold(self, name: str) -> bool:
        """Whether a released model may have this file, named below its directory."""
        part, _, file = name.partition("/")
        settings = part in self.parts and file == "config.json"
        adapters = self.takes_adapters and name == ADAPTERS
        shares = self.called is CLASS_TOKEN and name == SHARES
        return COMMON.fullmatch(name) is not None or settings or adapters or shares or self.is_bound(name)


OWN = Kind(("ClassConditionalLDMPipeline",), CLASS_TOKEN)
KINDS = (
    OWN,
    Kind(("DiTPipeline",), TRANSFORMER, denoiser="transformer"),
    Kind(("LDMPipeline",), UNCONDITIONAL, autoencoder="vqvae"),
    Kind(("DDPMPipeline", "DDIMPipeline"), UNCONDITIONAL, autoencoder=None),
    Kind(("StableDiffusionPipeline",), CAPTIONS, text_encoder="text_encoder", takes_adapters=True),
    Kind(("LDMTextToImagePipeline",), CAPTIONS, autoencoder="vqvae", text_encoder="bert"),
    Kind(("ClassConditionalPixelPipeline",), CLASS_TOKEN, denoiser="pixel_unet", autoencoder=None),
)


def kind_of(names: Collection[str]) -> Kind | None:
    """The kind of a model that these files identify, each named below the model's directory; None if there is none."""
    words = {name for name in names if TOKENIZER.fullmatch(name)}
    weights = set(names) - words
    parts = {name.partition("/")[0] for name in weights}
    kind = next((kind for kind in KINDS if kind.parts == parts), None)
    if kind is None or not all(kind.is_weights(name) for name in weights):
        return None
    if bool(words) != (kind.text_encoder is not None):
        return None
    return None if kind is OWN and weights != set(WEIGHTS) else kind


def kind_of_statement(statement: Mapping[str, Any]) -> Kind | None:
    """The kind of the backbone that a statement names."""
    return kind_of(statement["backbone"]["sha256"])
