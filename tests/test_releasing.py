"""What leaves: an allow-list, without paths, seeds of private streams or internal numbers; true to the model."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open

from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.models.backbone import load_backbone
from dpldm.planning import plan
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.ledger import read_ledger
from dpldm.releasing import What, privacy_statement, release
from dpldm.run import Run, plan_of
from dpldm.sampling import Sampler, load_synthetic
from dpldm.train.finetune import finetune
from dpldm.tuned import finished as finished_run
from dpldm.tuned import tuned_network
from dpldm.verifying import verify

COMMON = {"README.md", "privacy.json"}
MODEL = {
    "model/README.md",
    "model/model_index.json",
    "model/backbone.json",
    "model/vae/config.json",
    "model/vae/diffusion_pytorch_model.safetensors",
    "model/unet/config.json",
    "model/unet/diffusion_pytorch_model.safetensors",
    "model/scheduler/scheduler_config.json",
}


def data_of(labels: list[int]) -> set[str]:
    """Files of synthetic images with these labels."""
    names = {f"synthetic/{('dark', 'light')[label]}/{row:06d}.png" for row, label in enumerate(labels)}
    return {"synthetic.npz", "synthetic/README.md", "synthetic/metadata.csv"} | names


DATA = data_of([0, 1] * 12)


def contents(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


def statement_of(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / "privacy.json").read_text())
    return loaded


# --- what is in it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "expected"), [("data", DATA), ("model", MODEL), ("both", DATA | MODEL)])
def test_a_release_holds_exactly_what_was_asked_for(what: What, expected: set[str], finished_copy: RunConfig) -> None:
    target = release(finished_copy, what)
    assert target == Run(finished_copy).release
    assert contents(target) == expected | COMMON
    assert set(statement_of(target)["files"]) == contents(target) - {"privacy.json"}
    assert all(check.passed for check in verify(target))
    assert not target.with_name("release.partial").exists()


def test_released_images_are_the_drawn_ones(finished_copy: RunConfig) -> None:
    target, drawn = release(finished_copy), load_synthetic(finished_copy)
    with np.load(target / "synthetic.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["x"], drawn.images)
        assert np.array_equal(stored["y"], drawn.labels)
    with (target / "synthetic" / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [("dark", "light")[label] for label in drawn.labels]
    for row, image in zip(rows, drawn.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(target / "synthetic" / row["file_name"])), image[..., 0])


def test_the_statement_is_the_plans(finished: RunConfig) -> None:
    constants, statement = plan_of(finished), privacy_statement(finished)
    claim = statement["guarantee"]
    assert claim["epsilon"] == constants.epsilon_after(3) <= 0.5
    assert claim["epsilon_replace_one"] == constants.epsilon_after(3, Adjacency.REPLACE_ONE) > claim["epsilon"]
    assert (claim["delta"], claim["unit"], claim["adjacency"]) == (1e-3, "image", "add_or_remove_one")
    assert statement["plan"] == constants.constants()
    assert statement["plan_digest"] == constants.digest()
    assert statement["updates"] == 2
    last = read_ledger(Run(finished).ledger)[-1]
    assert statement["ledger"]["head"] == {"seq": last["seq"], "hash": last["hash"]}
    assert statement["ledger"]["plans_on_this_data_set"] == 1
    assert json.loads(json.dumps(statement)) == statement


# --- what is not in it ----------------------------------------------------------------------------------------------


def strings_in(path: Path) -> str:
    """All text a reader could find in a file; of weights, the metadata and names."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return " ".join([*file.keys(), json.dumps(file.metadata())])
    return path.read_bytes().decode("latin-1")


def test_nothing_private_and_no_place_of_this_machine_is_released(
    finished_copy: RunConfig, tmp_path: Path, tiny_backbone: Path
) -> None:
    run = Run(finished_copy)
    # What lies about in a run: metrics, a log of bad files, timings, an older partial release.
    (run.private / "evaluation.json").write_text('{"status": "INTERNAL", "accuracy": 0.123456}')
    (run.private / "unreadable.jsonl").write_text('{"file": "Jane-Doe.png"}')
    (run.directory / "timings.jsonl").write_text('{"stage": "finetune", "seconds": 987.6}')
    partial = run.release.with_name("release.partial")
    partial.mkdir()
    (partial / "leftover.txt").write_text("leftover")
    target = release(finished_copy, "both")
    places = [finished_copy.data.path, tmp_path, tiny_backbone, Path.home(), Path.cwd(), run.directory.resolve()]
    forbidden = [re.escape(str(place)) for place in places]
    forbidden += [
        "INTERNAL",
        "accuracy",
        r"0\.123456",
        "Jane",
        r"987\.6",
        "leftover",
        "unreadable",
        "finetune",
        "batch-0",
    ]
    forbidden += [r"/tmp/", r"/home/", r"/root/", "fingerprint", r"latents\.safe", r'"losses?"', "entropy", "hostname"]
    pattern = re.compile("|".join(forbidden))
    for path in target.rglob("*"):
        if path.is_file():
            found = pattern.search(strings_in(path))
            assert found is None, f"{path.relative_to(target)}: {found and found.group()}"
    assert not any(path.is_symlink() for path in target.rglob("*"))


def test_the_only_seed_is_the_public_one_of_sampling(finished: RunConfig) -> None:
    text = json.dumps(privacy_statement(finished))
    assert re.findall(r'"([a-z_]*seed[a-z_]*)": (\d+)', text) == [("seed", "0")]


def test_the_number_of_private_images_is_not_released(finished: RunConfig) -> None:
    """Only the declared number is: 41 images declared as 40 would leave the same statement."""
    statement = privacy_statement(finished)
    assert statement["declared_constants"]["records"] == finished.privacy.records == statement["plan"]["records"]
    assert set(statement["declared_constants"]) == {
        "records", "labels", "image_size", "channels", "crop", "window", "trainable", "tune_embedder",
        "optimizer", "sampling",
    }  # fmt: skip


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released_model(finished: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    output = tmp_path_factory.mktemp("released")
    shutil.copytree(finished.runtime.output, output, dirs_exist_ok=True)
    moved = finished.model_copy(update={"runtime": finished.runtime.model_copy(update={"output": output})})
    return release(moved, "model") / "model"


def test_the_model_loads_in_stock_classes_with_the_averaged_weights(finished: RunConfig, released_model: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(
        released_model / "unet", local_files_only=True, torch_dtype=torch.float32
    )
    AutoencoderKL.from_pretrained(released_model / "vae", local_files_only=True)
    assert DDPMScheduler.from_pretrained(released_model / "scheduler").config.prediction_type == "v_prediction"
    assert unet.config.encoder_hid_dim == 3
    tuned = dict(tuned_network(finished, load_backbone(finished.backbone)).named_parameters())
    loaded = dict(unet.named_parameters())
    assert loaded.keys() == tuned.keys()
    for name, parameter in tuned.items():
        assert torch.equal(loaded[name], parameter.half().float()), name


def test_frozen_weights_are_the_public_ones_bit_for_bit(finished: RunConfig, released_model: Path) -> None:
    public, name = Path(finished.backbone), "diffusion_pytorch_model.safetensors"
    assert (released_model / "vae" / name).read_bytes() == (public / "vae" / name).read_bytes()
    with (
        safe_open(public / "unet" / name, "pt") as old,
        safe_open(released_model / "unet" / name, "pt") as new,
    ):
        assert set(old.keys()) == set(new.keys())
        names = list(new.keys())
        changed = [key for key in names if not torch.equal(old.get_tensor(key), new.get_tensor(key))]
    assert changed, "something was tuned"
    tuned = re.compile(r"\.attentions\.|^encoder_hid_proj\.")
    frozen_inside = re.compile(r"\.attn2\.to_[qk]\.|\.transformer_blocks\.\d+\.norm2\.")
    for key in changed:
        assert tuned.search(key), key
        assert not frozen_inside.search(key), key


def test_a_released_model_draws_what_the_run_draws(finished: RunConfig, released_model: Path) -> None:
    """Up to the rounding of the tuned weights to half precision."""
    labels = torch.tensor([0, 1, 1])
    pictures = []
    for backbone in (load_backbone(str(released_model)), load_backbone(finished.backbone)):
        first = not pictures
        network = backbone.denoiser if first else tuned_network(finished, backbone)
        draw = Sampler(backbone, network, finished.sampling, 16)
        pictures.append(draw(labels, torch.Generator().manual_seed(0)).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 2
    assert pictures[0].std() > 5


# --- once, and only true ----------------------------------------------------------------------------------------------


def test_the_same_release_again_is_the_same_release(finished_copy: RunConfig) -> None:
    target = release(finished_copy, "both")
    before = {name: (target / name).read_bytes() for name in contents(target)}
    assert release(finished_copy, "both") == target
    assert {name: (target / name).read_bytes() for name in contents(target)} == before


def test_a_release_that_was_edited_since_is_not_vouched_for(finished_copy: RunConfig) -> None:
    target = release(finished_copy, "data")
    statement, image = target / "privacy.json", next(target.rglob("000003.png"))
    for path, change in (
        (statement, lambda b: b.replace(b'"epsilon"', b'"Epsilon"', 1)),
        (image, lambda b: b[:-1]),
    ):
        honest = path.read_bytes()
        path.write_bytes(change(honest))
        with pytest.raises(UserError, match="an earlier release that differs: move it away"):
            release(finished_copy, "data")
        path.write_bytes(honest)
    assert release(finished_copy, "data") == target


def test_a_tuned_model_is_no_public_backbone(finished_copy: RunConfig) -> None:
    """A second run on it would state its own epsilon and forget the first one's."""
    target = release(finished_copy, "model")
    card = json.loads((target / "model" / "backbone.json").read_text())
    assert card["tuned"]["dataset_id"] == "scans"
    assert card["tuned"]["epsilon"] == statement_of(target)["guarantee"]["epsilon"]
    second = finished_copy.model_copy(update={"name": "second", "backbone": str(target / "model")})
    for stage in (lambda: list(finetune(second)), lambda: plan(second)):
        with pytest.raises(UserError, match="was itself tuned on private images"):
            stage()


def test_another_release_is_refused_and_leaves_the_first_alone(finished_copy: RunConfig) -> None:
    target = release(finished_copy, "data")
    before = {name: (target / name).read_bytes() for name in contents(target)}
    with pytest.raises(UserError, match="an earlier release that differs: move it away"):
        release(finished_copy, "model")
    assert {name: (target / name).read_bytes() for name in contents(target)} == before
    assert not target.with_name("release.partial").exists()


@pytest.mark.parametrize("garbage", ["{}", "[]", "no json", '{"files": 3}'])
def test_a_foreign_folder_in_the_way_is_refused(garbage: str, finished_copy: RunConfig) -> None:
    target = Run(finished_copy).release
    target.mkdir()
    (target / "privacy.json").write_text(garbage)
    with pytest.raises(UserError, match="move it away"):
        release(finished_copy)
    assert contents(target) == {"privacy.json"}


@pytest.mark.parametrize(
    "change",
    [
        {"privacy": {"epsilon": 0.25}},
        {"privacy": {"delta": 1e-4}},
        {"privacy": {"records": 50}},
        {"privacy": {"steps": 1}},
        {"privacy": {"public_benchmark": True}},
        {"data": {"labels": ("light", "dark")}},
        {"trainable": "all"},
        {"optimizer": {"ema_decay": 0.5}},
    ],
)
def test_no_other_settings_can_be_claimed_than_those_of_the_training(
    change: dict[str, Any], finished_copy: RunConfig
) -> None:
    raw = finished_copy.model_dump()
    for section, value in change.items():
        raw[section] = raw[section] | value if isinstance(value, dict) else value
    with pytest.raises(UserError, match="exists with another section"):
        release(RunConfig.model_validate(raw))
    assert not Run(finished_copy).release.exists()


def test_also_an_edited_resolved_config_claims_nothing_else(finished_copy: RunConfig) -> None:
    """The checkpoint itself names the plan of its training."""
    privacy = finished_copy.privacy.model_copy(update={"max_grad_norm": 0.5})
    other = finished_copy.model_copy(update={"privacy": privacy})
    run = Run(other)
    run.resolved_config.write_text(
        run.resolved_config.read_text().replace("max_grad_norm: 0.001", "max_grad_norm: 0.5")
    )
    with pytest.raises(UserError, match="made under another privacy plan"):
        release(other)


def test_without_its_ledger_a_run_is_not_released(finished_copy: RunConfig) -> None:
    ledger = Run(finished_copy).ledger
    whole = ledger.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (None, whole[:-9], whole.replace(b"attempt", b"Attempt"), b"".join(lines[:-1]), lines[0]):
        if damaged is None:
            ledger.unlink()
        else:
            ledger.write_bytes(damaged)
        with pytest.raises(
            UserError,
            match=r"ledger scans\.jsonl .*([Rr]estore (it|the ledger) from a copy|run `dpldm finetune` again)",
        ):
            release(finished_copy)
        assert not Run(finished_copy).release.exists()
    ledger.write_bytes(whole)
    assert finished_run(finished_copy).updates == 2


# --- its texts --------------------------------------------------------------------------------------------------------


def test_the_card_states_the_guarantee_rounded_up(finished_copy: RunConfig) -> None:
    target = release(finished_copy, "both")
    epsilon = statement_of(target)["guarantee"]["epsilon"]
    for card in ("README.md", "synthetic/README.md", "model/README.md"):
        text = (target / card).read_text()
        shown = float(re.search(r"\(([\d.]+), 0\.001\)-differentially private", text).group(1))
        assert epsilon <= shown < epsilon + 0.01 + 1e-9
        assert "adding or removing one image" in " ".join(text.split())
    assert "published benchmark" not in (target / "README.md").read_text()


def test_the_data_card_counts_what_is_there(finished: RunConfig) -> None:
    from dpldm.report.hub import synthetic_card

    statement = privacy_statement(finished)
    assert "* 24 images, 16 x 16, classes: dark, light" in synthetic_card(finished, statement)
    counted = finished.model_copy(update={"sampling": finished.sampling.model_copy(update={"label_counts": (3, 4)})})
    assert "* 7 images" in synthetic_card(counted, statement)


def test_cards_and_statement_tell_of_the_questions(answered_copy: RunConfig, finished_copy: RunConfig) -> None:
    target = release(answered_copy)
    card, data_card = ((target / name).read_text() for name in ("README.md", "synthetic/README.md"))
    assert "| query class_histogram | noise multiplier 30, attempts accounted 1 + 2 |" in card
    assert "classes are as frequent as a noised histogram says" in data_card
    statement = statement_of(target)
    assert statement["guarantee"]["covers"].startswith("all noised gradients and query answers of the run")
    assert statement["mechanism"].startswith("Gaussian queries, then Poisson-subsampled Gaussian")
    assert contents(target) == data_of(load_synthetic(answered_copy).labels.tolist()) | COMMON, "answers stay inside"
    plain = release(finished_copy)
    assert "quer" not in (plain / "README.md").read_text()
    assert "their true frequencies were not used" in (plain / "synthetic" / "README.md").read_text()
