"""The recipes that ship: they load, plan, build their networks at full size, and every value says where it is from."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.loading import load_config, recipes
from dpldm.models.autoencoder import build_autoencoder, latent_shape
from dpldm.models.families import family_of
from dpldm.models.families.captions import TextToImage
from dpldm.models.trainable import choose_trainable
from dpldm.recipe import BackboneRecipe
from dpldm.run import plan_of
from dpldm.train.diffusion import build_network

NAMES = [path.relative_to(recipes()).with_suffix("").as_posix() for path in sorted(recipes().rglob("*.yaml"))]
BACKBONES = [name for name in NAMES if name.startswith("backbones/")]
ROWS = [name for name in NAMES if "/eps" in name]

SOURCE = re.compile(r"# (paper|authors' (config|code|script|example)|translated|ours|unverified)")
NAMES_AND_PLACES = re.compile(
    r"name|output|path|test_path|dataset_id|public_benchmark|extends|backbone|inception_weights|prompts"
)


def recipe_of(name: str) -> BackboneRecipe:
    return load_config(BackboneRecipe, Path(name))


def run_of(name: str) -> RunConfig:
    return load_config(RunConfig, Path(name))


# --- what they say ----------------------------------------------------------------------------------------------------


def test_there_is_a_recipe_for_every_pair_and_budget() -> None:
    pairs = {name.partition("/")[0] for name in ROWS}
    of_paper = pairs - {"fashion-mnist"}
    assert of_paper == {
        *("mnist", "cifar10", "celeba32", "celeba64", "camelyon17", "celebahq-class", "celebahq-text"),
        "cifar10-pixels",
    }
    for name in ROWS:
        config = run_of(name)
        assert config.privacy.epsilon == int(name.rpartition("/eps")[2])
        assert config.name == name.replace("/", "-")
        assert config.privacy.public_benchmark
        assert config.data.path == config.data.test_path
    assert {run_of(f"{pair}/eps{epsilon}").privacy.epsilon for pair in of_paper for epsilon in (10, 5, 1)} == {10, 5, 1}


@pytest.mark.parametrize("name", [*BACKBONES, *ROWS])
def test_every_value_says_where_it_is_from(name: str) -> None:
    found = 0
    for line in (recipes() / f"{name}.yaml").read_text().splitlines():
        setting = re.fullmatch(r"\s*(\w+): ([^#]*\S)(\s+#.*)?", line)
        if setting is None or NAMES_AND_PLACES.fullmatch(setting[1]) or setting[2] in ("null", "[]"):
            continue
        found += 1
        assert SOURCE.match((setting[3] or "").strip()), line
    assert found


@pytest.mark.parametrize("name", ROWS)
def test_every_backbone_is_bundled_made_by_a_recipe_or_published(name: str) -> None:
    backbone = run_of(name).backbone
    assert backbone in (*BACKBONES, "grey32", "backbones/cin256-v2", "backbones/txt2img-1.4B")
    if backbone in BACKBONES:
        made, data = recipe_of(backbone), run_of(name).data
        assert (made.image_size, made.channels) == (data.image_size, data.channels)
        assert made.output == Path(backbone)
        assert (made.diffusion.told == "nothing") == (data.labels == ())


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_plan_is_calibrated(name: str) -> None:
    made = plan_of(run_of(name))
    assert made.delta < 1 / made.records
    assert made.stated_epsilon() <= made.epsilon


# --- how they are put together ----------------------------------------------------------------------------------------


def test_a_recipe_extends_another_section_by_section() -> None:
    ten, one = run_of("cifar10/eps10"), run_of("cifar10/eps1")
    assert one.privacy == ten.privacy.model_copy(update={"epsilon": 1})
    assert (one.data, one.optimizer, one.sampling) == (ten.data, ten.optimizer, ten.sampling)


def test_a_choice_of_what_is_tuned_follows_a_plus() -> None:
    found = run_of("celeba64/eps1+lora-8:attn1")
    assert (found.trainable, found.name) == ("lora-8:attn1", "celeba64-eps1-lora-8-attn1")


def test_own_files_extend_others_and_not_themselves(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("name: below\ndata: {path: here, image_size: 64}\nprivacy: {dataset_id: a}\n")
    (tmp_path / "above.yaml").write_text("extends: below.yaml\ndata: {image_size: 32}\n")
    found = load_config(RunConfig, tmp_path / "above.yaml", [("data.channels", "3")])
    assert (found.name, found.data.path, found.data.image_size, found.data.channels) == ("below", Path("here"), 32, 3)
    (tmp_path / "below.yaml").write_text("extends: above.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load_config(RunConfig, tmp_path / "above.yaml")
    (tmp_path / "above.yaml").write_text("extends: [a, b]\n")
    with pytest.raises(UserError, match="the path of one file"):
        load_config(RunConfig, tmp_path / "above.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(RunConfig, Path("mnist/eps3"))


def test_plan_shows_the_resolved_values(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a backbone, which may not be made yet."""
    assert main(["plan", "--config", "celeba64/eps1+lora-8", "--resolved"]) == 0
    shown = capsys.readouterr().out
    assert "trainable: lora-8" in shown
    assert "expected_batch_size: 8192" in shown
    assert "learning_rate: 0.00082" in shown


# --- networks at full size, without memory ----------------------------------------------------------------------------


def network_of(name: str, labels: int) -> nn.Module:
    recipe = recipe_of(name)
    with torch.device("meta"):
        channels, side = recipe.channels, recipe.image_size
        if recipe.space == "latents":
            made = recipe.autoencoder
            autoencoder = build_autoencoder(channels, made.latent_channels, made.widths, made.layers_per_block)
            channels, side, _ = latent_shape(autoencoder, recipe.image_size)
        return build_network(recipe.diffusion, channels, side, labels + 1)


def tuned(network: nn.Module, choice: str) -> tuple[int, int]:
    """Parameters of the chosen attention modules, and of all; those without influence are counted, as in the paper."""
    chosen = choose_trainable(network, choice, embedder=False)
    modules = {re.sub(r"(\.attentions\.\d+)\..*", r"\1", name) for name in chosen}
    counted = [
        p.numel() for n, p in network.named_parameters() if re.sub(r"(\.attentions\.\d+)\..*", r"\1", n) in modules
    ]
    return sum(counted), sum(p.numel() for p in network.parameters())


# (row, classes of its public set, tuned millions of the authors, all millions of the paper or None, our total)
SIZES = [
    ("mnist/eps10", 26, 1.58, 4.6, 4.11),
    ("cifar10/eps10", 1000, 9.28, None, 90.8),
    ("celeba32/eps10", 0, 17.9, None, 145.0),
    ("celeba64/eps10", 0, 7.96, None, 64.5),
]


@pytest.mark.parametrize(("row", "classes", "theirs", "paper", "ours"), SIZES)
def test_what_is_tuned_is_as_large_as_in_the_paper(
    row: str, classes: int, theirs: float, paper: float | None, ours: float
) -> None:
    """Of the authors' residual blocks the modulation by scale and shift is not ours: totals are somewhat smaller."""
    config = run_of(row)
    part, whole = tuned(network_of(config.backbone, classes), config.trainable)
    assert part / 1e6 == pytest.approx(theirs, abs=0.01 if theirs < 10 else 0.05)
    assert whole / 1e6 == pytest.approx(ours, rel=0.01)
    assert paper is None or 0.85 * paper < whole / 1e6 < paper


def test_latents_have_the_sides_of_the_paper() -> None:
    sides = {
        "emnist32": (3, 4),
        "imagenet32": (3, 16),
        "imagenet32-unconditional": (3, 16),
        "imagenet64-unconditional": (3, 32),
    }
    for name, expected in sides.items():
        network = network_of(f"backbones/{name}", 10)
        settings = family_of(network).settings(network)
        assert (settings["in_channels"], settings["sample_size"]) == expected


def test_the_denoiser_of_pixels_has_more_than_80_million_parameters() -> None:
    network = network_of(run_of("cifar10-pixels/eps10").backbone, 1000)
    part = sum(p.numel() for p in choose_trainable(network, "all").values())
    assert part > 80e6
    assert network.config.in_channels == 3
    assert network.config.sample_size == 32
    whole = sum(p.numel() for p in network.parameters())
    claim = f"{whole / 1e6:.1f}M parameters"
    assert claim in (recipes() / "backbones" / "imagenet32-pixels.yaml").read_text()


COMPVIS = {"in_channels": 3, "out_channels": 3, "layers_per_block": 2, "use_linear_projection": False}
DOWN, UP = ["CrossAttnDownBlock2D"] * 3, ["CrossAttnUpBlock2D"] * 3


def test_published_checkpoints_have_the_sizes_of_the_paper() -> None:
    """Built from what CompVis' YAML files say: what is tuned of cin256-v2 and txt2img-1.4B."""
    with torch.device("meta"):
        classes = UNet2DConditionModel(
            **COMPVIS,
            sample_size=64,
            block_out_channels=[192, 384, 576, 960],
            down_block_types=["DownBlock2D", *DOWN],
            up_block_types=[*UP, "UpBlock2D"],
            attention_head_dim=1,
            cross_attention_dim=512,
            encoder_hid_dim=1001,
            encoder_hid_dim_type="text_proj",
        )
    assert tuned(classes, "attention")[0] / 1e6 == pytest.approx(169.6, abs=0.1)

    pytest.importorskip("transformers")
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    with torch.device("meta"):
        texts = UNet2DConditionModel(
            **COMPVIS | {"in_channels": 4, "out_channels": 4},
            sample_size=32,
            block_out_channels=[320, 640, 1280, 1280],
            down_block_types=[*DOWN, "DownBlock2D"],
            up_block_types=["UpBlock2D", *UP],
            attention_head_dim=8,
            cross_attention_dim=1280,
        )
        encoder = LDMBertModel(
            LDMBertConfig(encoder_layers=32, d_model=1280, encoder_ffn_dim=5120, encoder_attention_heads=8, head_dim=64)
        )
    network = TextToImage(texts, encoder, None)
    assert tuned(network, "attention")[0] / 1e6 == pytest.approx(280, abs=1)
    assert sum(p.numel() for p in encoder.model.parameters()) / 1e9 == pytest.approx(0.54, abs=0.005)
    embedder = set(choose_trainable(network, "attention")) - set(choose_trainable(network, "attention", embedder=False))
    assert embedder, "the attention of the text encoder is tuned beside that of the denoiser"
