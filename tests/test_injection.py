"""Texts of others do nothing in a page, a card, a table or a terminal, be they labels, file names or settings."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from dpldm.cli import main
from dpldm.config import RunConfig
from dpldm.data.export import export_images
from dpldm.data.names import printable, spreadsheet_safe
from dpldm.releasing import privacy_statement
from dpldm.report import page as pages
from dpldm.report.card import plain, release_card
from dpldm.report.document import Edition, Recorded, report_of
from dpldm.report.head import is_sealed_page
from dpldm.report.hub import model_card, synthetic_card
from dpldm.report.page import page
from dpldm.report.samples import MOST_CLASSES, samples
from dpldm.scanning.texts import extra_in_table
from hostile import hostile_texts

Capture = pytest.CaptureFixture[str]
TEXTS = hostile_texts()
BATCHES = [TEXTS[start : start + MOST_CLASSES] for start in range(0, len(TEXTS), MOST_CLASSES)]
IMAGES = np.zeros((MOST_CLASSES, 8, 8, 1), dtype=np.uint8)


def test_there_are_enough() -> None:
    assert len(TEXTS) >= 200
    assert len(set(TEXTS)) == len(TEXTS)


def harmless_line(shown: str) -> bool:
    """Nothing that a terminal obeys, hides or turns round."""
    return all(line == printable(line) for line in shown.split("\n"))


# --- a page -----------------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Elements with the names of their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes |= {value or "" for _, value in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", ()))

    handle_decl = handle_pi = unknown_decl = handle_comment


def rendered(statement: dict[str, Any], texts: list[str]) -> str:
    """The internal edition with these texts in every place that is not ours."""
    statement = json.loads(json.dumps(statement))
    other = [texts[k % len(texts)] for k in range(8)]
    statement["declared_constants"] |= {"labels": texts, "trainable": other[0]}
    statement["backbone"]["name"] = other[1]
    part = {"name": other[2], "violated": False, "shown": texts, "ceiling": other[3]}
    ledger = [
        {"event": "created", "cap": None},
        {"event": "plan", "plan": "x", "constants": {"run": other[4], "epsilon": 1.0, "delta": 1e-5}},
    ]
    distance = {"name": other[5], "extractor": other[6], "value": 1.0, "error": None, "n_real": 1, "n_fake": 1}
    recorded = Recorded(
        audit={"violated": False, "parts": [part]},
        evaluation={"utility": None, "distances": [distance]},
        durations=[{"stage": other[7], "seconds": 1.0}],
        ledger=ledger,
    )
    shown = samples(IMAGES[: len(texts)], np.arange(len(texts)), texts)
    return page(report_of(statement, Edition.INTERNAL, recorded), shown)


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts hold no text of others and take seconds."""
    drawn = dict.fromkeys(("guesses", "delta", "attack", "spending"), "<svg></svg>")
    monkeypatch.setattr(pages, "_charts", lambda report: drawn)


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("number", range(len(BATCHES)))
def test_in_a_page_they_are_text(number: int, finished: RunConfig) -> None:
    statement, texts = privacy_statement(finished), BATCHES[number]
    tame = Outline(rendered(statement, [f"text {k}" for k in range(len(texts))]))
    made = rendered(statement, texts)
    found = Outline(made)
    assert found.elements == tame.elements, "no element and no attribute more or less"
    assert is_sealed_page(made)
    for text in texts:
        assert printable(text) in found.texts, "as a label, whole"
        assert f"1 synthetic images of class {printable(text)}" in found.attributes
    assert harmless_line(made)


# --- cards ------------------------------------------------------------------------------------------------------------


def kinds(markdown: str) -> list[str]:
    """Kinds of tokens of a Markdown text, inline ones too; text and its escapes count as one."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown)
    flat = [part for token in tokens for part in (token, *(token.children or ()))]
    return [token.type for token in flat if token.type not in ("text", "text_special")]


@pytest.mark.parametrize("number", range(len(BATCHES)))
def test_in_a_card_they_are_text_and_its_header_is_what_it_was(number: int, finished: RunConfig) -> None:
    statement, texts = privacy_statement(finished), BATCHES[number]

    def cards(labels: list[str]) -> tuple[str, str, str]:
        config = finished.model_copy(update={"data": finished.data.model_copy(update={"labels": tuple(labels)})})
        named = statement | {"backbone": statement["backbone"] | {"name": labels[0]}}
        model = model_card(config, named, "ClassConditionalLDMPipeline", "classes")
        return release_card(config, named), synthetic_card(config, named), model

    ours, *headed = cards(texts)
    tame, *tame_headed = cards([f"text {k}" for k in range(len(texts))])
    assert kinds(ours) == kinds(tame)
    assert harmless_line(ours)
    for card, tame_card in zip(headed, tame_headed, strict=True):
        _, header, body = card.split("---\n", 2)
        _, tame_header, tame_body = tame_card.split("---\n", 2)
        assert yaml.safe_load(header) == yaml.safe_load(tame_header)
        assert kinds(body) == kinds(tame_body)
        assert harmless_line(card)


@pytest.mark.parametrize("text", ["https://example.org", "WWW.example.org", "jane@example.org", "see http://x.org"])
def test_what_renderers_of_hubs_would_link_is_taken_apart(text: str) -> None:
    """GitHub's Markdown links addresses that stand in plain text: a scheme, www. or an at sign."""
    assert not any(sign in plain(text).lower() for sign in ("http:", "https:", "www.", "e@"))


# --- a table and folders ----------------------------------------------------------------------------------------------


def test_in_a_table_and_as_folders_they_are_names(tmp_path: Path) -> None:
    classes = np.arange(len(TEXTS))
    export_images(tmp_path / "out", np.zeros((len(TEXTS), 8, 8, 1), dtype=np.uint8), classes, TEXTS, card="")
    with (tmp_path / "out" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row[1] for row in rows[1:]] == [spreadsheet_safe(text) for text in TEXTS]
    for name, label in rows[1:]:
        assert not label.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert not name.startswith(("=", "+", "-", "@", "/", "."))
        assert harmless_line(name + label)
        assert (tmp_path / "out" / name).resolve().is_relative_to(tmp_path / "out")
        assert name.count("/") == 1
    assert len({row[0].partition("/")[0].casefold() for row in rows[1:]}) == len(TEXTS)
    assert set(os.listdir(tmp_path)) == {"out"}
    assert extra_in_table(tmp_path / "out" / "metadata.csv", TEXTS, [row[0] for row in rows[1:]]) is None


# --- a terminal -------------------------------------------------------------------------------------------------------


def placed(directory: Path, make: Callable[[Path], Any]) -> int:
    """How many of the texts this file system takes as a name inside `directory`."""
    done = 0
    for text in TEXTS:
        if "/" in text or text in (".", ".."):
            continue
        try:
            make(directory / text)
            done += 1
        except (OSError, ValueError):  # too long, or a NUL
            continue
    return done


def test_names_of_files_in_a_release_do_nothing_to_a_terminal(tmp_path: Path, capsys: Capture) -> None:
    release = tmp_path / "release"
    release.mkdir()
    assert placed(release, Path.touch) >= 120
    for text in TEXTS:
        statement = {"format": "dpldm-privacy-1", "plan": {"unit": text}, "files": {text: text}, text: text}
        (release / "privacy.json").write_text(json.dumps(statement))
        assert main(["verify", str(release)]) in (1, 2, 3)
    assert main(["verify", str(release / TEXTS[0].replace("/", ""))]) == 2
    shown = capsys.readouterr()
    assert harmless_line(shown.out)
    assert harmless_line(shown.err)


def test_names_and_values_of_settings_do_nothing_to_a_terminal(
    raw: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "run.yaml"
    places: list[Callable[[dict[str, Any], str], Any]] = [
        lambda s, text: s.update({text: 1}),
        lambda s, text: s["data"].update({text: text}),
        lambda s, text: s.update(name=text),
        lambda s, text: s.update(backbone=text),
        lambda s, text: s["privacy"].update(dataset_id=text),
        lambda s, text: s["data"].update(crop=text),
    ]
    for number, text in enumerate(TEXTS):
        settings = json.loads(json.dumps(raw))
        places[number % len(places)](settings, text)
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        assert main(["plan", "--config", str(path), f"--data.{text}", text]) == 2
        assert main([text]) in (0, 2)
    shown = capsys.readouterr()
    assert harmless_line(shown.err)
    assert "Traceback" not in shown.err


def test_names_of_images_do_nothing_to_a_terminal(image_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    original = next(image_folder.rglob("*.png"))
    folder = tmp_path / "images"

    def image(path: Path) -> None:
        path.mkdir(parents=True)
        shutil.copy(original, path / f"{path.name[:40]}.png")
        (path / f"{path.name[:40]}.jpg").write_bytes(b"no image")

    assert placed(folder, image) >= 100
    main(["inspect", str(folder), "--write", str(tmp_path / "run.yaml")])
    shown = capsys.readouterr()
    assert harmless_line(shown.out)
    assert harmless_line(shown.err)


def test_what_is_written_for_the_holder_is_one_value_a_line() -> None:
    """JSON lines (unreadable files) and the resolved config carry such names: both escape them."""
    for text in TEXTS:
        assert "\n" not in json.dumps({"file": text})
        buffer = io.StringIO()
        yaml.safe_dump({"labels": [text]}, buffer)
        assert yaml.safe_load(buffer.getvalue()) == {"labels": [text]}
