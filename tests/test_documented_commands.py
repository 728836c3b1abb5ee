"""What the documents show is run, or at least parsed by the real parsers: a flag, a key or a file that is not there
fails here."""

import ast
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module, util
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from documents import PAGES, ROOT, Block, blocks, commands
from dpldm import BackboneRecipe
from dpldm.cli import COMMANDS, OneSentenceParser, main
from dpldm.commands.run import overrides
from dpldm.config import RunConfig
from dpldm.errors import UserError
from dpldm.loading import load_config, validate
from dpldm.recipe import AutoencoderRecipe
from tiny_runs import cheap_features, hurry, tiny_settings, write_images

LANGUAGES = {"sh", "yaml", "python", "text", "{toctree}", "{eval-rst}", "{command-line}", "{settings}"}
LEAST = (("data.path", "scans"), ("privacy.dataset_id", "scans"))
"""What a config needs at least, where a page shows a part of one, or names one that its reader has."""
NOT_RUN = {
    "app": "serves until it is stopped (tests/app)",
    "push": "needs a hub (test_pushing.py)",
    "reproduce": "needs published sets (tests/reproduction)",
}
"""Commands that are parsed wherever they are shown, and not run."""


def of(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def by_place(found: list[Block]) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in found]


# --- every block is one that is looked at ---------------------------------------------------------------------------


def test_there_are_blocks_of_each_language() -> None:
    assert (len(of("sh")) > 15, len(of("yaml")) > 4, len(of("python")) > 1) == (True, True, True)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    for block in blocks(page):
        assert block.language.split(" ")[0] in LANGUAGES, block.place
        assert "dpldm " not in block.text.split("\n")[0] or block.language != "text", f"{block.place} is a command"


# --- parsed ---------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """A command has parsed its words, and is stopped before it does anything."""


def parse_dpldm(words: list[str]) -> None:
    """Raises UserError if the command line, or a setting on it, is none."""
    name, *rest = words
    assert name in COMMANDS, name
    parser = OneSentenceParser(prog=f"dpldm {name}", allow_abbrev=False)
    parse_known = parser.parse_known_args

    def stop(given: Any = None, namespace: Any = None) -> NoReturn:
        raise Parsed(*parse_known(given, namespace))

    parser.parse_known_args = stop  # type: ignore[method-assign]
    with pytest.raises(Parsed) as stopped:
        import_module(COMMANDS[name].module).main(name, parser, rest)
    given, settings = stopped.value.args
    config = getattr(given, "config", None)
    if name != "backbone" and config is not None:
        ours = (ROOT / config).exists()
        load_config(RunConfig, ROOT / config if ours else None, [*([] if ours else LEAST), *overrides(settings)])
    elif settings:
        raise AssertionError(f"{settings} are no options")
    if (recipe := getattr(given, "recipe", None)) is not None:
        load_config(BackboneRecipe, ROOT / recipe)


def parse_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert words
    assert set(words) <= set(targets)


def parse_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for asked in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(asked.split(",")) <= extras.keys()


def parse_python(words: list[str]) -> None:
    assert words[0] == "-m" or (ROOT / words[0]).is_file()


def no_parser(words: list[str]) -> None:
    """Programs that are not ours."""


PARSERS: dict[str, Callable[[list[str]], None]] = {
    "dpldm": parse_dpldm,
    "make": parse_make,
    "pip": parse_pip,
    "dpldm-env/bin/pip": parse_pip,
    "python": parse_python,
    "python3": parse_python,
    "git": no_parser,
    "cd": no_parser,
    "hf": no_parser,
    "npm": no_parser,
    "$EDITOR": no_parser,
}


@pytest.mark.parametrize("block", by_place(of("sh")))
def test_every_command_is_understood(block: Block) -> None:
    found = commands(block)
    assert found
    for program, *words in found:
        assert program in PARSERS, f"{block.place}: how is {program} checked?"
        PARSERS[program](words)
        for word in words:
            assert not word.startswith(("examples/", "src/", "docs/")) or (ROOT / word).exists(), word


@pytest.mark.parametrize(
    "line",
    ["plan --config run.yaml --privacy.epsilonn 3", "plan --config run.yaml --fast", "verify", "public check --all"],
)
def test_what_is_no_command_is_noticed(line: str) -> None:
    with pytest.raises((UserError, AssertionError)):
        parse_dpldm(line.split())


@pytest.mark.parametrize("block", by_place(of("yaml")))
def test_every_yaml_is_a_config(block: Block, tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(block.text, encoding="utf-8")
    shown = yaml.safe_load(block.text)
    if shown.keys() == {"autoencoder"}:  # a part of a recipe
        validate(AutoencoderRecipe, shown["autoencoder"])
        return
    missing = [(key, value) for key, value in LEAST if key.split(".")[1] not in shown.get(key.split(".")[0], {})]
    load_config(RunConfig, tmp_path / "shown.yaml", missing)


@pytest.mark.parametrize("block", by_place(of("python")))
def test_every_import_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and util.find_spec(str(node.module).split(".")[0]):
            module = import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names), block.place


# --- run ------------------------------------------------------------------------------------------------------------


SIZES = {
    "data.image_size": "16",
    "privacy.records": "40",
    "privacy.epsilon": "0.5",
    "privacy.delta": "1e-3",
    "privacy.cap": "[10, 0.1]",
    "privacy.expected_batch_size": "20",
    "privacy.steps": "2",
    "privacy.reserve_steps": "1",
    "sampling.count": "24",
    "sampling.steps": "3",
    "evaluation.protocol": "quick",
}
"""Settings that are put behind every command with a config: the plan of other tests, whose noise is known already."""
OF_TUNING = ("privacy.expected_batch_size", "privacy.steps", "privacy.reserve_steps", "sampling.steps")
OTHER_SIZES: dict[str, dict[str, str | None]] = {
    "README.md": {"data.test_path": "my-test-images"} | dict.fromkeys(OF_TUNING),
    "docs/tutorial.md": dict.fromkeys(OF_TUNING),
}
"""In the place of these; None leaves one out."""
PLACES = {"NAME": "run", "PATH": "gen.npz", "DIR": "nothing-here"}
"""What stands for a name of the reader's own."""
NOT_THERE = ["public", "check"]
"""With a folder that lacks the set: ends with exit code 1, as its page says."""


@pytest.fixture
def house(tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder: images in class folders, scans with a table, another tool's images, the examples."""
    hurry(monkeypatch)
    cheap_features(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SIZES, "backbone", str(tiny_backbone))
    write_images(tmp_path / "my-images")
    write_images(tmp_path / "my-test-images", seed=1)
    for empty in ("nothing-here", "data/mnist"):
        (tmp_path / empty).mkdir(parents=True)
    scans = tmp_path / "scans"
    for ward in range(3):
        write_images(scans / f"ward {ward}", seed=ward)
    names = sorted(path.relative_to(scans).as_posix() for path in scans.rglob("*.png"))
    rows = [f"{name},{('effusion', 'no finding', 'nodule')[row % 3]},P{row // 2}" for row, name in enumerate(names)]
    (scans / "metadata.csv").write_text("\n".join(["file_name,label,patient", *rows, ""]))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "sh" and not b.not_run for b in blocks(page))]
)
def test_what_a_page_shows_works_in_its_order(page: str, house: Path) -> None:
    if page == "docs/evaluation.md":  # which begins after a run
        settings = tiny_settings(house, Path(SIZES["backbone"]), house / "my-images") | {"name": "run"}
        settings["data"]["test_path"] = str(house / "my-test-images")
        Path("run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        assert main(["run", "--config", "run.yaml", *as_options(page)]) == 0
        assert main(["sample", "--config", "run.yaml", "--gen-npz", "gen.npz", *as_options(page)]) == 0
    for block in blocks(page):
        if block.not_run is None and block.language == "sh":
            run_commands(block)
        elif block.language == "yaml" and is_whole(yaml.safe_load(block.text)):
            Path("run.yaml").write_text(block.text, encoding="utf-8")


def test_python_of_the_readme_works(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny_settings(house, Path(SIZES["backbone"]), house / "my-images")
    settings["data"]["test_path"] = str(house / "my-test-images")
    Path("run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    [block] = [block for block in of("python") if block.page == "README.md"]
    exec(compile(block.text, block.place, "exec"), {})
    assert (house / "runs" / "tiny" / "release" / "privacy.json").is_file()


def run_commands(block: Block) -> None:
    for program, *shown in commands(block):
        words = [re.sub(r"\b[A-Z]{3,}\b", lambda name: PLACES.get(name[0], name[0]), word) for word in shown]
        if program == "python":
            run_script(words)
        elif program == "dpldm" and words[0] not in NOT_RUN:
            options = as_options(block.page) if "--config" in words else []
            if words[0] == "audit" and "--config" in words:
                options = [*as_options(""), "--method", "diffusion"]  # of a run that tunes, as the page says
            code = main([*words, *options])
            if words[0] == "audit" and code == 1:  # a correct mechanism is accused once in a thousand audits
                code = main([*words, *options])
            assert code == (words[:2] == NOT_THERE and len(words) == 4), f"{block.place}: {' '.join(shown)}"


def run_script(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        runpy.run_path(words[0], run_name="__main__")


def as_options(page: str) -> list[str]:
    sizes = SIZES | OTHER_SIZES.get(page, {})
    return [word for key, value in sizes.items() if value is not None for word in (f"--{key}", value)]


def is_whole(shown: dict[str, Any]) -> bool:
    """Whether a block of YAML is a config by itself."""
    try:
        validate(RunConfig, shown)
    except UserError:
        return False
    return True
