"""Models that are told a text: `StableDiffusionPipeline` (SD 1.x and 2.x, and ours with MiniLM) and
`LDMTextToImagePipeline`.

The network is the UNet together with the text encoder, because both may be tuned. What the private cache holds are
tokens; they are read in every pass, or once if the text encoder is frozen (reading.py).
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dpldm.errors import MissingExtra, UserError
from dpldm.models.choices import CAPTIONS
from dpldm.models.families.family import Family, Layout
from dpldm.models.families.parts import (
    TRANSFORMERS,
    copy_part,
    load_part,
    require_class,
    save_half,
    tokenizer_files,
    weights_of,
)
from dpldm.models.families.reading import Reader

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "BertTokenizer", "BertTokenizerFast")
PLAIN = {
    "addition_embed_type": (None,),
    "class_embed_type": (None,),
    "encoder_hid_dim_type": (None, "text_proj"),
    "time_cond_proj_dim": (None,),
}
"""Settings of a UNet that is told nothing but a text."""


class TextToImage(nn.Module):
    """A UNet with the encoder of its texts: (N, c, h, w), timesteps and tokens (N, T) to a prediction."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.tokenizer = unet, text_encoder, tokenizer
        self.read = Reader()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """The UNet's prediction."""
        texts = self.read(self.text_encoder, tokens)
        predicted: Tensor = self.unet(noisy, timesteps, encoder_hidden_states=texts).sample
        return predicted


class Captions(Family):
    """See the head of this file."""

    title = "captions"
    layouts: ClassVar[Mapping[str, Layout]] = {
        "StableDiffusionPipeline": Layout(text_encoder="text_encoder", takes_adapters=True),
        "LDMTextToImagePipeline": Layout(autoencoder="vqvae", text_encoder="bert"),
    }
    names = CAPTIONS
    told = "captions"
    side = "free"

    def owns(self, network: nn.Module) -> bool:
        """See `Family.owns`."""
        return isinstance(network, TextToImage)

    def load(self, directory: Path, index: Mapping[str, Any], layout: Layout) -> nn.Module:
        """See `Family.load`."""
        require_class(index, layout.denoiser, ("UNet2DConditionModel",))
        unet: Any = load_part(UNet2DConditionModel, directory / layout.denoiser)
        foreign = [name for name, plain in PLAIN.items() if unet.config[name] not in plain]
        if foreign:
            raise UserError(
                f"The UNet in {directory} is told more than a text ({', '.join(foreign)}): use a plain Stable "
                "Diffusion 1.x or 2.x."
            )
        encoder = load_encoder(directory, index, str(layout.text_encoder))
        return TextToImage(unet, encoder, load_tokenizer(directory, index))

    def save(self, network: Any, directory: Path, layout: Layout, source: Path | None) -> None:
        """See `Family.save`. An encoder that was not tuned is copied."""
        part = str(layout.text_encoder)
        if source is None:
            raise ValueError("a tokenizer is copied from the directory it was loaded from")
        save_half(network.unet, directory / layout.denoiser, source / layout.denoiser)
        if _equals_stored(network.text_encoder, source / part):
            copy_part(network.text_encoder, source / part, directory / part)
        else:
            save_half(network.text_encoder, directory / part, source / part, stem=TRANSFORMERS, prefix=_prefix(network))
        (directory / "tokenizer").mkdir(exist_ok=True)
        for name, path in tokenizer_files(source / "tokenizer").items():
            shutil.copyfile(path, directory / "tokenizer" / name)

    def predict(self, network: nn.Module, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """See `Family.predict`."""
        predicted: Tensor = network(noisy, timesteps, condition)
        return predicted

    def index(self, index: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
        """See `Family.index`. What a pipeline may have beside its model, such as a safety checker, stays behind."""
        kept = {"vae", "vqvae", "unet", "text_encoder", "bert", "tokenizer", "scheduler"}
        parts = {name: value for name, value in index.items() if name in kept or not isinstance(value, list)}
        if index.get("_class_name") == "StableDiffusionPipeline":
            nothing = {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
            parts |= nothing | {"requires_safety_checker": False}
        return parts

    def null(self, network: nn.Module) -> Tensor:
        """See `Family.null`: the empty text, which pipelines guide away from."""
        return self.tokens(network, [""])[0]

    def tokens(self, network: Any, texts: Sequence[str]) -> Tensor:
        """See `Family.tokens`."""
        return tokenised(network.tokenizer, network.text_encoder, texts)

    def settings(self, network: Any) -> Any:
        """See `Family.settings`."""
        return network.unet.config


def tokenised(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> Tensor:
    """Ids (N, T) int64. Long texts are cut, short ones filled up, as the stock pipelines do."""
    longest = min(int(encoder.config.max_position_embeddings), int(tokenizer.model_max_length))
    encoded = tokenizer(list(texts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def load_encoder(directory: Path, index: Mapping[str, Any], part: str) -> nn.Module:
    """The text encoder of a stock directory, in float32.

    Raises:
        UserError: it cannot be loaded, or is one that cannot be used.
        MissingExtra: transformers is not installed.
    """
    name = require_class(index, part, ("CLIPTextModel", "LDMBertModel", "BertModel"))
    try:
        import transformers
        from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
    except ImportError:
        raise MissingExtra("transformers", "text", "A backbone that is told texts") from None
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    kind: Any = LDMBertModel if name == "LDMBertModel" else getattr(transformers, name)
    files = weights_of(directory / part).values()
    variant = "fp16" if any(".fp16." in path.name for path in files) else None
    try:
        encoder: nn.Module = kind.from_pretrained(
            directory / part, local_files_only=True, use_safetensors=True, variant=variant
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{directory / part} cannot be loaded as {name} ({type(error).__name__}): copy the whole directory again."
        ) from error
    if name != "BertModel" and getattr(encoder.config, "use_attention_mask", False):  # padding there is a word, too
        raise UserError(f"The text encoder in {directory} needs an attention mask: use a Stable Diffusion 1.x or 2.x.")
    return encoder.float()


def load_tokenizer(directory: Path, index: Mapping[str, Any]) -> Any:
    """The tokenizer of a stock directory.

    Raises:
        UserError: it is missing or cannot be read.
    """
    import transformers

    name = require_class(index, "tokenizer", TOKENIZERS)
    folder = directory / "tokenizer"
    remedy = "copy the whole directory of the backbone again."
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise UserError(f"The backbone has no tokenizer in {folder}, without which it cannot read captions: {remedy}")
    try:
        return getattr(transformers, name).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"The tokenizer in {folder} cannot be read ({type(error).__name__}): {remedy}") from error


def _prefix(network: Any) -> str:
    """What stock files of CLIP's text encoder put before every name, and transformers 5 leaves out in memory."""
    of_clip = type(network.text_encoder).__name__ == "CLIPTextModel"
    return "text_model." if of_clip and not hasattr(network.text_encoder, "text_model") else ""


def _equals_stored(encoder: Any, folder: Path) -> bool:
    """Whether nothing was tuned: the weights are those of the directory."""
    stored = type(encoder).from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        variant="fp16" if any(".fp16." in path.name for path in weights_of(folder).values()) else None,
    )
    other = stored.float().state_dict()
    return all(torch.equal(tensor.cpu(), other[name]) for name, tensor in encoder.state_dict().items())
