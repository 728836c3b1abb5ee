import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpldm.cli import main
from dpldm.data.public.emoji import concept, held_out, write_emoji
from dpldm.data.public.icons import make_icons
from dpldm.data.readers import open_source
from dpldm.errors import UserError

LOOKS = ("red", "blue", "tall", "wide", "round", "old")
THINGS = [f"{look}-{thing}" for look in LOOKS for thing in ("cup", "hat", "bell", "kite")]
DANCERS = [f"{who}-dancing{tone}" for who in ("man", "woman", "person") for tone in ("", "-dark-skin-tone")]


def square(colour: str) -> dict[str, str]:
    return {"body": f'<path fill="{colour}" d="M2 2h20v20h-20z"/>'}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Two vendors draw the same emoji, the first also in an earlier edition; a third set draws other things."""
    things = [f"{size}-{thing}" for size in ("big", "small", "tiny") for thing in THINGS]
    emoji = {name: square("#0a0") for name in (*things, *DANCERS)}
    groups = {"Objects": things, "Dancers": DANCERS}
    sets = {
        "ours": emoji,
        "ours-v1": {name: square("#00a") for name in emoji},
        "theirs": {name.replace("-", ""): square("#a00") for name in emoji},
        "others": {name: square("#aa0") for name in emoji} | {"tree": square("#0aa")},
        "shared": {"tree": square("#00f")},
    }
    folder = tmp_path / "package"
    (folder / "json").mkdir(parents=True)
    about = {}
    for prefix, icons in sets.items():
        body = {"prefix": prefix, "width": 24, "height": 24, "icons": icons}
        body |= {"categories": groups} if prefix in ("ours", "shared") else {}
        (folder / "json" / f"{prefix}.json").write_text(json.dumps(body))
        licence = "CC-BY-SA-4.0" if prefix == "shared" else "MIT"
        about[prefix] = {"name": prefix, "total": 1, "author": {}, "license": {"spdx": licence}, "palette": True}
    (folder / "collections.json").write_text(json.dumps(about))
    (folder / "package.json").write_text(json.dumps({"name": "@iconify/json", "version": "9.9.9"}))
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("woman-running-dark-skin-tone", "running"),
        ("person-running", "running"),
        ("Red_Apple", "redapple"),
        ("boy-dark-skin-tone", "boy"),
        ("girl", "girl"),
        ("light", "light"),
    ],
)
def test_a_concept_is_what_is_left_without_persons_and_skin_tones(name: str, said: str) -> None:
    assert concept(name) == said


def test_parts_share_no_concept_and_tables_tell_group_and_name(package: Path, tmp_path: Path) -> None:
    private, test, counts = write_emoji(package, "ours", tmp_path / "emoji", image_size=16)
    tables = [list(csv.DictReader((part / "metadata.csv").open())) for part in (private, test)]
    assert [len(table) for table in tables] == [counts["private, Objects"], counts["test, Objects"]]
    assert sum(counts.values()) == 3 * len(THINGS), "the group of dancers is too small"
    assert min(counts.values()) >= 5
    concepts = [{concept(row["text"]) for row in table} for table in tables]
    assert not concepts[0] & concepts[1]
    row = tables[0][0]
    assert row == {"file_name": f"Objects/{row['text'].replace(' ', '-')}.png", "label": "Objects", "text": row["text"]}
    pixels = np.asarray(Image.open(private / row["file_name"]))
    assert pixels.shape == (16, 16, 3)
    assert pixels[8, 8].tolist() == [0, 170, 0]
    assert pixels[0, 0].tolist() == [255, 255, 255]
    source = open_source(private, caption_column="text")
    assert source.captions == [row["text"] for row in tables[0]]
    assert set(source.labels or ()) == {"Objects"}
    record = json.loads((tmp_path / "emoji" / "provenance.json").read_text())
    assert record["groups_left_out"] == {"Dancers": 6}
    assert record["licence"] == {"spdx": "MIT"}


def test_public_icons_hold_neither_the_vendor_nor_what_it_tests(package: Path, tmp_path: Path) -> None:
    _, test, _ = write_emoji(package, "ours", tmp_path / "emoji", image_size=8)
    tested = {row["text"].replace(" ", "") for row in csv.DictReader((test / "metadata.csv").open())}
    made = make_icons(package, image_size=16, channels=3, count=400, seed=0, private_vendor="ours")
    families = set(made.families.tolist())
    assert families == {"theirs", "others"}, "no edition of the vendor"
    shown = {name.replace(" ", "") for name in made.names.tolist()}
    assert "tree" in shown
    assert not tested & shown, "also where words are written together"
    assert made.provenance["parameters"]["private_vendor"] == "ours"
    free = make_icons(package, image_size=16, channels=3, count=400, seed=0)
    assert tested & {name.replace(" ", "") for name in free.names.tolist()}


def test_variants_of_what_is_tested_are_held_out_together(package: Path) -> None:
    rule = held_out(package, "ours")
    answers = {rule.refuses("others", name) for name in (*DANCERS, "dancing", "person-dancing-light")}
    assert len(answers) == 1
    assert rule.refuses("ours", "tree")
    assert rule.refuses("ours-v1", "tree")
    assert not rule.refuses("oursome", "tree")


@pytest.mark.parametrize(("vendor", "said"), [("none", "no set 'none'"), ("others", "no set"), ("shared", "CC-BY-SA")])
def test_a_set_that_is_no_emoji_or_not_free_is_refused(package: Path, vendor: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        write_emoji(package, vendor, tmp_path / "emoji", image_size=16)


def test_the_command_writes_both_parts(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["public", "emoji", "--source", str(package), "--vendor", "ours", "--output", str(tmp_path / "emoji")]
    assert main(words) == 0
    assert "72 emoji" in capsys.readouterr().out
    assert (tmp_path / "emoji" / "test" / "metadata.csv").is_file()
