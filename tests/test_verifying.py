"""`verify` finds what was changed in a release, and takes nothing on trust."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpldm.cli import main
from dpldm.config import EvolutionConfig, OptimizerConfig, RunConfig, SamplingConfig
from dpldm.errors import UserError
from dpldm.releasing import release
from dpldm.scanning.settings import EVOLUTION, OPTIMIZER, SAMPLING, settings_are_plain
from dpldm.verifying import verify

Statement = dict[str, Any]


@pytest.fixture(scope="module")
def original(finished: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("released")
    shutil.copytree(finished.runtime.output, output, dirs_exist_ok=True)
    runtime = finished.runtime.model_copy(update={"output": output})
    return release(finished.model_copy(update={"runtime": runtime}), "both")


@pytest.fixture
def released(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "release"))


def edit(directory: Path, change: Callable[[Statement], Any]) -> None:
    path = directory / "privacy.json"
    statement = json.loads(path.read_text())
    before = json.dumps(statement)
    change(statement)
    assert json.dumps(statement) != before
    path.write_text(json.dumps(statement))


def failed(directory: Path) -> set[str]:
    return {check.name for check in verify(directory) if not check.passed}


def redigest(statement: Statement) -> None:
    """What a forger would do after changing the plan."""
    statement["plan_digest"] = hashlib.sha256(json.dumps(statement["plan"], sort_keys=True).encode()).hexdigest()


def test_an_honest_release_passes_wherever_it_lies(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failed(released) == set()
    moved = released.rename(tmp_path / "elsewhere")
    assert main(["verify", str(moved)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("ok    ") == len(verify(moved)) - 1 >= 20
    assert "open    frozen weights: not compared" in shown, "this backbone is not a bundled one"
    assert shown.endswith("The release is what it says.\n")


def forged_noise(s: Statement) -> None:
    s["plan"]["noise_multiplier"] *= 0.9
    redigest(s)


def forged_attempts(s: Statement) -> None:
    s["plan"]["steps"] += 3
    redigest(s)


def forged_rate(s: Statement) -> None:
    s["plan"]["records"] -= 10  # a larger sampling rate for the same noise
    redigest(s)


def forged_delta(s: Statement) -> None:
    s["plan"]["delta"] = s["guarantee"]["delta"] = 1 / 40
    redigest(s)


def forged_reserve(s: Statement) -> None:
    s["plan"]["reserve_steps"] = -s["plan"]["steps"]  # nothing left to account
    s["guarantee"].update(epsilon=0.0, epsilon_replace_one=0.0)
    redigest(s)


def forged_unit(s: Statement) -> None:
    s["plan"]["unit"] = s["guarantee"]["unit"] = "person, patient and family"
    redigest(s)


EDITS: dict[str, tuple[Callable[[Statement], Any], set[str]]] = {
    "a smaller epsilon": (lambda s: s["guarantee"].update(epsilon=0.1), {"epsilon"}),
    "a slightly smaller epsilon": (
        lambda s: s["guarantee"].update(epsilon=s["guarantee"]["epsilon"] * 0.9999),
        {"epsilon"},
    ),
    "a smaller epsilon for replacing": (
        lambda s: s["guarantee"].update(epsilon_replace_one=0.1),
        {"epsilon, replace one"},
    ),
    "epsilon is no number": (lambda s: s["guarantee"].update(epsilon=float("nan")), {"epsilon"}),
    "a smaller delta": (lambda s: s["guarantee"].update(delta=1e-9), {"delta"}),
    "another unit": (lambda s: s["guarantee"].update(unit="person"), {"unit and adjacency"}),
    "another adjacency": (lambda s: s["guarantee"].update(adjacency="replace_one"), {"unit and adjacency"}),
    "a hidden benchmark": (lambda s: s["guarantee"].update(public_benchmark=True), {"public benchmark"}),
    "more updates than planned": (lambda s: s.update(updates=3), {"updates", "ledger"}),
    "more noise claimed": (lambda s: s["plan"].update(noise_multiplier=99.0), {"plan digest"}),
    "another clip norm": (lambda s: s["plan"].update(max_grad_norm=2.0), {"plan digest"}),
    "another data set": (lambda s: s["plan"].update(dataset_id="other"), {"plan digest", "ledger"}),
    "a forged plan with less noise": (forged_noise, {"epsilon", "epsilon, replace one"}),
    "a forged plan with more steps": (forged_attempts, {"epsilon", "epsilon, replace one"}),
    "a forged plan with fewer records": (forged_rate, {"epsilon", "epsilon, replace one", "ledger"}),
    "a delta that allows publishing a record": (forged_delta, {"plan"}),
    "a reserve that takes the steps away": (forged_reserve, {"plan"}),
    "a unit that nothing here can give": (forged_unit, {"plan"}),
    "something private beside the claims": (lambda s: s["guarantee"].update(train_loss=0.1), {"statement"}),
    "something private in a section of its own": (lambda s: s.update(exact_records=41), {"statement"}),
    "no word on software": (lambda s: s.pop("software"), {"statement"}),
    "a ledger too short for the updates": (lambda s: s["ledger"]["head"].update(seq=1), {"ledger"}),
    "the ledger of another data set": (lambda s: s["ledger"].update(dataset_id="other"), {"ledger"}),
    "another number of records": (lambda s: s["declared_constants"].update(records=400), {"ledger"}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_statement_fails(name: str, released: Path) -> None:
    change, expected = EDITS[name]
    edit(released, change)
    assert expected <= failed(released) <= expected | {"cards", "model card"}, "the cards still tell the true claim"


def test_an_edited_statement_ends_with_exit_code_1(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(released, lambda s: s["guarantee"].update(epsilon=0.1))
    assert main(["verify", str(released)]) == 1
    shown = capsys.readouterr().out
    assert "FAILED  epsilon: claimed 0.1000, recomputed 0.4" in shown
    assert "NOT VERIFIED" in shown


def change_image(directory: Path) -> None:
    path = next(directory.rglob("000003.png"))
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))


def change_card(directory: Path) -> None:
    path = directory / "README.md"
    path.write_text(path.read_text().replace("differentially private", "differentially very private"))


def add_file(directory: Path) -> None:
    (directory / "synthetic" / "dark" / "extra.png").write_bytes(b"")


def add_hidden_file(directory: Path) -> None:
    (directory / ".real.png").write_bytes(b"private")


def add_link(directory: Path) -> None:
    (directory / "link").symlink_to(directory / "synthetic", target_is_directory=True)


def add_broken_link(directory: Path) -> None:
    (directory / "link").symlink_to("nowhere")


def put_link_in_place(directory: Path) -> None:
    path = directory / "synthetic.npz"
    aside = path.rename(directory.parent / "aside.npz")
    path.symlink_to(aside)


def remove_file(directory: Path) -> None:
    next(directory.rglob("000003.png")).unlink()


def file_to_folder(directory: Path) -> None:
    (directory / "synthetic.npz").unlink()
    (directory / "synthetic.npz").mkdir()


def swap_weights(directory: Path) -> None:
    path = next((directory / "model" / "unet").glob("*.safetensors"))
    path.write_bytes(path.read_bytes() + b"\0")


def declare(directory: Path, name: str, content: bytes) -> None:
    """A file whose author also writes its hash into the statement."""
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(content)
    edit(directory, lambda s: s["files"].update({name: hashlib.sha256(content).hexdigest()}))


def declared_latents(directory: Path) -> None:
    declare(directory, "latents.safetensors", b"private")


def declared_losses(directory: Path) -> None:
    declare(directory, "synthetic/losses.csv", b"0.1")


def declared_card_of_another_kind(directory: Path) -> None:
    declare(directory, "README.md.csv", b"0.1")


def card_with_another_epsilon(directory: Path) -> None:
    text = (directory / "README.md").read_text()
    declare(directory, "README.md", text.replace("(0.50, 0.001)", "(0.01, 1e-09)").encode())


def card_of_the_images_with_another_epsilon(directory: Path) -> None:
    text = (directory / "synthetic" / "README.md").read_text()
    declare(directory, "synthetic/README.md", text.replace("(0.50, 0.001)", "(0.01, 1e-09)").encode())


def another_autoencoder(directory: Path) -> None:
    name = "model/vae/diffusion_pytorch_model.safetensors"
    declare(directory, name, (directory / name).read_bytes() + b"\0")


HARMS = {
    change_image: {"files unchanged", "images bare"},  # its pixels cannot be read any more
    change_card: {"files unchanged", "cards"},
    declared_latents: {"nothing foreign", "weights bare"},
    declared_losses: {"nothing foreign", "table bare"},
    declared_card_of_another_kind: {"nothing foreign", "table bare"},
    card_with_another_epsilon: {"cards"},
    card_of_the_images_with_another_epsilon: {"cards"},
    another_autoencoder: {"public parts", "weights bare", "model card"},
    swap_weights: {"files unchanged", "weights bare"},
    put_link_in_place: {"files unchanged"},
    add_file: {"nothing undeclared"},
    add_hidden_file: {"nothing undeclared"},
    add_link: {"nothing undeclared"},
    add_broken_link: {"nothing undeclared"},
    remove_file: {"files complete"},
    file_to_folder: {"files complete"},
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_changed_files_fail(harm: Callable[[Path], None], released: Path) -> None:
    harm(released)
    assert failed(released) == HARMS[harm]


def test_names_of_undeclared_files_cannot_drive_the_terminal(
    released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (released / "\x1b[2Jok").touch()
    assert main(["verify", str(released)]) == 3
    assert "\x1b" not in capsys.readouterr().out


def test_declared_names_outside_the_release_are_not_read(released: Path) -> None:
    (released.parent / "outside").write_text("x")
    edit(released, lambda s: s["files"].update({"../outside": "0" * 64}))
    assert failed(released) == {"files complete", "nothing foreign"}


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "3", '{"format": "other"}', "[" * 100_000, "\xff"])
def test_what_is_no_statement_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "privacy.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="is no privacy statement of dpldm"):
        verify(tmp_path)


@pytest.mark.parametrize("key", ["plan", "plan_digest", "guarantee", "updates", "files"])
@pytest.mark.parametrize("value", [None, 3, "x", [], {}])
def test_a_statement_with_holes_never_passes(key: str, value: Any, released: Path) -> None:
    edit(released, lambda s: s.update({key: value}))
    try:
        assert failed(released)
    except UserError as error:
        assert "lacks a value, or has one that cannot be" in str(error)  # noqa: PT017


CLAIMS = ("epsilon", "epsilon_replace_one", "delta", "unit", "adjacency", "public_benchmark")
CONSTANTS = ("noise_multiplier", "records", "expected_batch_size", "delta", "unit", "steps", "reserve_steps")


@pytest.mark.parametrize("value", [None, 0, -1, 10**400, "x", "", [None], {}])
def test_odd_values_fail_or_are_refused(value: Any, released: Path) -> None:
    path = released / "privacy.json"
    honest = path.read_text()
    for section, key in [*(("guarantee", key) for key in CLAIMS), *(("plan", key) for key in CONSTANTS)]:
        if (key, value) in (("epsilon", 10**400), ("epsilon_replace_one", 10**400), ("public_benchmark", 0)):
            continue  # a larger epsilon than the true one is a true statement; 0 is how some write false
        statement = json.loads(honest)
        statement[section][key] = value
        path.write_text(json.dumps(statement))
        try:
            assert failed(released), (section, key)
        except UserError as error:
            assert "that cannot be" in str(error)  # noqa: PT017


def test_a_folder_without_statement_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere", Path(os.devnull)):
        with pytest.raises(UserError, match="give the directory that `dpldm release` made"):
            verify(directory)


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_that_are_known_are_those_of_a_config() -> None:
    assert set(OPTIMIZER) == set(OptimizerConfig.model_fields)
    assert set(SAMPLING) == set(SamplingConfig.model_fields) - {"prompts"}, "a file, of which no path is told"
    assert set(EVOLUTION) == set(EvolutionConfig.model_fields)
    made = EvolutionConfig().model_dump(mode="json")
    assert settings_are_plain({"evolution": made})
    assert not settings_are_plain({"evolution": made | {"degrees": [0.5, "x"]}})


OTHER_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("optimizer", {"decay": "linear", "average": "uniform", "noise_correction": True}),
    ("optimizer", {"decay": "cosine", "timesteps": [[0.1, 0.5, 3.0], [0.5, 1.0, 1]], "min_snr": 5.0}),
    ("sampling", {"keep": 0.5, "label_counts": [3, 4], "sampler": "ddim"}),
]


@pytest.mark.parametrize(("section", "values"), OTHER_SETTINGS)
def test_settings_of_every_kind_are_accepted(section: str, values: dict[str, Any], released: Path) -> None:
    edit(released, lambda s: s["declared_constants"][section].update(values))
    declared = json.loads((released / "privacy.json").read_text())["declared_constants"]
    assert settings_are_plain(declared)
    kept = {"optimizer": OptimizerConfig, "sampling": SamplingConfig}[section].model_validate(declared[section])
    told = kept.model_dump(mode="json", exclude={"prompts"})
    assert told == declared[section], "a config can hold them"
    assert failed(released) == set()


OWN: list[tuple[str, dict[str, Any]]] = [
    ("optimizer", {"decay": "loss 0.719"}),
    ("optimizer", {"decay": ["linear"]}),
    ("optimizer", {"average": "of 41 images"}),
    ("optimizer", {"average": None}),
    ("optimizer", {"noise_correction": 0.719}),
    ("optimizer", {"noise_correction": "no"}),
    ("optimizer", {"learning_rate": None}),
    ("optimizer", {"timesteps": [[0.0, 1.0, 1.0, 0.719]]}),
    ("optimizer", {"timesteps": [[0.0, 1.0, "0.719"]]}),
    ("optimizer", {"timesteps": "0.719"}),
    ("optimizer", {"timesteps": [0.719]}),
    ("optimizer", {"timesteps": {"loss": [0.0, 1.0, 0.719]}}),
    ("optimizer", {"min_snr": "0.719"}),
    ("optimizer", {"min_snr": [0.719]}),
    ("optimizer", {"min_snr": True}),
    ("optimizer", {"loss": 0.719}),
    ("sampling", {"keep": "0.719"}),
    ("sampling", {"keep": None}),
    ("sampling", {"kept": 0.719}),
    ("sampling", {"sampler": "loss 0.719"}),
    ("sampling", {"label_counts": ["0.719"]}),
]


@pytest.mark.parametrize(("section", "values"), OWN)
def test_nothing_of_ones_own_hides_among_settings(section: str, values: dict[str, Any], released: Path) -> None:
    edit(released, lambda s: s["declared_constants"][section].update(values))
    assert failed(released) == {"statement"}


@pytest.mark.parametrize("key", ["updates", "plans_on_this_data_set"])
@pytest.mark.parametrize("value", [1.719, "0.719", [0.719], True])
def test_a_count_is_a_whole_number_and_nothing_else(key: str, value: Any, released: Path) -> None:
    edit(released, lambda s: (s if key == "updates" else s["ledger"]).update({key: value}))
    try:
        assert "statement" in failed(released)
    except UserError as error:
        assert "that cannot be" in str(error)  # noqa: PT017


@pytest.mark.parametrize("values", [{"learning_rates": [1e-3]}, {"crop": "0.719"}, {"window": ["0.719", 1]}])
def test_nothing_of_ones_own_hides_beside_them(values: dict[str, Any], released: Path) -> None:
    """Learning rates are declared by a selection alone."""
    edit(released, lambda s: s["declared_constants"].update(values))
    assert failed(released) == {"statement"}


# --- questions beside the gradients ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked_original(answered: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("asked")
    shutil.copytree(answered.runtime.output, output, dirs_exist_ok=True)
    return release(answered.model_copy(update={"runtime": answered.runtime.model_copy(update={"output": output})}))


@pytest.fixture
def asked(asked_original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(asked_original, tmp_path / "asked"))


def test_an_honest_release_with_questions_passes(asked: Path) -> None:
    statement = json.loads((asked / "privacy.json").read_text())
    assert [query["kind"] for query in statement["plan"]["queries"]] == ["class_histogram", "class_means"]
    assert failed(asked) == set()


def query_edit(number: int, redigested: bool = True, **change: Any) -> Callable[[Statement], Any]:
    def edit_query(s: Statement) -> None:
        s["plan"]["queries"][number].update(change)
        if redigested:
            redigest(s)

    return edit_query


def without_queries(s: Statement) -> None:
    del s["plan"]["queries"]


def one_query_less(s: Statement) -> None:
    s["plan"]["queries"].pop()
    redigest(s)


def questions_that_were_not_paid_for(s: Statement) -> None:
    s["plan"]["queries"][0]["reserve"] = 40
    redigest(s)


QUERY_EDITS: dict[str, tuple[Callable[[Statement], Any], set[str]]] = {
    "more noise claimed": (query_edit(0, redigested=False, noise_multiplier=300.0), {"plan digest"}),
    "another clip norm": (query_edit(1, redigested=False, clip_norm=1.0), {"plan digest"}),
    "queries left out": (without_queries, {"plan digest", "what it covers"}),
    "a forged plan with less noise": (
        query_edit(0, noise_multiplier=15.0),
        {"epsilon", "epsilon, replace one"},
    ),
    "a forged plan with more attempts": (questions_that_were_not_paid_for, {"epsilon", "epsilon, replace one"}),
    "a sensitivity of the forger's own": (query_edit(1, replace_one=0.1), {"refused"}),
    "noise out of range": (query_edit(1, noise_multiplier=1e9), {"plan"}),
    "an unknown kind": (query_edit(1, kind="median"), {"plan"}),
    "the same question twice": (query_edit(1, kind="class_histogram"), {"refused"}),
    "a count without weight, so that replacing looks cheaper": (
        query_edit(1, count_weight=float("nan")),
        {"plan"},
    ),
}


@pytest.mark.parametrize("name", QUERY_EDITS)
def test_an_edited_question_fails(name: str, asked: Path) -> None:
    change, expected = QUERY_EDITS[name]
    edit(asked, change)
    try:
        found = failed(asked)
    except UserError as error:
        assert "has one that cannot be" in str(error)  # noqa: PT017
        found = {"refused"}
    assert expected <= found <= expected | {"cards"}


def test_replacing_is_recomputed_with_the_sensitivity_of_the_question(asked: Path) -> None:
    """With a count that weighs nothing, opposite latents of one class are 2 apart, and adding is what it was."""
    edit(asked, query_edit(1, count_weight=1e-6))
    assert failed(asked) == {"epsilon, replace one"}


def test_a_start_from_class_means_needs_a_plan_that_asked_for_them(asked: Path, released: Path) -> None:
    def started(steps: Any) -> Callable[[Statement], Any]:
        return lambda s: s["declared_constants"]["optimizer"].update(warm_start_steps=steps)

    edit(asked, started(5))
    assert failed(asked) == set()
    edit(released, started(5))
    assert failed(released) == {"start"}
    edit(released, started("0.719"))
    assert failed(released) == {"statement", "start"}


def test_a_ledger_too_short_for_the_questions_fails(asked: Path) -> None:
    edit(asked, lambda s: s["ledger"]["head"].update(seq=4))  # created, plan and two attempts would end at 3
    assert failed(asked) == {"ledger"}


def test_verifying_questions_needs_no_torch() -> None:
    code = "import sys, dpldm.verifying; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
