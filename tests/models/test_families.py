"""Every family from a stock directory through DP steps and a release back into its stock class."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, VQModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.models.autoencoder import Posterior, decode, encode, latent_shape
from dpldm.models.backbone import Backbone, load_backbone, sha256_of
from dpldm.models.families import family_of
from dpldm.models.trainable import choose_trainable
from dpldm.planning import choices, plan
from dpldm.privacy.clipping import ClippedSum
from dpldm.privacy.entropy import SeededEntropy
from dpldm.rehearsing import rehearsal
from dpldm.releasing import release
from dpldm.run import Run, plan_of
from dpldm.sampling import Sampler, build_solver, load_synthetic, sample
from dpldm.train.checkpoint import load_checkpoint
from dpldm.train.checks import check_fit
from dpldm.train.example_losses import example_losses, fresh_draws
from dpldm.train.finetune import finetune
from dpldm.train.made_up import stand_ins
from dpldm.train.replay import replay
from dpldm.train.timesteps import Timesteps
from dpldm.tuned import tuned_network
from dpldm.verdict import Verdict, verdict
from dpldm.verifying import verify
from oracles import assert_equal_sums, clipped_sum_by_loop, gradients_by_loop, norm_of
from stock_models import STOCK, make

CAPTIONED = ("stable diffusion", "stable diffusion, velocity", "text to image", "sentence reader")
LABELLED = ("transformer",)
TOLD = {kind: "captions" if kind in CAPTIONED else "classes" if kind in LABELLED else "nothing" for kind in STOCK}
KINDS = list(STOCK)


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A directory of each kind, made once. Look, do not touch."""
    made: dict[str, Path] = {}

    def directory(kind: str) -> Path:
        if kind not in made:
            made[kind] = make(kind, tmp_path_factory.mktemp("stock") / "public")
        return made[kind]

    return directory


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 colour images of 32 x 32 pixels, half of them dark, with a class and a caption each."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    rows = ["file_name,label,caption"]
    for number in range(40):
        label = ("dark", "light")[number % 2]
        pixels = np.clip(rng.normal(60 if label == "dark" else 190, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{label},a {label} square")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def config_of(directory: Path, backbone: Path, images: Path, kind: str, **sections: Any) -> RunConfig:
    """Three steps and eight images in seconds."""
    data: dict[str, Any] = {"path": images, "image_size": 32, "channels": 3}
    sampling: dict[str, Any] = {"count": 8, "steps": 3, "batch_size": 5, "sampler": "ddim"}
    if TOLD[kind] == "classes":
        data["labels"] = ["dark", "light"]
    elif TOLD[kind] == "captions":
        data["caption_column"] = "caption"
        sampling["prompts"] = directory / "prompts.txt"
        sampling["prompts"].write_text("a dark square\n\na light square\n")
    privacy = {"dataset_id": "scans", "records": 40, "epsilon": 0.5, "delta": 1e-3, "expected_batch_size": 20}
    privacy |= {"steps": 3, "reserve_steps": 1, "ledger": directory / "ledger.jsonl"}
    return RunConfig.model_validate(
        {
            "name": "matrix",
            "data": data | sections.pop("data", {}),
            "backbone": str(backbone),
            "privacy": privacy,
            "optimizer": {"learning_rate": 0.03, "warmup_steps": 0},
            "sampling": sampling | sections.pop("sampling", {}),
            "runtime": {"output": directory / "runs", "physical_batch_size": 8},
            **sections,
        }
    )


# --- the whole way ------------------------------------------------------------------------------------------------


def images_of_the_stock_class(
    directory: Path, scheduler: DDIMScheduler, kind: str, guidance: float, adapters: Path | None = None
) -> np.ndarray:
    """What the stock pipeline of a directory draws from the noise of seed 5: (3, H, W, 3) in [0, 1]."""
    name = json.loads((directory / "model_index.json").read_text())["_class_name"]
    pipeline = getattr(diffusers, name).from_pretrained(directory)
    if adapters is not None:
        pipeline.load_lora_weights(adapters, weight_name="pytorch_lora_weights.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler
    generator = torch.Generator().manual_seed(5)
    asked: dict[str, Any] = {"generator": generator, "num_inference_steps": 3, "output_type": "np"}
    if TOLD[kind] == "classes":
        return pipeline([0, 1, 1], guidance_scale=guidance, **asked).images
    if TOLD[kind] == "captions":
        asked["latents"] = torch.randn(3, 4, 4, 4, generator=generator)
        texts = ["a dark square", "a light square", "a light square"]
        return pipeline(texts, guidance_scale=guidance, **asked).images
    return pipeline(batch_size=3, **asked).images


@pytest.mark.parametrize("kind", KINDS)
def test_load_tune_release_and_load_again_in_the_stock_class(
    kind: str, stock: Callable[[str], Path], colours: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, stock(kind), colours, kind, trainable="attention")
    assert [step.number for step in finetune(config)] == [1, 2, 3]
    assert list(sample(config))[-1].done == 8
    synthetic = load_synthetic(config)
    assert synthetic.images.shape == (8, 32, 32, 3)
    assert synthetic.labels.tolist() == ([-1] * 8 if TOLD[kind] == "nothing" else [0, 1] * 4)
    directory = release(config, "both")
    assert [check.name for check in verify(directory) if not check.done] == ["frozen weights"], "open, and said to be"
    checks = verify(directory, stock(kind))
    assert [check for check in checks if not (check.passed and check.done)] == []
    assert str(tmp_path) not in "".join(path.read_text() for path in directory.rglob("*.json"))

    tuned = load_backbone(str(directory / "model"))
    public = load_backbone(config.backbone)
    assert 0 < tuned.provenance["tuned"]["epsilon"] <= config.privacy.epsilon
    with pytest.raises(UserError, match="was itself tuned on private images"):
        check_fit(config, tuned)

    guidance = 1.0 if TOLD[kind] == "nothing" else 2.0
    settings = config.sampling.model_copy(update={"guidance": guidance})
    texts = ["a dark square", "a light square"]
    labels = torch.full((3,), -1) if TOLD[kind] == "nothing" else torch.tensor([0, 1, 1])
    ours = Sampler(tuned, tuned.denoiser, settings, 32, texts)(labels, torch.Generator().manual_seed(5))
    theirs = images_of_the_stock_class(directory / "model", build_solver(tuned.scheduler, settings), kind, guidance)
    alike = np.abs(ours / 255 - theirs).max((1, 2, 3)) < 0.6 / 255
    # A latent as near to one entry of a codebook as to another goes to either, by its last bit.
    excused = 1 if isinstance(tuned.autoencoder, VQModel) else 0
    assert alike.sum() >= 3 - excused, "one image from one noise, but for rounding to 8 bits"

    network = tuned_network(config, load_backbone(config.backbone))
    reloaded, in_memory, before = (
        Sampler(public, each, settings, 32, texts).latents(labels, torch.Generator().manual_seed(5))
        for each in (tuned.denoiser, network, public.denoiser)
    )
    near, far = (float((other - reloaded).norm() / reloaded.norm()) for other in (in_memory, before))
    assert near < 0.01, "what was tuned, but for half precision"
    assert far > 5 * near, "tuning changed what is drawn"


@pytest.mark.parametrize("kind", ["text to image", "transformer", "unconditional"])
def test_adapters_are_merged_where_the_stock_pipeline_loads_none(
    kind: str, stock: Callable[[str], Path], colours: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, stock(kind), colours, kind, trainable="lora-2", tune_embedder=False)
    assert len(list(finetune(config))) == 3
    directory = release(config, "model")
    assert [check for check in verify(directory, stock(kind)) if not (check.passed and check.done)] == []
    public, tuned = (load_backbone(place).denoiser for place in (config.backbone, str(directory / "model")))
    family_of(public).adapt(public, len(config.data.labels))
    before = dict(public.named_parameters())
    if kind == "transformer":  # the table is back at its stock size
        family_of(tuned).adapt(tuned, 2)
    moved = {
        name
        for name, p in tuned.named_parameters()
        if float((p - before[name]).abs().max()) > 2e-3 * max(1.0, float(before[name].abs().max()))
    }
    attention = {name for name in before if ".attentions." in name or ".attn1." in name}
    assert moved
    assert moved <= attention
    if kind == "text to image":
        name = "bert/model.safetensors"
        released = (directory / "model" / name).read_bytes()
        assert released == (Path(config.backbone) / name).read_bytes(), "a frozen encoder is copied byte for byte"


def test_adapters_alone_are_released_where_the_stock_pipeline_loads_them(
    stock: Callable[[str], Path], colours: Path, tmp_path: Path
) -> None:
    """To the UNet and, with the embedder, to the text encoder; what the stock pipeline then draws is what was tuned."""
    kind = "stable diffusion"
    config = config_of(tmp_path, stock(kind), colours, kind, trainable="lora-2")
    assert len(list(finetune(config))) == 3
    directory = release(config, "model")
    assert {path.name for path in (directory / "model").iterdir()} == {
        *("pytorch_lora_weights.safetensors", "backbone.json", "README.md")
    }
    assert [check for check in verify(directory, stock(kind)) if not (check.passed and check.done)] == []
    assert [check.name for check in verify(directory) if not check.done] == ["frozen weights"]
    card = " ".join((directory / "model" / "README.md").read_text().split())
    assert 'pipeline.load_lora_weights("FOLDER", weight_name="pytorch_lora_weights.safetensors")' in card
    assert "differentially private with respect to adding or removing one image" in card

    backbone = load_backbone(config.backbone)
    network, texts = tuned_network(config, backbone), ["a dark square", "a light square"]
    settings, labels = config.sampling.model_copy(update={"guidance": 2.0}), torch.tensor([0, 1, 1])
    ours = Sampler(backbone, network, settings, 32, texts)(labels, torch.Generator().manual_seed(5))
    scheduler = build_solver(backbone.scheduler, settings)
    with_adapters, without = (
        images_of_the_stock_class(stock(kind), scheduler, kind, 2.0, adapters=folder)
        for folder in (directory / "model", None)
    )
    assert np.abs(ours / 255 - with_adapters).max() < 0.6 / 255, "one image from one noise, but for rounding to 8 bits"
    assert np.abs(without - with_adapters).max() > 2 / 255
    names = load_file(directory / "model" / "pytorch_lora_weights.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder"}


# --- gradients ----------------------------------------------------------------------------------------------------


def losses_of(backbone: Backbone, examples: int, draws: int) -> Callable[[Tensor], Tensor]:
    """Rows to the losses of made-up records, the same in every call."""
    generator = torch.Generator().manual_seed(2)
    shape = torch.Size(latent_shape(backbone.autoencoder, 32))
    mean = torch.randn(examples, *shape, generator=generator) * torch.logspace(-1, 0.5, examples).view(-1, 1, 1, 1)
    family = backbone.family
    labels = torch.arange(examples) % 2 if family.told == "classes" else torch.full((examples,), -1)
    latents = stand_ins(Posterior(mean, torch.full_like(mean, -3.0)), labels, labels >= -1, backbone.denoiser)
    if latents.tokens is not None:
        latents.__dict__["tokens"] = family.tokens(backbone.denoiser, ["a dark square", "light", "dark"][:examples])
    drawn = fresh_draws(examples, draws, shape, Timesteps(1000), 0.3, SeededEntropy(4))

    def losses(rows: Tensor) -> Tensor:
        places = (rows[:, None] * draws + torch.arange(draws)).flatten()
        kept = {name: getattr(drawn, name)[places] for name in ("latent", "noise", "timestep", "mirrored")}
        own = type(drawn)(**kept, null=drawn.null[rows])
        return example_losses(backbone.denoiser, backbone.scheduler, latents, rows, own)

    return losses


@pytest.mark.parametrize("choice", ["all", "lora-2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_clipped_sum_is_that_of_a_loop(kind: str, choice: str, stock: Callable[[str], Path]) -> None:
    examples, draws = 3, 2
    backbone = load_backbone(str(stock(kind)))
    backbone.family.adapt(backbone.denoiser, 2 if TOLD[kind] == "classes" else 0)
    trainable = choose_trainable(backbone.denoiser, choice)
    with torch.no_grad():
        for name, p in trainable.items():  # B of an adapter starts at zero, which hides A
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    losses = losses_of(backbone, examples, draws)

    def alone(i: int) -> Tensor:
        return losses(torch.tensor([i]))[0]

    norms = sorted(norm_of(each) for each in gradients_by_loop(backbone.denoiser, alone, examples))
    clip_norm = (norms[0] + norms[-1]) / 2
    with ClippedSum(backbone.denoiser, trainable, clip_norm, draws) as clipped:
        clipped.accumulate(losses(torch.arange(examples)))
        ours = clipped.take()
    assert_equal_sums(ours, clipped_sum_by_loop(backbone.denoiser, alone, examples, clip_norm), 1e-4)


@pytest.mark.parametrize("kind", ["stable diffusion", "text to image", "transformer", "unconditional", "pixels"])
def test_what_has_no_influence_has_no_gradient_and_all_else_has(kind: str, stock: Callable[[str], Path]) -> None:
    backbone = load_backbone(str(stock(kind)))
    backbone.family.adapt(backbone.denoiser, 2 if TOLD[kind] == "classes" else 0)
    network = backbone.denoiser.double().requires_grad_(True)
    with torch.no_grad():
        for number, p in enumerate(network.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    family, shape = backbone.family, (4, *latent_shape(backbone.autoencoder, 32))
    generator = torch.Generator().manual_seed(1)
    x, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    texts = ["a dark square", "light", "", "a"]
    ids = family.tokens(network, texts) if family.told == "captions" else torch.tensor([0, 1, 2, 0])
    output = family.predict(network, x, torch.tensor([10, 300, 600, 900]), family.condition(network, ids))
    (output - target).square().sum().backward()
    called = family.names
    sizes = {n: float(p.grad.abs().max()) for n, p in network.named_parameters() if p.grad is not None}
    most = max(sizes.values())
    without = {name for name in sizes if sizes[name] < 1e-12 * most}
    assert without == {name for name in sizes if called.without_influence.search(name)}
    assert without or kind == "text to image", "whose keys have no bias"


# --- latents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_those_the_stock_class_draws(kind: str, stock: Callable[[str], Path]) -> None:
    """z * scale of the stock autoencoder, without its shift, which no stock pipeline here knows; decoding undoes it."""
    autoencoder = load_backbone(str(stock(kind))).autoencoder
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    found = encode(autoencoder, pixels)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    if kind == "pixels":
        assert torch.allclose(found.mean, images)
        assert np.array_equal(decode(autoencoder, found.mean, 32), pixels)
    elif hasattr(autoencoder, "quantize"):
        assert torch.allclose(found.mean, autoencoder.encode(images).latents * 0.18215, atol=1e-6)
    else:
        scale = 0.5 if kind == "unconditional" else 0.18215
        posterior = autoencoder.encode(images).latent_dist
        assert torch.allclose(found.mean, posterior.mean * scale, atol=1e-6)
        assert torch.allclose(torch.exp(0.5 * found.log_variance), posterior.std * scale, rtol=1e-5)
        expected = (autoencoder.decode(found.mean / scale).sample.clamp(-1, 1) + 1) / 2
        drawn = torch.from_numpy(decode(autoencoder, found.mean, 32)).permute(0, 3, 1, 2) / 255
        assert float((drawn - expected).abs().max()) < 1 / 255
    if kind == "pixels" or hasattr(autoencoder, "quantize"):
        noise = torch.randn(found.mean.shape)
        assert torch.equal(found.at(noise), found.mean), "there is no variance"


# --- conditions ---------------------------------------------------------------------------------------------------


def test_a_transformers_tables_make_room_and_come_back_to_stock_size(stock: Callable[[str], Path]) -> None:
    network = load_backbone(str(stock("transformer"))).denoiser
    name = "norm1.emb.class_embedder.embedding_table.weight"
    before = [block.get_parameter(name).clone() for block in network.transformer_blocks]
    family = family_of(network)
    family.adapt(network, 3)
    assert int(family.null(network)) == 3
    for old, block in zip(before, network.transformer_blocks, strict=True):
        new = block.get_parameter(name)
        assert new.shape == (4, 12)
        assert torch.equal(new[3], old[1000])
        assert torch.allclose(new[:3], old[:1000].mean(0).expand(3, -1), atol=1e-6)
    with pytest.raises(UserError, match="holds 1000: declare fewer"):
        family.adapt(network, 1001)


def test_a_transformer_drops_labels_once_an_example(stock: Callable[[str], Path]) -> None:
    """With everything dropped, the label has no influence at all; with nothing dropped, it has."""
    backbone = load_backbone(str(stock("transformer")))
    backbone.family.adapt(backbone.denoiser, 2)
    with torch.no_grad():
        for block in backbone.denoiser.transformer_blocks:
            block.norm1.emb.class_embedder.embedding_table.weight.normal_(generator=torch.Generator().manual_seed(0))
    mean, shape = torch.randn(2, 4, 4, 4), torch.Size((4, 4, 4))
    for dropout, alike in ((1.0, True), (0.0, False)):
        drawn = fresh_draws(2, 2, shape, Timesteps(1000), dropout, SeededEntropy(1))
        both = []
        for label in (0, 1):
            made = stand_ins(
                *(Posterior(mean, torch.zeros_like(mean)), torch.full((2,), label), torch.ones(2) > 0),
                backbone.denoiser.train(False),
            )
            both.append(example_losses(backbone.denoiser, backbone.scheduler, made, torch.arange(2), drawn))
        assert torch.allclose(*both) == alike


def test_class_names_of_a_tuned_transformer_are_in_its_index(stock: Callable[[str], Path], tmp_path: Path) -> None:
    backbone = load_backbone(str(stock("transformer")))
    backbone.save(tmp_path / "tuned", labels=["sick, ill", "well"])
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "tuned")
    assert pipeline.labels == {"sick; ill": 0, "well": 1}


@pytest.mark.parametrize("kind", ["stable diffusion", "text to image"])
def test_tokens_of_a_caption_do_not_depend_on_other_captions(kind: str, stock: Callable[[str], Path]) -> None:
    backbone = load_backbone(str(stock(kind)))
    texts = ["a dark square", "", "light " * 200, "a"]
    together = backbone.family.tokens(backbone.denoiser, texts)
    assert together.dtype == torch.int64
    for text, row in zip(texts, together, strict=True):
        assert torch.equal(backbone.family.tokens(backbone.denoiser, [text])[0], row)
    assert len(torch.unique(together, dim=0)) == 4, "and they are told apart"
    assert torch.equal(backbone.family.null(backbone.denoiser), together[1])


def test_labels_become_captions_by_the_template(stock: Callable[[str], Path], colours: Path, tmp_path: Path) -> None:
    kind = "text to image"
    data = {"caption_column": None, "labels": ["dark", "light"], "caption_template": "a {label} square"}
    config = config_of(tmp_path, stock(kind), colours, kind, data=data, sampling={"prompts": None})
    list(finetune(config))
    cache = load_checkpoint(Run(config).latents)[0]["latents"]
    backbone = load_backbone(config.backbone)
    expected = backbone.family.tokens(backbone.denoiser, ["a dark square", "a light square"])
    assert torch.equal(cache["tokens"], expected[cache["labels"]])
    assert list(sample(config))[-1].done == 8
    assert load_synthetic(config).labels.tolist() == [0, 1] * 4


def test_prompts_are_released_with_the_images(stock: Callable[[str], Path], colours: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, stock("stable diffusion"), colours, "stable diffusion")
    list(finetune(config))
    list(sample(config))
    folder = release(config) / "synthetic"
    table = (folder / "metadata.csv").read_text().splitlines()
    assert table[:3] == ["file_name,text", "000000.png,a dark square", "000001.png,a light square"]
    card = (folder / "README.md").read_text()
    assert "drawn for 2 public prompts in turn (column `text` of metadata.csv)" in card
    assert "unconditional" not in card


# --- what verify finds ----------------------------------------------------------------------------------------------


def rehashed(directory: Path) -> None:
    """What a careful forger does last: all files are declared, in statement and card, with the hashes they have now."""
    statement, card = (json.loads((directory / name).read_text()) for name in ("privacy.json", "model/backbone.json"))
    card["sha256"] = {name: sha256_of(directory / "model" / name) for name in card["sha256"]}
    (directory / "model/backbone.json").write_text(json.dumps(card))
    statement["files"] = {name: sha256_of(directory / name) for name in statement["files"]}
    (directory / "privacy.json").write_text(json.dumps(statement))


def weights(file: str, change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        state = load_file(directory / "model" / file)
        change(state)
        save_file(state, directory / "model" / file, metadata={"format": "pt"})

    return apply


def words(file: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = directory / "model" / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return apply


def moved(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: state[name].view(-1)[0].add_(0.5)


UNET, DIT = "unet/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.safetensors"
ENCODER, LORA = "text_encoder/model.safetensors", "pytorch_lora_weights.safetensors"
TABLE = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
FORGED: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "a frozen layer of the UNet": ("stable diffusion", "attn2", weights(UNET, moved("conv_in.weight"))),
    "a frozen layer of the text encoder": (
        *("stable diffusion", "attn2"),
        weights(ENCODER, moved("text_model.encoder.layers.0.mlp.fc1.weight")),
    ),
    "a tuned layer of another shape": (
        *("unconditional", "attention"),
        weights(UNET, lambda s: s.update({"mid_block.attentions.0.to_q.weight": torch.zeros(3).half()})),
    ),
    "a layer more": ("pixels", "attention", weights(UNET, lambda s: s.update({"notes.weight": torch.zeros(3).half()}))),
    "rows of no class": ("transformer", "attention", weights(DIT, lambda s: s[TABLE][700].add_(1.0))),
    "a setting of the UNet": (
        "stable diffusion",
        "attn2",
        words("unet/config.json", '"sample_size": 4', '"sample_size": 5'),
    ),
    "a class that was not declared": ("transformer", "attention", words("model_index.json", '"dark"', '"patient 7"')),
    "a word of the tokenizer": ("text to image", "attn2", words("tokenizer/tokenizer.json", '"dark"', '"darc"')),
    "the rank of an adapter": (
        *("stable diffusion", "lora-2"),
        weights(LORA, lambda s: s.update({QUERY: torch.zeros(3, s[QUERY].shape[1])})),
    ),
    "an adapter elsewhere": (
        *("stable diffusion", "lora-2"),
        weights(LORA, lambda s: s.update({f"unet.conv_in.lora_{k}.weight": torch.zeros(2, 2) for k in "AB"})),
    ),
    "one half of an adapter": ("stable diffusion", "lora-2", weights(LORA, lambda s: s.pop(QUERY))),
}


@pytest.fixture(scope="session")
def released(
    stock: Callable[[str], Path], colours: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """A release of a model of each kind and choice, made once. Copy it before you touch it."""
    made: dict[tuple[str, str], Path] = {}

    def directory(kind: str, choice: str) -> Path:
        if (kind, choice) not in made:
            folder = tmp_path_factory.mktemp("released")
            config = config_of(folder, stock(kind), colours, kind, trainable=choice)
            list(finetune(config))
            made[kind, choice] = release(config, "model")
        return made[kind, choice]

    return directory


@pytest.mark.parametrize("name", FORGED)
def test_what_was_not_tuned_is_compared_with_the_public_backbone(
    name: str, released: Callable[[str, str], Path], stock: Callable[[str], Path], tmp_path: Path
) -> None:
    kind, choice, change = FORGED[name]
    directory = Path(shutil.copytree(released(kind, choice), tmp_path / "forged"))
    assert verdict(verify(directory, stock(kind))) is Verdict.VERIFIED
    change(directory)
    rehashed(directory)
    assert verdict(verify(directory, stock(kind))) is Verdict.TAINTED


# --- what else runs on a family --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stable diffusion", "transformer", "pixels"])
def test_a_plan_and_its_choices(kind: str, stock: Callable[[str], Path], colours: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, stock(kind), colours, kind)
    forecast = plan(config)
    assert 0 < forecast.trainable_parameters < forecast.total_parameters
    assert forecast.seconds is not None
    found = {choice.trainable: choice.parameters for choice in choices(config)}
    assert found["attention"] == forecast.trainable_parameters
    assert found["attention-from-2"] < found["attention"] < found["all"] <= forecast.total_parameters
    assert ("condition" in found) == (TOLD[kind] != "nothing")


@pytest.mark.slow
def test_a_rehearsal_needs_no_captions(stock: Callable[[str], Path], colours: Path, tmp_path: Path) -> None:
    made = rehearsal(config_of(tmp_path, stock("stable diffusion"), colours, "stable diffusion"))
    assert len(list(finetune(made))) == 3
    assert list(sample(made))[-1].done == 8


@pytest.mark.slow
def test_neighbouring_sets_of_captions_differ_by_at_most_the_clip_norm(
    stock: Callable[[str], Path], colours: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, stock("stable diffusion"), colours, "stable diffusion", trainable="attn2")
    pairs = replay(config, plan_of(config))
    assert pairs
    assert not [pair for pair in pairs if pair.violated]
