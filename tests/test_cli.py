"""The command line: cheap to start, and every mistake ends in one sentence before anything is charged."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import dpldm
from dpldm import cli
from dpldm.cli import COMMANDS, main
from dpldm.commands.run import overrides
from dpldm.data.readers import open_source
from dpldm.errors import UserError
from tiny_runs import write_images

Capture = pytest.CaptureFixture[str]
HEAVY = ["torch", "diffusers", "pydantic", "rich", "numpy", "scipy", "PIL", "yaml", "dp_accounting"]


def written(directory: Path, raw: dict[str, Any]) -> str:
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return str(path)


def attempts_charged(directory: Path) -> int:
    return sum(path.read_text().count('"attempt"') for path in directory.rglob("*.jsonl") if "ledgers" in path.parts)


def refusal(capsys: Capture) -> str:
    """The one line on stderr."""
    error = capsys.readouterr().err
    assert re.fullmatch(r"dpldm: [^\n]+[.?]\n", error), error
    assert "Traceback" not in error
    return error


# --- starting -----------------------------------------------------------------------------------------------------


def imported(*words: str) -> tuple[int, set[str]]:
    """Exit code of a command in a process of its own, and which heavy packages it had imported."""
    code = (
        "import sys\nfrom dpldm.cli import main\n"
        f"try:\n    code = main({list(words)!r})\nexcept SystemExit as leave:\n    code = leave.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, set(json.loads(done.stderr.splitlines()[-1].replace("'", '"')))


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("no-such-command",), ()])
def test_nothing_heavy_is_imported_before_a_command_is_known(words: tuple[str, ...]) -> None:
    code, modules = imported(*words)
    assert code == (2 if "no-such-command" in words else 0)
    assert modules == set()


def test_verify_needs_neither_torch_nor_diffusers(tmp_path: Path) -> None:
    code, modules = imported("verify", str(tmp_path))
    assert code == 2, "there is no statement in an empty folder"
    assert modules.isdisjoint({"torch", "diffusers", "pydantic", "rich"})


def test_the_overview_names_every_command(capsys: Capture) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown and command.summary in shown for name, command in COMMANDS.items())
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dpldm {dpldm.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_is_for(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as leave:
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert leave.value.code == 0
    assert f"usage: dpldm {name}" in shown
    assert COMMANDS[name].summary[1:] in " ".join(shown.split())


def test_help_of_run_lists_every_setting_with_its_default(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    for line in ("privacy.records", "privacy.delta [1e-05]", "sampling.count [60000]", "data.path [required]"):
        assert f"  {line}\n" in shown


def test_public_names_are_found() -> None:
    for name in dpldm.__all__:
        assert getattr(dpldm, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        dpldm.nothing  # noqa: B018


# --- flags --------------------------------------------------------------------------------------------------------


def test_flags_in_both_spellings() -> None:
    words = ["--privacy.epsilon", "1", "--name=a=b", "--sampling.label-counts", "[1, 2]", "--sampling.eta", "-0.5"]
    assert overrides(words) == [
        ("privacy.epsilon", "1"),
        ("name", "a=b"),
        ("sampling.label_counts", "[1, 2]"),
        ("sampling.eta", "-0.5"),
    ]
    assert overrides([]) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["privacy.epsilon", "1"], "is no option"),
        (["--privacy.epsilon"], r"--privacy\.epsilon needs a value"),
        (["--privacy.epsilon", "--name", "x"], r"--privacy\.epsilon needs a value"),
    ],
)
def test_flags_without_sense_are_refused(words: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        overrides(words)


def test_flags_may_stand_on_either_side_of_the_config(tmp_path: Path, raw: dict[str, Any], capsys: Capture) -> None:
    path = written(tmp_path, raw)
    assert main(["plan", "--name", "flagged", "--config", path, "--privacy.max_grad_norm=0.25"]) == 0
    shown = capsys.readouterr().out
    assert "plan of run flagged" in shown
    assert re.search(r"clip norm C, draws K\W+0\.25, 1\b", shown)


# --- mistakes -----------------------------------------------------------------------------------------------------


def shrink(raw: dict[str, Any]) -> None:
    """Nine readable images stay."""
    for path in sorted(Path(raw["data"]["path"]).rglob("*.png"))[9:]:
        path.write_bytes(b"no image")


def remove(raw: dict[str, Any]) -> None:
    shutil.rmtree(raw["data"]["path"])


def empty(raw: dict[str, Any]) -> None:
    remove(raw)
    Path(raw["data"]["path"]).mkdir()


def ask_too_much(raw: dict[str, Any]) -> None:
    """Test images, and a protocol that needs more synthetic ones than are drawn."""
    raw["data"]["test_path"] = str(write_images(Path(raw["data"]["path"]).parent / "test", seed=1))
    raw["evaluation"]["protocol"] = "full"


MISTAKES: dict[str, tuple[Any, str]] = {
    "missing folder": (remove, r"There is nothing at .*: correct data\.path"),
    "empty folder": (empty, r"\bimages?\b"),
    "nine readable images": (shrink, r"Fewer than 10 images.*dpldm inspect"),
    "epsilon 0": ({"privacy": {"epsilon": 0}}, r"privacy\.epsilon must be a positive"),
    "negative epsilon": ({"privacy": {"epsilon": -1}}, r"privacy\.epsilon must be a positive"),
    "infinite epsilon": ({"privacy": {"epsilon": float("inf")}}, r"privacy\.epsilon must be a positive"),
    "epsilon is no number": ({"privacy": {"epsilon": float("nan")}}, r"privacy\.epsilon must be a positive"),
    "delta 1/records": ({"privacy": {"delta": 1 / 40}}, r"privacy\.delta must be below 1/records"),
    "delta 0": ({"privacy": {"delta": 0}}, r"privacy\.delta must be"),
    "records blank": ({"privacy": {"records": None}}, r"privacy\.records is blank: declare .* DOWN"),
    "records 0": ({"privacy": {"records": 0}}, r"privacy\.records must be at least"),
    "records -5": ({"privacy": {"records": -5}}, r"privacy\.records must be at least"),
    "batch above records": ({"privacy": {"expected_batch_size": 41}}, r"expected_batch_size must lie between"),
    "negative reserve": ({"privacy": {"reserve_steps": -1}}, r"reserve_steps must not be negative"),
    "negative threads": ({"runtime": {"threads": 0}}, r"runtime\.threads is not valid"),
    "unknown key": ({"privacy": {"epsilonn": 1}}, r"privacy\.epsilonn is not a setting: did you mean privacy\.epsilon"),
    "undeclared label": ({"data": {"labels": ["dark"]}}, r"label that data\.labels does not declare"),
    "label declared twice": ({"data": {"labels": ["dark", "dark", "light"]}}, r"name each class once"),
    "wrong channels": ({"data": {"channels": 3}}, r"data\.channels is 3, the backbone tiny has 1: change one"),
    "size too large": ({"data": {"image_size": 64}}, r"the backbone tiny takes 13 to 16 pixels: change"),
    "unknown backbone": ({"backbone": "no-such"}, r"There is no backbone 'no-such': give .*`dpldm pretrain`"),
    "trainable matches nothing": ({"trainable": "zzz"}, r"trainable 'zzz' matches no parameter: use"),
    "trainable is malformed": ({"trainable": "("}, r"trainable '\(' is no valid regular expression"),
    "unknown sampler": ({"sampling": {"sampler": "euler"}}, r"sampling\.sampler is not valid"),
    "missing test images": ({"data": {"test_path": "nowhere"}}, r"There is nothing at nowhere"),
    "tested on training images": ({"data": {"test_path": "images"}}, r"data\.test_path is data\.path"),
    "too few samples to evaluate": (
        ask_too_much,
        r"The evaluation full needs 60,000 synthetic images.*raise sampling\.count or set evaluation\.protocol",
    ),
}


def changed(raw: dict[str, Any], change: dict[str, Any]) -> None:
    for section, value in change.items():
        if isinstance(value, dict):
            raw.setdefault(section, {}).update(value)
        else:
            raw[section] = value


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_costs_nothing(
    mistake: str,
    tmp_path: Path,
    raw: dict[str, Any],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # so that "images" is the folder of the fixture
    change, sentence = MISTAKES[mistake]
    if callable(change):
        change(raw)
    else:
        changed(raw, change)
    command = "run" if "test_path" in raw["data"] or mistake == "missing folder" else "finetune"
    assert main([command, "--config", written(tmp_path, raw)]) == 2
    assert re.search(sentence, refusal(capsys))
    assert attempts_charged(tmp_path) == 0
    assert not list(tmp_path.rglob("finetune.safetensors"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["frobnicate"], r"There is no command 'frobnicate': use one of inspect, plan"),
        (["run"], r"required: --config; see `dpldm run --help`"),
        (["run", "--config", "nowhere.yaml"], r"The config nowhere\.yaml cannot be read: check the path"),
        (["run", "--conf", "nowhere.yaml"], r"required: --config"),
        (
            ["release", "--config", "x.yaml", "--what", "everything"],
            r"--what: invalid.*see `dpldm release --help`",
        ),
        (["verify"], r"required: release; see `dpldm verify --help`"),
        (["verify", "nowhere"], r"is no privacy statement of dpldm: give the directory"),
        (["inspect", "nowhere"], r"There is nothing at nowhere"),
        (["backbone", "show", "no-such"], r"There is no backbone 'no-such'"),
        (["pretrain", "--recipe", "nowhere.yaml"], r"nowhere\.yaml cannot be read"),
        (["public", "paintings"], r"invalid choice: 'paintings'"),
        (["public", "icons", "--count", "many", "--output", "x", "--source", "y"], r"--count: invalid int value"),
    ],
)
def test_a_command_without_sense_ends_in_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert re.search(sentence, refusal(capsys))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["sample", "evaluate", "release"])
def test_stages_out_of_order_name_the_one_before(
    stage: str, tmp_path: Path, raw: dict[str, Any], capsys: Capture
) -> None:
    raw["data"]["test_path"] = raw["data"]["path"]
    assert main([stage, "--config", written(tmp_path, raw)]) == 2
    assert "run `dpldm finetune` first" in refusal(capsys)


def test_a_full_disk_is_found_before_anything_is_charged(
    tmp_path: Path, raw: dict[str, Any], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("dpldm.run.shutil.disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    assert main(["run", "--config", written(tmp_path, raw)]) == 2
    assert re.search(r"is too full, the run needs [\d,]+ MB: free space or choose another", refusal(capsys))
    assert attempts_charged(tmp_path) == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("victim", ["latents.safetensors.partial", "config.resolved.yaml.partial", "scans.jsonl"])
def test_a_file_that_cannot_be_written_ends_in_one_sentence(
    victim: str,
    code: int,
    tmp_path: Path,
    raw: dict[str, Any],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ordinary = os.open

    def failing(path: Any, *arguments: Any, **more: Any) -> int:
        if os.fspath(path).endswith(victim):
            raise OSError(code, os.strerror(code), os.fspath(path))
        return ordinary(path, *arguments, **more)

    monkeypatch.setattr(os, "open", failing)
    assert main(["finetune", "--config", written(tmp_path, raw)]) == 2
    assert re.search(r"(cannot|could not) be (read or )?written", refusal(capsys))
    assert attempts_charged(tmp_path) == 0


def test_a_defect_of_ours_is_not_dressed_up_as_a_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(directory: Path, *_: object) -> None:
        raise RuntimeError("our fault")

    monkeypatch.setattr("dpldm.commands.verify.verify", broken)
    with pytest.raises(RuntimeError, match="our fault"):
        main(["verify", str(tmp_path)])


def test_what_a_crash_says_stays_inside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raw: dict[str, Any], capsys: Capture
) -> None:
    """The text of an exception may tell a shape or an amount of memory, hence the size of a private batch."""
    config = written(tmp_path, raw)

    def crash(*_: Any) -> None:
        raise RuntimeError("you tried to allocate 12345 bytes")

    monkeypatch.setattr("dpldm.train.finetune.algorithm_1", crash)
    assert main(["finetune", "--config", config]) == 2
    shown = capsys.readouterr()
    assert "12345" not in shown.out + shown.err
    assert "what happened is in" in shown.err
    report = tmp_path / "runs" / "tiny" / "private" / "crash.txt"
    assert "12345" in report.read_text()


def test_what_a_library_warns_of_is_not_shown(
    tmp_path: Path, raw: dict[str, Any], recwarn: pytest.WarningsRecorder, capsys: Capture
) -> None:
    """One record in which a number overflows when it is read: NumPy would say so, and where."""
    images = np.random.default_rng(0).random((40, 16, 16))
    images[7] = 1e300
    np.savez(tmp_path / "images.npz", x=images, y=np.array(["dark", "light"])[np.arange(40) % 2])
    raw["data"]["path"] = str(tmp_path / "images.npz")
    assert main(["finetune", "--config", written(tmp_path, raw)]) == 0
    assert not any("overflow" in str(warning.message) for warning in recwarn.list)
    assert capsys.readouterr().err == ""
    with pytest.warns(RuntimeWarning, match="overflow"):
        open_source(tmp_path / "images.npz")


def test_steps_on_private_images_show_no_measured_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raw: dict[str, Any], capsys: Capture
) -> None:
    config = written(tmp_path, raw)
    ticks = iter(float(2**n) for n in range(1000))
    monkeypatch.setattr("dpldm.planning.plan", lambda config: namedtuple("Forecast", "seconds")(90.0))
    monkeypatch.setattr("dpldm.console.time.monotonic", lambda: next(ticks))
    assert main(["finetune", "--config", config]) == 0
    first, last, stated, *_ = capsys.readouterr().out.splitlines()
    assert stated == "finetune: done; the release states epsilon 0.50, which pays for the reserve too"
    assert re.fullmatch(r"finetune 1/2  epsilon \d\.\d\d \(delta 0\.001\), about 45 s left", first)
    assert re.fullmatch(r"finetune 2/2  epsilon \d\.\d\d \(delta 0\.001\)", last)
    assert main(["finetune", "--config", config]) == 0
    assert "finished before" in capsys.readouterr().out


def test_a_reader_that_has_enough_gets_no_complaint(tmp_path: Path) -> None:
    code = "import sys; from dpldm.cli import main; sys.exit(main())"
    for words in (["--help"], ["run", "--help"]):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.wait()
        process.stderr.close()


def test_an_interrupted_command_says_that_it_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    def interrupted(directory: Path, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dpldm.commands.verify.verify", interrupted)
    assert main(["verify", str(tmp_path)]) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_a_mistake_that_is_put_right_under_the_same_name_is_forgotten(
    tmp_path: Path, raw: dict[str, Any], capsys: Capture
) -> None:
    """Nothing was trained, so nothing binds the run to the settings of the failed start."""
    path = written(tmp_path, raw)
    assert main(["finetune", "--config", path, "--data.labels", "[dark]"]) == 2
    assert main(["finetune", "--config", path]) == 0
    assert attempts_charged(tmp_path) == 2
    capsys.readouterr()
    assert main(["finetune", "--config", path, "--optimizer.learning_rate", "1"]) == 2
    assert re.search(r"exists with another section `optimizer`: give this run a new name", refusal(capsys))
    assert attempts_charged(tmp_path) == 2


def test_unreadable_files_do_not_stop_a_run(
    tmp_path: Path, raw: dict[str, Any], image_folder: Path, capsys: Capture
) -> None:
    (image_folder / "dark" / "zero.png").touch()
    (image_folder / "light" / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    whole = (image_folder / "dark" / "000.png").read_bytes()
    (image_folder / "dark" / "000.png").write_bytes(whole[: len(whole) // 2])
    assert main(["finetune", "--config", written(tmp_path, raw)]) == 0
    captured = capsys.readouterr()
    shown = (captured.out + captured.err).replace(str(tmp_path), "")
    assert not re.search(r"unreadable|corrupt|zero|000\.png|\b42\b|\b39\b|\b3 ", shown), "private facts"
    listed = [json.loads(line) for line in (tmp_path / "runs/tiny/private/unreadable.jsonl").read_text().splitlines()]
    assert [entry["file"] for entry in listed] == ["dark/000.png", "dark/zero.png", "light/corrupt.png"]
    assert all(entry["reason"] for entry in listed)


# --- the other commands ---------------------------------------------------------------------------------------------


def test_inspect_starts_a_config_that_plans(
    tmp_path: Path, tiny_backbone: Path, image_folder: Path, capsys: Capture
) -> None:
    """Also for a folder whose name is no data set's name."""
    data = image_folder.rename(tmp_path / "my (first) images")
    path = tmp_path / "run.yaml"
    assert main(["inspect", str(data), "--write", str(path)]) == 0
    assert "INTERNAL" in capsys.readouterr().out
    assert yaml.safe_load(path.read_text())["privacy"]["dataset_id"] == "my-first-images"
    words = ["plan", "--config", str(path), "--backbone", str(tiny_backbone), "--data.image_size", "16"]
    assert main(words) == 2
    assert "privacy.records is blank" in refusal(capsys)
    filled = [*words, "--privacy.records", "40", "--privacy.epsilon", "0.5", "--privacy.delta", "1e-3"]
    assert main(filled) == 0
    assert "query class_spreads" in capsys.readouterr().out
    fast = ["--privacy.expected_batch_size", "20", "--privacy.steps", "2", "--privacy.reserve_steps", "1"]
    assert main([*filled, *fast]) == 2
    assert "not for method: portraits, which tunes nothing" in refusal(capsys)
    assert main([*filled, *fast, "--method", "diffusion"]) == 0
    assert main(["inspect", str(data), "--write", str(tmp_path / "no" / "folder.yaml")]) == 2
    assert "cannot be written" in refusal(capsys)


def test_inspect_takes_the_columns_that_are_named(tmp_path: Path, image_folder: Path, capsys: Capture) -> None:
    names = [path.relative_to(image_folder).as_posix() for path in sorted(image_folder.rglob("*.png"))]
    rows = "".join(f"{name},a thing,kind,somebody\n" for name in names)
    (image_folder / "metadata.csv").write_text("file_name,words,sort,whose\n" + rows)
    path = tmp_path / "run.yaml"
    columns = ["--label-column", "sort", "--caption-column", "words", "--group-column", "whose"]
    assert main(["inspect", str(image_folder), *columns, "--write", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"classes      kind: {len(names)}" in shown
    assert "captions     yes" in shown
    assert f"groups       1, with at most {len(names)} images each" in shown
    written = yaml.safe_load(path.read_text())["data"]
    assert [written[f"{role}_column"] for role in ("label", "caption", "group")] == ["sort", "words", "whose"]
    assert main(["inspect", str(image_folder), "--caption-column", "absent"]) == 2
    assert "'absent'" in refusal(capsys)


def test_digits_are_written(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def write(directory: Path) -> tuple[Path, Path]:
        calls.append(directory)
        return directory / "private", directory / "test"

    monkeypatch.setattr("dpldm.commands.public.write_digits", write)
    assert main(["public", "digits", "--output", str(tmp_path / "d")]) == 0
    assert calls == [tmp_path / "d"]
    assert "4,000 digits" in capsys.readouterr().out


def test_backbone_is_shown_and_drawn_from(tmp_path: Path, tiny_backbone: Path, capsys: Capture) -> None:
    assert main(["backbone", "show", str(tiny_backbone)]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "random"
    assert main(["backbone", "list"]) == 0
    assert tiny_backbone.name not in capsys.readouterr().out.split()


def test_one_thread_on_demand(
    tmp_path: Path, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    raw["runtime"]["threads"] = 1
    assert main(["plan", "--config", written(tmp_path, raw)]) == 0
    assert asked == [1]


def test_images_of_a_flat_folder_need_no_labels(tmp_path: Path, raw: dict[str, Any], capsys: Capture) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for index in range(12):
        Image.fromarray(np.full((16, 16), index, np.uint8)).save(flat / f"{index}.png")
    raw["data"] |= {"path": str(flat), "labels": []}
    assert main(["finetune", "--config", written(tmp_path, raw)]) == 0
    assert main(["sample", "--config", written(tmp_path, raw)]) == 0
    assert (tmp_path / "runs/tiny/contact-sheet.png").exists()


def test_main_reads_the_process_arguments(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(cli.sys, "argv", ["dpldm", "--version"])
    assert main() == 0
    assert dpldm.__version__ in capsys.readouterr().out


# --- how much is said -------------------------------------------------------------------------------------------------

LONG = {
    "run": ["plan", "rehearse", "run", "finetune", "sample", "evaluate", "release"],
    "others": ["baseline", "pretrain", "memorisation"],
}


@pytest.mark.parametrize("name", [*LONG["run"], *LONG["others"]])
def test_long_commands_can_be_quiet_or_speak_to_programs(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert "--quiet" in shown
    assert "--json" in shown


def test_a_whole_run_speaks_to_a_program_in_one_object(tmp_path: Path, raw: dict[str, Any], capsys: Capture) -> None:
    path = written(tmp_path, raw)
    assert main(["run", "--config", path, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    told = json.loads(shown.out)
    directory = tmp_path / "runs" / "tiny"
    assert told["guarantee"] == json.loads((directory / "release" / "privacy.json").read_text())["guarantee"]
    assert told["plan"]["constants"]["records"] == 40
    assert told["plan"]["outlook"]["verdict"]
    assert told["images"] == 24
    assert {name: Path(place).exists() for name, place in told["places"].items()} == {
        "contact_sheet": True,
        "release": True,
        "internal": True,
    }
    assert told["next"][1] == f"dpldm verify {directory / 'release'}"
    assert "evaluation" not in told


def test_a_whole_run_can_be_silent(tmp_path: Path, raw: dict[str, Any], capsys: Capture) -> None:
    assert main(["run", "--config", written(tmp_path, raw), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "runs" / "tiny" / "release" / "privacy.json").exists()


def test_each_stage_says_what_comes_next(tmp_path: Path, raw: dict[str, Any], capsys: Capture) -> None:
    path = written(tmp_path, raw)
    for command, following in (("plan", "rehearse"), ("finetune", "sample"), ("sample", "release")):
        assert main([command, "--config", path]) == 0
        assert re.search(rf"next +dpldm {following} --config {re.escape(path)}\n", capsys.readouterr().out)
    assert main(["release", "--config", path]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"release 24/24  images", shown)
    assert re.search(r"release +\S+runs/tiny/release\n", shown)
    assert re.search(r"INTERNAL +\S+runs/tiny/private\n", shown)
