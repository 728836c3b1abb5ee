"""The page in a real browser: no complaint on its console, no request to elsewhere, and everything by keyboard.

Needs Playwright and a Chromium of the system; skipped where either is missing.
"""

import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from serving import served

from dpldm.config import RunConfig
from dpldm.releasing import release
from dpldm.report import page as reports
from dpldm.reporting import report
from dpldm.run import Run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@dataclass
class Visit:
    """An open page, and what went wrong or out since."""

    page: Any
    address: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def address(finished: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a release of images, model and report is served."""
    output = tmp_path_factory.mktemp("served")
    shutil.copytree(finished.runtime.output, output, dirs_exist_ok=True)
    config = finished.model_copy(update={"runtime": finished.runtime.model_copy(update={"output": output})})
    target = release(config, "both")
    with pytest.MonkeyPatch.context() as patch:
        drawn = dict.fromkeys(("guesses", "delta", "attack", "spending"), "<svg></svg>")
        patch.setattr(reports, "_charts", lambda report: drawn)
        report(Run(config).directory)
    with served(target) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as made:
        opened = made.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def visit(address: str, browser: Any) -> Iterator[Visit]:
    page = browser.new_page(viewport={"width": 390, "height": 800}, accept_downloads=True)
    visit = Visit(page, address)
    page.on("console", lambda message: visit.complaints.append(message.text))
    page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    page.on("requestfailed", lambda request: visit.complaints.append(request.url))
    page.on("request", lambda request: visit.requests.append(request.url))
    yield visit
    page.close()


def focused(page: Any) -> str:
    """What the keyboard is at, by what a person would call it."""
    found: str = page.evaluate(
        "(e => e.getAttribute('name') || e.textContent.trim() || e.tagName)(document.activeElement)"
    )
    return found


def tab_to(page: Any, name: str) -> None:
    """Press Tab until something is reached."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if focused(page) == name:
            return
    raise AssertionError(f"{name} is not reached by keyboard")


def test_all_pages_are_seen_without_a_complaint_or_a_request_to_elsewhere(visit: Visit) -> None:
    for path in ("/", "/images?kind=0&number=4", "/draw", "/draw?number=3&guidance=2", "/report"):
        visit.page.goto(visit.address + path)
    assert visit.complaints == []
    ours = [url for url in visit.requests if url.startswith((visit.address, "data:"))]
    assert ours == visit.requests
    assert len({url for url in ours if not url.startswith("data:")}) >= 6, "the pages, and what / leads to"


def test_a_page_that_breaks_its_policy_would_be_noticed(visit: Visit) -> None:
    """The test above could fail."""
    visit.page.goto(visit.address)
    visit.page.evaluate("document.body.innerHTML += '<img src=//example.org/x.png>'")
    visit.page.wait_for_timeout(200)
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_everything_is_reached_by_keyboard(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    page.goto(visit.address)
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the images"
    tab_to(page, "Draw new ones")
    page.keyboard.press("Enter")
    page.wait_for_url("**/draw")
    tab_to(page, "kind")
    page.keyboard.press("l")  # light
    tab_to(page, "number")
    page.keyboard.type("3")
    tab_to(page, "seed")
    page.keyboard.type("9")
    page.keyboard.press("Enter")
    page.wait_for_url("**/draw?**seed=9**")
    assert page.locator("#images img").count() == 3
    assert page.get_by_text("Drawing…").is_hidden()
    tab_to(page, "Download these (zip)")
    with page.expect_download() as coming:
        page.keyboard.press("Enter")
    coming.value.save_as(tmp_path / "images.zip")
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        assert "light/000002.png" in archive.namelist()
    tab_to(page, "What it rests on")
    page.keyboard.press("Enter")
    assert page.locator(".assumptions").is_visible()


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_window(width: int, visit: Visit) -> None:
    visit.page.set_viewport_size({"width": width, "height": 800})
    for path in ("/images", "/draw?number=12"):
        visit.page.goto(visit.address + path)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
