"""Directories of stock diffusers pipelines with small random networks, as anyone else's would be."""

import string
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    LDMTextToImagePipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from transformers import BertConfig, BertModel, BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def kl_autoencoder(levels: int, *, scale: float = 0.18215, shift: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=scale,
        shift_factor=shift,
    )


def vq_autoencoder(levels: int) -> VQModel:
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=4,
        num_vq_embeddings=64,
        norm_num_groups=4,
    )


def text_unet(width: int, **more: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=width,
        norm_num_groups=4,
        **more,
    )


def plain_unet(channels: int, side: int) -> UNet2DModel:
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
    )


def clip_tokenizer() -> CLIPTokenizer:
    """Letter by letter."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=7)


def stable_diffusion(directory: Path, **schedule: object) -> None:
    settings = CLIPTextConfig(
        vocab_size=54,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=7,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    StableDiffusionPipeline(
        vae=kl_autoencoder(4),
        text_encoder=CLIPTextModel(settings),
        tokenizer=clip_tokenizer(),
        unet=text_unet(8),
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)


def text_to_image(directory: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dark", "light", "a", "square"]
    settings = LDMBertConfig(
        vocab_size=len(words),
        max_position_embeddings=77,
        encoder_layers=2,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        head_dim=4,
        d_model=8,
        pad_token_id=0,
    )
    LDMTextToImagePipeline(
        vqvae=vq_autoencoder(4),
        bert=LDMBertModel(settings),
        tokenizer=BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=77),
        unet=text_unet(8),
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False),
    ).save_pretrained(directory)


def sentence_reader(directory: Path) -> None:
    """A Stable Diffusion with a BERT that masks what fills a text up, and tokens that the UNet projects."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dark", "light", "a", "square"]
    settings = BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        pad_token_id=0,
        use_attention_mask=True,
    )
    StableDiffusionPipeline(
        vae=kl_autoencoder(4),
        text_encoder=BertModel(settings),
        tokenizer=BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=7),
        unet=text_unet(6, encoder_hid_dim=8, encoder_hid_dim_type="text_proj"),
        scheduler=DDPMScheduler(**SCHEDULE, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)


def diffusion_transformer(directory: Path) -> None:
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=6,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        norm_num_groups=2,
    )
    DiTPipeline(network, kl_autoencoder(4), DDIMScheduler(clip_sample=False)).save_pretrained(directory)


def latent_unconditional(directory: Path, *, quantised: bool) -> None:
    autoencoder = vq_autoencoder(3) if quantised else kl_autoencoder(3, scale=0.5, shift=0.25)
    pipeline = LDMPipeline(autoencoder, plain_unet(4, 8), DDIMScheduler(**SCHEDULE, clip_sample=False))
    pipeline.save_pretrained(directory)


def of_pixels(directory: Path) -> None:
    DDPMPipeline(plain_unet(3, 32), DDPMScheduler(clip_sample=False)).save_pretrained(directory)


STOCK: dict[str, Callable[[Path], None]] = {
    "stable diffusion": stable_diffusion,
    "stable diffusion, velocity": lambda directory: stable_diffusion(directory, prediction_type="v_prediction"),
    "text to image": text_to_image,
    "sentence reader": sentence_reader,
    "transformer": diffusion_transformer,
    "unconditional": lambda directory: latent_unconditional(directory, quantised=False),
    "unconditional, quantised": lambda directory: latent_unconditional(directory, quantised=True),
    "pixels": of_pixels,
}
"""All of them hold colour images of 32 x 32 pixels."""


def make(kind: str, directory: Path) -> Path:
    torch.manual_seed(0)
    STOCK[kind](directory)
    return directory
