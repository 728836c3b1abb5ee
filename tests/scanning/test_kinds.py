"""Which files the kinds of models have: the table of `verify` is that of the families, and closed."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpldm.errors import UserError
from dpldm.models.backbone import ADAPTERS as STORED_ADAPTERS
from dpldm.models.backbone import WEIGHTS as STORED
from dpldm.models.families import FAMILIES, family_of_pipeline
from dpldm.scanning.kinds import ADAPTERS, KINDS, OWN, WEIGHTS, Kind, kind_of
from dpldm.scanning.release import content_checks
from dpldm.verdict import Check

FILE = "diffusion_pytorch_model.safetensors"


def files_of(kind: Kind) -> set[str]:
    """Weights, and a tokenizer where there are texts."""
    weights = {f"{part}/{'model.safetensors' if part == kind.text_encoder else FILE}" for part in kind.parts}
    return weights | ({"tokenizer/tokenizer.json"} if kind.text_encoder else set())


def test_the_table_is_that_of_the_families() -> None:
    layouts = {name: layout for family in FAMILIES for name, layout in family.layouts.items()}
    table = {name: kind for kind in KINDS for name in kind.pipelines}
    assert layouts.keys() == table.keys()
    for name, layout in layouts.items():
        kind = table[name]
        assert (kind.denoiser, kind.autoencoder) == (layout.denoiser, layout.autoencoder)
        assert kind.text_encoder == layout.text_encoder
        assert kind.takes_adapters == layout.takes_adapters
        assert kind.called is family_of_pipeline(name, "").names
    assert (WEIGHTS, ADAPTERS) == (STORED, STORED_ADAPTERS)


def test_a_kind_is_told_from_its_files() -> None:
    for kind in KINDS:
        assert kind_of(files_of(kind)) is kind


def test_what_turns_words_into_numbers_is_part_of_a_kind() -> None:
    for kind in KINDS:
        words = {"tokenizer/tokenizer.json"}
        assert kind_of(files_of(kind) ^ words) is None, "missing where there are texts, too many where there are none"


SHARDS = {f"transformer/diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)}
LISTING = f"transformer/{FILE}.index.json"


def test_weights_in_several_files_are_weights() -> None:
    found = kind_of(SHARDS | {LISTING, f"vae/{FILE}"})
    assert found is not None
    assert found.denoiser == "transformer"


@pytest.mark.parametrize(
    "names",
    [
        set(),
        {f"vae/{FILE}"},  # no denoiser
        {f"unet/{FILE}", f"transformer/{FILE}"},
        {*WEIGHTS, f"unet/{FILE}.index.json"},  # ours are in two files, and no other
        {*WEIGHTS, "losses/model.safetensors"},
        {*WEIGHTS, "unet/optimizer.safetensors"},
        {f"vae/{FILE}", "transformer/notes.json"},
        {f"vae/{FILE}", "transformer/../../x.safetensors"},
        {f"vae/{FILE}", f"transformer/{FILE}\n"},
        {f"unet/{FILE}", f"vae/{FILE}", f"text_encoder/{FILE}"},  # called as in a transformers model
    ],
)
def test_what_is_of_no_kind_is_refused(names: set[str]) -> None:
    assert kind_of(names) is None


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer/vocab.json", "text_encoder/config.json", "vqvae/config.json", f"transformer/{FILE}"),
        *(f"unet/{FILE}.index.json", "unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/x.json"),
    ],
)
def test_our_own_models_hold_no_files_of_others(name: str) -> None:
    assert not OWN.may_hold(name)


# --- a release of another kind ------------------------------------------------------------------------------------


TRANSFORMER = KINDS[1]


def statement_of(**more: Any) -> dict[str, Any]:
    names = files_of(TRANSFORMER)
    return {
        "guarantee": dict.fromkeys(("epsilon", "delta", "unit", "adjacency"), 0),
        "ledger": {"dataset_id": "scans"},
        "backbone": {"name": "other", "sha256": dict.fromkeys(names, "0" * 64)},
        "declared_constants": {"labels": []},
        "plan": {"queries": []},
        "files": {f"model/{name}": "1" * 64 for name in names},
    } | more


def checked(directory: Path, statement: dict[str, Any], pipeline: str, given: Path | None = None) -> dict[str, Check]:
    model = directory / "model"
    model.mkdir(parents=True, exist_ok=True)
    hashes = {name.removeprefix("model/"): digest for name, digest in statement["files"].items()}
    owed = {**statement["guarantee"], "dataset_id": "scans"}
    (model / "backbone.json").write_text(json.dumps({"tuned": owed, "sha256": hashes}))
    (model / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return {check.name: check for check in content_checks(directory, statement, given)}


def test_what_is_not_compared_is_said(tmp_path: Path) -> None:
    found = checked(tmp_path, statement_of(), "DiTPipeline")
    assert found["model card"].passed
    assert (found["frozen weights"].passed, found["frozen weights"].done) == (True, False)
    assert "not compared" in found["frozen weights"].detail


def test_another_backbone_than_that_of_the_statement_is_told(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    with pytest.raises(UserError, match="is no backbone"):
        checked(tmp_path, statement_of(), "DiTPipeline", given)
    (given / "model_index.json").write_text("{}")
    assert not checked(tmp_path, statement_of(), "DiTPipeline", given)["frozen weights"].passed
    for name in files_of(TRANSFORMER):
        (given / name).parent.mkdir()
        (given / name).write_bytes(b"")
    assert not checked(tmp_path, statement_of(), "DiTPipeline", given)["frozen weights"].passed


def test_a_model_of_another_kind_than_its_backbone_is_told(tmp_path: Path) -> None:
    assert not checked(tmp_path, statement_of(), "ClassConditionalLDMPipeline")["model card"].passed


def test_a_model_without_its_denoiser_is_told(tmp_path: Path) -> None:
    statement = statement_of(files={f"model/vae/{FILE}": "1" * 64})
    assert not checked(tmp_path, statement, "DiTPipeline")["model card"].passed
