"""Checkpoints of the CompVis code as backbones: every tensor where it belongs, and nothing passed over."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel, VQModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertTokenizer

from compvis_models import CLASSES, HEADS, LENGTH, autoencoder, checkpoint, random_weights, schedule, unet, write
from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.models.autoencoder import decode, encode
from dpldm.models.backbone import Backbone, load_backbone
from dpldm.models.compvis import unpickling
from dpldm.models.compvis.convert import convert
from dpldm.models.compvis.names import autoencoder_name, average_name, unet_name
from dpldm.models.compvis.reading import REFUSED
from dpldm.models.compvis.settings import KNOWN
from dpldm.releasing import release
from dpldm.train.finetune import finetune
from dpldm.verifying import verify
from stock_models import clip_tokenizer
from tiny_runs import tiny_settings

KINDS = ("classes", "clip", "bert")
UNET, FIRST, CONDITION = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dark", "light", "a", "square"]
    clip_tokenizer().save_pretrained(folder / "clip")
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder / "bert")
    return {"clip": folder / "clip", "bert": folder / "bert", "classes": folder / "none"}


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Path]) -> Callable[[str], Path]:
    """The directory of each kind, made once. Look, do not touch."""
    made: dict[str, Path] = {}

    def directory(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("converted")
            path, config = write(folder, kind, checkpoint(kind))
            made[kind] = convert(path, folder / "public", config, str(tokenizers[kind])).directory
        return made[kind]

    return directory


def named(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}


def denoiser_of(backbone: Backbone) -> UNet2DConditionModel:
    network: Any = backbone.denoiser
    return network if isinstance(network, UNet2DConditionModel) else network.unet


# --- every tensor in its place --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_where_diffusers_own_converter_puts_them(kind: str, converted: Callable[[str], Path]) -> None:
    weights, backbone = checkpoint(kind), load_backbone(str(converted(kind)))
    ours = {name: t for name, t in denoiser_of(backbone).state_dict().items() if "encoder_hid_proj" not in name}
    theirs = convert_ldm_unet_checkpoint(weights, denoiser_of(backbone).config)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    ours = backbone.autoencoder.state_dict()
    theirs = convert_ldm_vae_checkpoint(weights, backbone.autoencoder.config)
    if kind == "classes":
        theirs["quantize.embedding.weight"] = weights[f"{FIRST}quantize.embedding.weight"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_stock_model_goes_to_compvis_names_and_back_bit_for_bit(tmp_path: Path) -> None:
    weights = checkpoint("classes")
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=HEADS,
        cross_attention_dim=16,
    )
    renamed = {unet_name(name, 1, {0}): tensor for name, tensor in network.state_dict().items()}
    shapes = unet(3, 16, (1,))
    assert {name: tuple(t.shape) for name, t in renamed.items()} == shapes, "as the CompVis code builds it"
    path, config = write(tmp_path, "classes", weights | {UNET + name: t for name, t in renamed.items()})
    back = load_backbone(str(convert(path, tmp_path / "public", config).directory)).denoiser.state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("multiples", [(1, 2, 4), (1, 2, 4, 4)])
@pytest.mark.parametrize("codes", [0, 64])
def test_an_autoencoder_alone_goes_there_and_back_bit_for_bit(
    multiples: tuple[int, ...], codes: int, tmp_path: Path
) -> None:
    """KL-f4, KL-f8 and VQ-f4 with fewer channels; their checkpoints hold the parts of their loss too."""
    weights = random_weights(autoencoder(3, multiples, codes), "", 5)
    beside = {"loss.discriminator.main.0.weight": torch.zeros(2), "loss.logvar": torch.zeros(())}
    save_file(weights | beside, tmp_path / "model.safetensors")
    made = convert(tmp_path / "model.safetensors", tmp_path / "vae")
    assert not made.is_backbone
    assert made.pipeline == ("VQModel" if codes else "AutoencoderKL")
    network = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}[made.pipeline].from_pretrained(made.directory)
    back = {autoencoder_name(name, len(multiples)): tensor for name, tensor in network.state_dict().items()}
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name].squeeze(), tensor.squeeze()) for name, tensor in weights.items())


def test_rows_of_the_class_embedder_are_what_the_class_token_layer_makes_of_labels(
    converted: Callable[[str], Path],
) -> None:
    backbone = load_backbone(str(converted("classes")))
    family, table = backbone.family, checkpoint("classes")[f"{CONDITION}embedding.weight"]
    made = denoiser_of(backbone).encoder_hid_proj(family.condition(backbone.denoiser, torch.arange(CLASSES)))
    assert torch.equal(made[:, 0], table)
    assert int(family.null(backbone.denoiser)) == CLASSES - 1, "the last row"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_converted_is_a_backbone(kind: str, converted: Callable[[str], Path]) -> None:
    backbone = load_backbone(str(converted(kind)))
    assert backbone.provenance["converted_from"]["file"] == "model.safetensors"
    assert backbone.autoencoder.config.scaling_factor == (1.0 if kind == "classes" else 0.18215)
    assert backbone.family.latent_side(backbone.denoiser) == 8
    kept = checkpoint(kind)["alphas_cumprod"]
    assert torch.allclose(backbone.scheduler.alphas_cumprod, kept, atol=1e-5)
    images = (torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    latents = encode(backbone.autoencoder, images).mean
    assert decode(backbone.autoencoder, latents, 16).shape == images.shape
    ids = torch.tensor([0, 1])
    if kind != "classes":
        ids = backbone.family.tokens(backbone.denoiser, ["a dark square", "light"])
        assert ids.shape == (2, LENGTH)
    told = backbone.family.condition(backbone.denoiser, ids)
    assert backbone.family.predict(backbone.denoiser, latents, torch.tensor([1, 500]), told).isfinite().all()


def test_moving_averages_are_taken_where_there_are_any(tmp_path: Path) -> None:
    weights = checkpoint("classes")
    averages = {average_name(name): t + 1 for name, t in weights.items() if name.startswith(UNET)}
    assert "model_ema.diffusion_modelinput_blocks10in_layers0weight" in averages
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}
    path, config = write(tmp_path, "classes", weights | averages | counters)
    network = load_backbone(str(convert(path, tmp_path / "public", config).directory)).denoiser
    assert torch.equal(network.conv_in.weight, weights[f"{UNET}input_blocks.0.0.weight"] + 1)
    averages.popitem()
    path, config = write(tmp_path, "classes", weights | averages | counters)
    with pytest.raises(UserError, match=r"lacks model_ema\.diffusion_modelout2bias"):
        convert(path, tmp_path / "other", config)


def test_published_models_need_no_yaml(tmp_path: Path) -> None:
    path, _ = write(tmp_path, "classes", checkpoint("classes"))
    backbone = load_backbone(str(convert(path, tmp_path / "public").directory))
    assert denoiser_of(backbone).config.attention_head_dim == KNOWN["classes"].heads == 1
    assert backbone.family.latent_side(backbone.denoiser) == 64


def test_a_converted_model_is_tuned_released_and_verified(
    converted: Callable[[str], Path], image_folder: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(tmp_path, converted("classes"), image_folder)
    settings["data"]["channels"] = 3
    config = RunConfig.model_validate(settings | {"trainable": "attn2"})
    assert len(list(finetune(config))) == 2
    directory = release(config, "model")
    assert [check for check in verify(directory, converted("classes")) if not (check.passed and check.done)] == []
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (directory / "model" / vae).read_bytes() == (converted("classes") / vae).read_bytes()


# --- forward, by the formulas of the CompVis code -------------------------------------------------------------------


class Formulas:
    """Layers by their CompVis names."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def of(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self.of(name))

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.of(name)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def group_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return F.group_norm(x, 32, *self.of(name), eps)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self.of(name))

    def attention(self, name: str, x: Tensor, context: Tensor, heads: int, out: str) -> Tensor:
        def split(tokens: Tensor) -> Tensor:
            return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)

        q = split(self.linear(f"{name}.to_q", x))
        k, v = (split(self.linear(f"{name}.to_{each}", context)) for each in "kv")
        weights = torch.einsum("bhid,bhjd->bhij", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
        return self.linear(f"{name}.{out}", torch.einsum("bhij,bhjd->bhid", weights, v).transpose(1, 2).flatten(2))

    def residual(self, name: str, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv(f"{name}.in_layers.2", F.silu(self.group_norm(f"{name}.in_layers.0", x, 1e-5)))
        h = h + self.linear(f"{name}.emb_layers.1", F.silu(time))[:, :, None, None]
        h = self.conv(f"{name}.out_layers.3", F.silu(self.group_norm(f"{name}.out_layers.0", h, 1e-5)))
        return h + (self.conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in self.weights else x)

    def spatial_transformer(self, name: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
        block, shape = f"{name}.transformer_blocks.0", x.shape
        h = self.conv(f"{name}.proj_in", self.group_norm(f"{name}.norm", x, 1e-6)).flatten(2).transpose(1, 2)
        normed = self.layer_norm(f"{block}.norm1", h)
        h = h + self.attention(f"{block}.attn1", normed, normed, heads, "to_out.0")
        h = h + self.attention(f"{block}.attn2", self.layer_norm(f"{block}.norm2", h), context, heads, "to_out.0")
        value, gate = self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", h)).chunk(2, -1)
        h = h + self.linear(f"{block}.ff.net.2", value * F.gelu(gate))
        return self.conv(f"{name}.proj_out", h.transpose(1, 2).view(shape)) + x

    def pixel_attention(self, name: str, x: Tensor) -> Tensor:
        normed = self.group_norm(f"{name}.norm", x, 1e-6)
        q, k, v = (self.conv(f"{name}.{each}", normed).flatten(2) for each in "qkv")
        weights = (q.transpose(1, 2) @ k * x.shape[1] ** -0.5).softmax(-1)
        return x + self.conv(f"{name}.proj_out", (v @ weights.transpose(1, 2)).view(x.shape))

    def bert(self, ids: Tensor, heads: int) -> Tensor:
        x = self.weights["transformer.token_emb.weight"][ids] + self.weights["transformer.pos_emb.emb.weight"]
        layers = "transformer.attn_layers.layers"
        for number in range(2):
            normed = self.layer_norm(f"{layers}.{2 * number}.0", x)
            x = x + self.attention(f"{layers}.{2 * number}.1", normed, normed, heads, "to_out")
            forward = f"{layers}.{2 * number + 1}"
            h = F.gelu(self.linear(f"{forward}.1.net.0.0", self.layer_norm(f"{forward}.0", x)))
            x = x + self.linear(f"{forward}.1.net.2", h)
        return self.layer_norm("transformer.norm", x)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(ours: Tensor, formula: Tensor) -> bool:
    return torch.allclose(ours, formula, rtol=1e-4, atol=1e-5 * float(formula.abs().max()))


@torch.no_grad()
def test_blocks_of_the_denoiser_compute_what_compvis_formulas_say(converted: Callable[[str], Path]) -> None:
    network = denoiser_of(load_backbone(str(converted("clip"))))
    by_formula = Formulas(named(checkpoint("clip"), UNET))
    x, time, context = random(2, 32, 6, 6), random(2, 128), random(2, LENGTH, 64)
    assert close(network.down_blocks[0].resnets[0](x, time), by_formula.residual("input_blocks.1.0", x, time))
    found = network.down_blocks[0].attentions[0](x, encoder_hidden_states=context).sample
    assert close(found, by_formula.spatial_transformer("input_blocks.1.1", x, context, HEADS))
    wide = random(2, 128, 6, 6)
    assert close(network.up_blocks[0].resnets[0](wide, time), by_formula.residual("output_blocks.0.0", wide, time))
    narrow = random(2, 64, 6, 6)
    found = network.up_blocks[0].attentions[1](narrow, encoder_hidden_states=context).sample
    assert close(found, by_formula.spatial_transformer("output_blocks.1.1", narrow, context, HEADS))


@torch.no_grad()
def test_attention_of_the_autoencoder_computes_what_compvis_formulas_say(converted: Callable[[str], Path]) -> None:
    network: Any = load_backbone(str(converted("clip"))).autoencoder
    x = random(2, 64, 4, 4)
    formula = Formulas(named(checkpoint("clip"), FIRST)).pixel_attention("decoder.mid.attn_1", x)
    assert close(network.decoder.mid_block.attentions[0](x), formula)


@torch.no_grad()
def test_bert_computes_what_compvis_formulas_say(converted: Callable[[str], Path]) -> None:
    network: Any = load_backbone(str(converted("bert"))).denoiser
    ids = torch.arange(2 * LENGTH).view(2, LENGTH) % 9
    formula = Formulas(named(checkpoint("bert"), CONDITION)).bert(ids, heads=2)
    assert close(network.text_encoder(ids)[0], formula)


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(path: Path, output: Path, config: Path | None = None, tokenizer: str | None = None) -> str:
    with pytest.raises(UserError) as refusal:
        convert(path, output, config, tokenizer)
    assert not output.exists()
    assert not list(output.parent.glob(".converting-*")), "nothing is left behind"
    text = str(refusal.value)
    assert text.endswith(".")
    assert ":" in text, "a remedy follows"
    return text


def changed(kind: str, change: Callable[[dict[str, Tensor]], Any]) -> dict[str, Tensor]:
    weights = checkpoint(kind)
    change(weights)
    return weights


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "a parameter is missing": (
        lambda w: w.pop(f"{UNET}middle_block.0.in_layers.2.bias"),
        "middle_block.0.in_layers.2.bias",
    ),
    "a block is missing": (
        lambda w: w.pop(f"{UNET}middle_block.1.proj_in.weight"),
        "lacks middle_block.1.proj_in.weight",
    ),
    "something more": (
        lambda w: w.update({f"{UNET}label_emb.weight": torch.zeros(2)}),
        f"holds {UNET}label_emb.weight",
    ),
    "something else": (lambda w: w.update({"control_model.x": torch.zeros(2)}), "holds control_model.x"),
    "another shape": (lambda w: w.update({f"{UNET}out.2.bias": torch.zeros(5)}), "another shape than expected of"),
    "another schedule": (lambda w: w.update(schedule(0.01, 0.2)), "another noise schedule"),
    "another condition": (lambda w: w.pop(f"{CONDITION}embedding.weight"), "told neither classes nor a text"),
    "no row for no class": (
        lambda w: w.update({f"{CONDITION}embedding.weight": torch.zeros(1000, 16)}),
        "none for no class",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, text = CHANGES[name]
    path, config = write(tmp_path, "classes", changed("classes", change))
    assert text in refused(path, tmp_path / "public", config)


def test_a_tokenizer_is_needed_and_must_fit(
    tmp_path: Path, tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = write(tmp_path, "clip", checkpoint("clip"))
    assert "with --tokenizer" in refused(path, tmp_path / "public", config, str(tmp_path / "nowhere"))
    smaller = changed("clip", lambda w: w.update({f"{CONDITION}transformer.text_model.{WORDS}": torch.zeros(50, 64)}))
    path, config = write(tmp_path, "clip", smaller)
    assert "54 tokens, the text encoder 50" in refused(path, tmp_path / "public", config, str(tokenizers["clip"]))


WORDS = "embeddings.token_embedding.weight"


def test_a_yaml_of_something_else_is_refused(tmp_path: Path) -> None:
    path, config = write(tmp_path, "classes", checkpoint("classes"))
    config.write_text("model: {target: somebody.elses.Model}\n")
    assert "give the one that came with the checkpoint" in refused(path, tmp_path / "public", config)


class Harmful:
    """Would write a file if anybody unpickled it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "more": Harmful(tmp_path / "ran")}, tmp_path / "model.ckpt")
    assert "holds a posix.mkdir beside them" in refused(tmp_path / "model.ckpt", tmp_path / "public")
    assert not (tmp_path / "ran").exists()


def reason(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the reader of pickles says that is wrong with one."""
    assert unpickling.main(str(path), str(path.with_suffix(".safetensors"))) == REFUSED
    assert not path.with_suffix(".safetensors").exists()
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "EOFError"),
        (b"no pickle at all", "UnpicklingError"),
        ({"state_dict": {"epoch": 3}}, "no table of tensors"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    content: Any, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    assert text in reason(path, capsys)
    assert "no checkpoint" in refused(tmp_path / "other.ckpt", tmp_path / "public")


def test_notes_of_a_training_run_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published checkpoints name a class of another package, which need not be installed, as a key of such notes."""
    package, _, name = unpickling.CALLBACK.rpartition(".")
    module = ModuleType(package)
    kind = type(name, (), {"__module__": package})
    monkeypatch.setattr(module, name, kind, raising=False)
    with monkeypatch.context() as here:
        parts = package.split(".")
        for count in range(1, len(parts)):
            here.setitem(sys.modules, ".".join(parts[:count]), ModuleType(".".join(parts[:count])))
        here.setitem(sys.modules, package, module)
        notes = {"state_dict": {"x": torch.ones(2)}, "callbacks": {kind: {"best": 1.0}}}
        torch.save(notes, tmp_path / "model.ckpt")
    assert package not in sys.modules
    assert unpickling.main(str(tmp_path / "model.ckpt"), str(tmp_path / "weights.safetensors")) == 0
    assert torch.equal(load_file(tmp_path / "weights.safetensors")["x"], torch.ones(2))


def test_a_pickled_checkpoint_is_read_like_any_other(tmp_path: Path) -> None:
    weights = random_weights(autoencoder(3, (1, 2)), "", 5)
    torch.save({"global_step": 7, "state_dict": weights}, tmp_path / "model.ckpt")
    network = AutoencoderKL.from_pretrained(convert(tmp_path / "model.ckpt", tmp_path / "vae").directory)
    assert torch.equal(network.encoder.conv_in.weight, weights["encoder.conv_in.weight"])


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, config = write(tmp_path, "classes", checkpoint("classes"))
    words = ["backbone", "convert", str(path), "--config", str(config), "--output", str(tmp_path / "public")]
    assert main(words) == 0
    assert "use it with backbone:" in " ".join(capsys.readouterr().out.split())
    assert main(words) == 2
    assert "give --output a new folder" in capsys.readouterr().err
    save_file(random_weights(autoencoder(3, (1, 2)), "", 5), tmp_path / "vae.safetensors")
    assert main(["backbone", "convert", str(tmp_path / "vae.safetensors"), "--output", str(tmp_path / "vae")]) == 0
    assert "is no backbone yet" in " ".join(capsys.readouterr().out.split())
