"""A page says what the numbers say, needs nothing from elsewhere, and gives a browser nothing to complain of."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from dpldm.config import RunConfig
from dpldm.privacy.accounting import Adjacency
from dpldm.privacy.plan import PrivacyPlan
from dpldm.releasing import privacy_statement
from dpldm.report import charts
from dpldm.report.assumptions import Status, assumptions
from dpldm.report.curves import curve_of
from dpldm.report.document import MARK, Edition, Recorded, report_of
from dpldm.report.head import head, is_sealed_page
from dpldm.report.page import page
from dpldm.report.samples import MOST_CLASSES, PIXELS, load_samples, samples
from dpldm.report.wording import chance, factor, guarantee_sentence, percent, plain_sentence, strength, upper
from dpldm.scanning.texts import private_key
from hostile import hostile_texts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCORE = {"accuracies": [0.7], "mean": 0.7, "interval": [0.65, 0.75]}
EVALUATION = {
    "utility": {"train": 20, "test": 10, "protocol": "quick", "epochs": 5, "seeds": [0], "scores": {"cnn": SCORE}},
    "distances": [{"name": "KID", "extractor": "means", "value": 1.5, "error": 0.25, "n_real": 10, "n_fake": 24}],
}
AUDIT = {
    "violated": False,
    "parts": [{"name": "sampling", "violated": False, "shown": ["2,000 batches"], "ceiling": "a wrong rate", "x": 1}],
}
NEAR = {"share": 0.6125, "ratio": 0.987, "real": 10, "p_value": 0.0004}
COPIES = {"found": 3, "synthetic": 24, "trained": 40, "threshold": 0.5, "share_at_most": 0.25, "p_value": 0.02}
KEPT = {"status": "INTERNAL", "alarm": True, "nearness": NEAR, "copies": COPIES, "extractor": "means"}
SCORE = {"mean": 0.815, "interval": [0.7, 0.9]}
CLASSIFIER = {"kind": "classifier", "what": "a linear classifier, told so", "scores": {"linear": SCORE}}
REAL = {"kind": "real", "what": "the bound", "scores": {"cnn": SCORE | {"mean": 0.925}, "mlp": SCORE}}
RECORDED = Recorded(
    audit=AUDIT,
    evaluation=EVALUATION,
    baselines=[CLASSIFIER, REAL],
    memorisation=KEPT,
    durations=[{"stage": "finetune", "seconds": 987.6, "peak_bytes": 1_234_000_000}],
)


@pytest.fixture(scope="module")
def statement(finished: RunConfig) -> dict[str, Any]:
    return privacy_statement(finished)


@pytest.fixture(scope="module")
def pages(statement: dict[str, Any]) -> dict[Edition, str]:
    shown = samples(np.zeros((4, 16, 16, 1), dtype=np.uint8), np.array([0, 1, 0, 1]), ["dark", "light"])
    return {edition: page(report_of(statement, edition, RECORDED), shown) for edition in Edition}


def words(text: str) -> str:
    """What a reader sees, on one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", text.partition("</style>")[2]).split())


# --- what it says -----------------------------------------------------------------------------------------------------


def test_it_states_the_guarantee_both_adjacencies_and_the_odds(
    statement: dict[str, Any], pages: dict[Edition, str]
) -> None:
    plan, claim = PrivacyPlan.from_constants(statement["plan"]), statement["guarantee"]
    curve = curve_of(plan, Adjacency.ADD_OR_REMOVE_ONE)
    for text in pages.values():
        seen = words(text)
        assert guarantee_sentence(statement) in text
        assert plain_sentence(claim["epsilon"], claim["delta"], claim["unit"]) in seen
        assert upper(claim["epsilon_replace_one"]) in seen
        assert f"attack advantage {percent(curve.advantage)}" in seen
        right = int(re.search(r"best possible attack on this release (\d+) times", seen)[1])  # type: ignore[index]
        assert 50 * (1 + curve.advantage) <= right < 50 * (1 + curve.advantage) + 1.01
        assert statement["ledger"]["head"]["hash"] in text
        assert "dpldm verify DIRECTORY" in seen
        assert "Could have shown at most: a wrong rate" in seen


def test_only_the_internal_edition_holds_what_was_measured(
    statement: dict[str, Any], pages: dict[Edition, str]
) -> None:
    told = words(pages[Edition.INTERNAL])
    assert told.startswith("INTERNAL · Privacy report")
    assert "70.0 %" in told
    assert "KID (means) 1.5 0.25" in told
    assert "finetune 16 min" in told
    assert "memory, at most 1.2 GB" in told
    for name, value in (("DP classifier", "81.5 %"), ("real images cnn", "92.5 %"), ("real images mlp", "81.5 %")):
        assert f"{name} {value}" in pages[Edition.INTERNAL], "in the chart, for whoever hears it"
        assert f">{value}<" in pages[Edition.INTERNAL]
    assert "DP classifier a linear classifier, told so real images cnn the bound" in told
    assert "keep closer to training images than chance explains" in told
    assert re.search(r"nearer to a training image than to a held-out one 61\.\d % of 24 50 % 0\.0004", told)
    assert "3, at most 25 % (95 %)" in told
    assert MARK in told
    release = report_of(statement, Edition.RELEASE, RECORDED)
    assert report_of(statement, Edition.RELEASE, Recorded(audit=AUDIT)) == release, "nothing else is looked at"
    assert page(release, []) == page(json.loads(json.dumps(release)), [])
    assert private_key(release) is None
    for text in (json.dumps(release), words(pages[Edition.RELEASE])):
        assert not re.search(
            r"INTERNAL|70\.0 %|0\.65|KID|987\.6|16 min|accuracy|emorisation|0\.987|81\.5 %|told so", text
        )


def test_what_is_not_there_is_left_out(statement: dict[str, Any]) -> None:
    text = page(report_of(statement, Edition.INTERNAL, Recorded()), [])
    assert 'id="images"' not in text
    assert "No audit of this plan was recorded" in text
    assert "No evaluation was recorded" in text
    assert "<h3>Cost</h3>" not in text
    assert "dpldm memorisation RUN" in text
    text = page(report_of(statement, Edition.INTERNAL, Recorded(evaluation=EVALUATION)), [])
    assert "Nothing stands beside it yet" in text
    calm = RECORDED.memorisation | {"alarm": False}  # type: ignore[operator]
    text = page(report_of(statement, Edition.INTERNAL, Recorded(memorisation=calm)), [])
    assert "No more was found than chance explains. That proves nothing" in text


@pytest.mark.parametrize(("epsilon", "word"), [(0.5, "strong"), (1.0, "strong"), (3.0, "moderate"), (10.0, "weak")])
def test_a_weak_promise_is_called_weak(epsilon: float, word: str, statement: dict[str, Any]) -> None:
    report = report_of(statement, Edition.RELEASE, Recorded())
    report["guarantee"] |= {"epsilon": epsilon, "strength": strength(epsilon)}
    seen = words(page(report, []))
    assert f"{epsilon:.2f} {word}" in seen
    assert ("As a worst-case promise this is weak" in seen) == (word == "weak")


def test_a_violation_and_a_benchmark_stand_at_the_top(statement: dict[str, Any]) -> None:
    report = report_of(statement, Edition.RELEASE, Recorded(audit=AUDIT | {"violated": True}))
    seen = words(page(report | {"public_benchmark": True}, []))
    assert seen.index("An audit found a violation") < seen.index("In plain odds")
    assert seen.index("published benchmark") < seen.index("In plain odds")


def test_points_of_curves_are_rounded_up(statement: dict[str, Any]) -> None:
    plan, shown = PrivacyPlan.from_constants(statement["plan"]), report_of(statement, Edition.RELEASE, Recorded())
    for adjacency in Adjacency:
        curve = curve_of(plan, adjacency)
        epsilons, deltas = np.array(shown["curves"][adjacency.value]).T
        assert (epsilons >= curve.epsilons[::5]).all()
        assert (deltas >= curve.deltas[::5]).all()
        assert (deltas <= curve.deltas[::5] * 1.0011).all()


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5, 1.0, 2.0, 2.302585, 2.31, 5.0, 9.99, 19.9])
def test_a_factor_is_rounded_up_and_hardly(epsilon: float) -> None:
    shown = float(factor(epsilon).replace(",", ""))
    assert math.exp(epsilon) * (1 - 1e-9) <= shown <= math.exp(epsilon) * 1.1


def test_odds_and_chances_are_told_without_jargon() -> None:
    assert factor(30.001) == "e^30.01"
    assert [chance(delta) for delta in (1e-5, 1 / 60_000, 3e-7, 0.1)] == [
        "1 in 100,000",
        "1 in 60,000",
        "1 in 3,300,000",
        "1 in 10",
    ]
    assert plain_sentence(1.0, 1e-5, "group") == (
        "In plain words: using the images of one particular person shifts the odds of anything that anybody may "
        "conclude from this release by at most a factor of 2.8, but for a chance of about 1 in 100,000."
    )


def test_bounds_are_rounded_up() -> None:
    assert percent(0.4881) == "48.9 %"
    assert percent(0.1) == "10 %"
    assert percent(0.9999546) == "99.9955 %"
    assert percent(1.0) == "100 %"


def test_no_assumption_that_nobody_checked_is_said_to_hold(statement: dict[str, Any]) -> None:
    plan = PrivacyPlan.from_constants(statement["plan"])
    made = {a.text: a for a in assumptions(plan, 3)}
    assert made["Nobody is shown in more than one image."].status is Status.OPEN
    assert made["The noise is exactly the one that was accounted for."].status is Status.FAILS
    assert "3 plans, whose epsilons add up" in " ".join(a.reason for a in made.values())
    group = PrivacyPlan.from_constants(statement["plan"] | {"unit": "group", "noise": "grid", "images_per_unit": 2})
    changed = {a.text: a.status for a in assumptions(group, 1)}
    assert changed["The noise is exactly the one that was accounted for."] is Status.HOLDS
    assert changed["All images of a person carry the same name in the group column."] is Status.OPEN
    benchmark = PrivacyPlan.from_constants(statement["plan"] | {"public_benchmark": True})
    assert {a.text: a.status for a in assumptions(benchmark, 1)}["The training images are private."] is Status.FAILS


# --- its pictures -----------------------------------------------------------------------------------------------------


def test_samples_are_the_first_of_each_class_and_few_enough_to_mail(tmp_path: Path) -> None:
    images = np.arange(10, dtype=np.uint8).repeat(64 * 64 * 3).reshape(10, 64, 64, 3)
    classes = np.array([1, 0, 1, 0, 1, 0, 1, 0, 1, 0])
    found = samples(images, classes, ["a", "b", "c"])
    assert [(row.label, len(row.pictures)) for row in found] == [("a", 5), ("b", 5), ("c", 0)]
    many = samples(np.zeros((50, 512, 512, 1), dtype=np.uint8), np.arange(50), [str(k) for k in range(50)])
    assert len(many) == MOST_CLASSES
    assert all(len(row.pictures) == 1 for row in many), "one at least"
    assert PIXELS // (3 * 64 * 64) > 16
    assert load_samples(tmp_path / "synthetic.npz", []) == []
    np.savez_compressed(tmp_path / "synthetic.npz", x=images)
    assert [(row.label, len(row.pictures)) for row in load_samples(tmp_path / "synthetic.npz", [])] == [("", 10)]


def test_charts_need_no_style_and_follow_the_page() -> None:
    svg = charts.spending_chart([[1, 0.5], [2, 0.7]])
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label")
    assert "var(--accent)" in svg
    assert not re.search(r"style=|<style|#0[1-6]0[1-6]0[1-6]|metadata|Date", svg)
    ids = re.findall(r'id="([^"]+)"', svg)
    assert set(ids) == set(re.findall(r"#([\w-]+)", svg)), "only what is referred to"
    assert svg == charts.spending_chart([[1, 0.5], [2, 0.7]]), "the same bytes again"
    other = charts.delta_chart({"add_or_remove_one": [[0, 1], [1, 0.1]], "replace_one": [[0, 1], [2, 0.1]]}, 1, 0.1)
    assert not set(ids) & set(re.findall(r'id="([^"]+)"', other)), "two charts of a page never share an id"


# --- accessible and sealed --------------------------------------------------------------------------------------------


class Landmarks(HTMLParser):
    """Ids, anchors, headings and images of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.headings: list[int] = []
        self.bare_images = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [str(given["id"])] if "id" in given else []
        self.anchors += [str(given["href"]).removeprefix("#")] if tag == "a" else []
        self.headings += [int(tag[1])] if tag in ("h1", "h2", "h3") else []
        self.bare_images += tag in ("img", "svg") and not ({"alt", "aria-label"} & given.keys())


def test_every_section_is_reached_and_every_picture_is_told(pages: dict[Edition, str]) -> None:
    for text in pages.values():
        found = Landmarks(text)
        assert len(set(found.ids)) == len(found.ids)
        assert set(found.anchors) <= set(found.ids)
        assert found.headings[0] == 1
        assert found.headings.count(1) == 1
        assert all(after - before <= 1 for before, after in zip(found.headings, found.headings[1:], strict=False))
        assert found.bare_images == 0
        assert '<html lang="en">' in text


def test_a_page_is_sealed(pages: dict[Edition, str]) -> None:
    for text in pages.values():
        assert is_sealed_page(text)
        assert not re.search(r"<script|https?://(?!www\.w3\.org/)", text)
    assert not is_sealed_page("")
    assert not is_sealed_page(head("a{}").replace("a{}", "b{}", 1) + "<p>")
    for body in ("<script>", "<p onclick=x>", "<p style='color:red'>", "<a href=//x>", "<!-- x -->", "<iframe>"):
        assert not is_sealed_page(head("a{}") + body)
    assert is_sealed_page(head("a{}") + "<p>&lt;script&gt;</p>")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_asks_for_nothing_and_complains_of_nothing(statement: dict[str, Any], tmp_path: Path) -> None:
    texts = hostile_texts()[:MOST_CLASSES]
    statement = statement | {"declared_constants": statement["declared_constants"] | {"labels": texts}}
    shown = samples(np.zeros((len(texts), 16, 16, 1), dtype=np.uint8), np.arange(len(texts)), texts)
    path, log = tmp_path / "report.html", tmp_path / "net.json"
    path.write_text(page(report_of(statement, Edition.INTERNAL, RECORDED), shown), encoding="utf-8")
    done = in_chromium(path, tmp_path, f"--log-net-log={log}", "--dump-dom")
    assert "In plain odds" in done.stdout
    assert 'id="verify"' in done.stdout, "to the end"
    assert "CONSOLE" not in done.stderr
    asked = set(re.findall(r'"url":"((?:https?|wss?|ftp)://[^"]+)"', log.read_text()))
    assert not {url for url in asked if "example.org" in url or "//x" in url}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_says_so_if_a_page_breaks_its_policy(pages: dict[Edition, str], tmp_path: Path) -> None:
    """The test above could fail."""
    path = tmp_path / "report.html"
    path.write_text(pages[Edition.RELEASE].replace("<main>", '<main style="color:red"><script>1</script>'))
    assert "CONSOLE" in in_chromium(path, tmp_path, "--dump-dom").stderr


def in_chromium(path: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page without a window; the console goes to stderr."""
    settings = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--no-first-run")
    profile = f"--user-data-dir={folder / 'profile'}"
    words = [str(CHROMIUM), *settings, profile, *options, path.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
