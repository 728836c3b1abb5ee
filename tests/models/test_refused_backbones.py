"""What cannot be a backbone, or cannot be told what the config says, is refused in one sentence with the remedy."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from dpldm.config import RunConfig
from dpldm.data.prompts import prompts_of
from dpldm.errors import UserError
from dpldm.loading import validate
from dpldm.models.backbone import load_backbone, locate_backbone
from dpldm.sampling import texts_of
from dpldm.train.checks import check_fit
from stock_models import make, text_unet


@pytest.fixture(scope="session")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("stable diffusion", tmp_path_factory.mktemp("refused") / "public")


@pytest.fixture
def own(diffusion: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return Path(shutil.copytree(diffusion, tmp_path / "own"))


def refused(place: Path | str) -> str:
    with pytest.raises(UserError) as refusal:
        load_backbone(str(place))
    text = str(refusal.value)
    assert text.endswith(".")
    assert ":" in text, "a remedy follows"
    assert "\n" not in text
    return text


def config_of(backbone: Path, folder: Path, *, data: dict[str, Any], **sampling: Any) -> RunConfig:
    raw = {
        "data": {"path": folder / "images", "image_size": 32, "channels": 3} | data,
        "backbone": str(backbone),
        "privacy": {"dataset_id": "scans", "records": 40},
        "sampling": sampling,
        "runtime": {"output": folder / "runs"},
    }
    return validate(RunConfig, raw)


# --- directories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        ("StableDiffusionXLPipeline", "two encodings of a text"),
        ("StableDiffusion3Pipeline", "flow matching"),
        ("FluxPipeline", "flow matching"),
        ("PixArtAlphaPipeline", "T5"),
        ("StableDiffusionInpaintPipeline", "another image"),
        ("SomebodysPipeline", "family is unknown"),
    ],
)
def test_other_pipelines_are_refused_by_name(own: Path, pipeline: str, reason: str) -> None:
    path = own / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": pipeline}))
    text = refused(own)
    assert pipeline in text
    assert reason in text
    assert "StableDiffusionPipeline" in text.split("use one of")[1]


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_single_file_is_refused_with_the_way_to_a_directory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80")
    assert f"`dpldm backbone convert {path} --output FOLDER`, and give FOLDER." in refused(path)


def test_pickled_weights_are_refused_and_never_opened(own: Path) -> None:
    weights = own / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "pickled" in refused(own)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_without_weights_is_refused(own: Path, part: str) -> None:
    shutil.rmtree(own / part)
    assert part in refused(own)


def test_a_missing_tokenizer_is_refused(own: Path) -> None:
    shutil.rmtree(own / "tokenizer")
    assert "no tokenizer" in refused(own)


def test_parts_of_another_class_are_refused(own: Path) -> None:
    path = own / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"text_encoder": ["transformers", "T5EncoderModel"]}))
    assert "T5EncoderModel" in refused(own)
    path.write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderTiny"]}))
    assert "AutoencoderTiny" in refused(own)


def test_a_unet_that_is_told_more_is_refused(own: Path) -> None:
    text_unet(8, class_embed_type="timestep").save_pretrained(own / "unet")
    assert "class_embed_type" in refused(own)


def test_channels_that_do_not_fit_are_refused(own: Path) -> None:
    text_unet(8, in_channels=9).save_pretrained(own / "unet")
    assert "takes 9 channels where its autoencoder makes 4" in refused(own)


def test_flow_matching_is_refused(own: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(own / "scheduler")
    assert "FlowMatchEulerDiscreteScheduler" in refused(own)


def test_a_name_on_the_hub_without_network_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert "copy its directory here and give the path" in refused("owner/model")


def test_a_name_on_the_hub_is_its_fetched_directory(diffusion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(diffusion))
    assert locate_backbone("owner/fetched") == diffusion
    assert load_backbone("owner/fetched").name == "owner/fetched"


def test_half_precision_weights_alone_will_do(own: Path) -> None:
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        state = load_file(own / f"{name}.safetensors")
        halved = {key: t.half() if t.is_floating_point() else t for key, t in state.items()}
        save_file(halved, own / f"{name}.fp16.safetensors", metadata={"format": "pt"})
        (own / f"{name}.safetensors").unlink()
    loaded = load_backbone(str(own))
    assert "unet/diffusion_pytorch_model.safetensors" in loaded.sha256
    assert next(loaded.denoiser.parameters()).dtype.itemsize == 4


# --- settings -------------------------------------------------------------------------------------------------------


def test_captions_for_a_model_that_is_told_classes(tiny_backbone: Path, tmp_path: Path) -> None:
    data = {"caption_column": "caption", "channels": 1, "image_size": 16}
    with pytest.raises(UserError, match=r"is told classes: leave it out, or use a backbone that is told captions"):
        check_fit(config_of(tiny_backbone, tmp_path, data=data), load_backbone(str(tiny_backbone)))


def test_labels_for_a_model_that_is_told_nothing(tmp_path: Path) -> None:
    backbone = make("pixels", tmp_path / "public")
    with pytest.raises(UserError, match="is told nothing: leave it out"):
        check_fit(config_of(backbone, tmp_path, data={"labels": ["a", "b"]}), load_backbone(str(backbone)))


def test_sizes(diffusion: Path, tmp_path: Path) -> None:
    loaded = load_backbone(str(diffusion))
    with pytest.raises(UserError, match=r"multiple of 8: choose 40 or 48 \(it was made for 32\)"):
        check_fit(config_of(diffusion, tmp_path, data={"image_size": 45}), loaded)
    check_fit(config_of(diffusion, tmp_path, data={"image_size": 40}), loaded)
    fixed = make("transformer", tmp_path / "public")
    with pytest.raises(UserError, match=r"takes exactly 32 pixels: change data\.image_size"):
        check_fit(config_of(fixed, tmp_path, data={"image_size": 40}), load_backbone(str(fixed)))


def test_two_conditions_at_once(diffusion: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an image is told by one of them"):
        config_of(diffusion, tmp_path, data={"labels": ["a", "b"], "caption_column": "caption"})
    with pytest.raises(UserError, match=r"write \{label\} where"):
        config_of(diffusion, tmp_path, data={"caption_template": "a photo"})


def test_private_captions_need_public_prompts(diffusion: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give sampling\.prompts"):
        texts_of(config_of(diffusion, tmp_path, data={"caption_column": "caption"}))
    config = config_of(diffusion, tmp_path, data={}, prompts=tmp_path / "prompts.txt")
    with pytest.raises(UserError, match=r"is for data\.caption_column"):
        check_fit(config, load_backbone(str(diffusion)))


@pytest.mark.parametrize("place", ["images/prompts.txt", "images/deep/prompts.txt", "runs/run/private/prompts.txt"])
@pytest.mark.parametrize("linked", [False, True])
def test_prompts_beside_private_data_are_refused_by_their_place(
    diffusion: Path, tmp_path: Path, place: str, linked: bool
) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text("a scan\n")
    if linked:
        (tmp_path / "elsewhere.txt").symlink_to(path)
        path = tmp_path / "elsewhere.txt"
    config = config_of(diffusion, tmp_path, data={"caption_column": "caption"}, prompts=path)
    with pytest.raises(UserError, match="lie with the private data"):
        check_fit(config, load_backbone(str(diffusion)))


def test_equal_words_elsewhere_are_not_compared(diffusion: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "metadata.csv").write_text("file_name,caption\n0.png,a scan\n")
    (tmp_path / "prompts.txt").write_text("a scan\n\n  another scan \n")
    config = config_of(diffusion, tmp_path, data={"caption_column": "caption"}, prompts=tmp_path / "prompts.txt")
    assert prompts_of(config) == ["a scan", "another scan"]


@pytest.mark.parametrize(("content", "text"), [(None, "cannot be read"), (b"\xff\xfe", "UTF-8"), (b"\n \n", "empty")])
def test_prompts_that_are_none(diffusion: Path, tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=text):
        prompts_of(config_of(diffusion, tmp_path, data={"caption_column": "caption"}, prompts=path))
