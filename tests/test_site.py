"""The site of the documents: it builds without a complaint, and its pages load nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from documents import PAGES, ROOT

pytest.importorskip("sphinx", reason="needs the extra docs")
LOADED = re.compile(r"""<(?:link\b[^>]*\bhref|(?:script|img|iframe|source)\b[^>]*\bsrc)=["']([^"']+)""")


def build(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    words = ["-m", "sphinx", "--quiet", "--fail-on-warning", "--doctree-dir", str(output / "trees")]
    return subprocess.run(
        [sys.executable, *words, str(source), str(output / "site")], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built")
    done = build(ROOT / "docs", output)
    assert (done.returncode, done.stderr) == (0, "")
    return output / "site"


def test_there_is_a_page_for_each_document(site: Path) -> None:
    names = {Path(page).stem for page in PAGES if page.startswith("docs/")}
    assert names <= {page.stem for page in site.glob("*.html")}
    front = (site / "index.html").read_text(encoding="utf-8")
    assert "A folder of private images in" in front, "the README is the front page"
    assert 'href="privacy.html"' in front


def test_references_hold_commands_settings_and_functions(site: Path) -> None:
    for page, text in (
        ("command-line", "usage: dpldm memorisation"),
        ("command-line", "usage: dpldm public icons"),
        ("settings", "privacy.max_images_per_group"),
        ("recipes", "diffusion.pseudo_classes"),
        ("api", "Tune the backbone on private images"),
    ):
        assert text in (site / f"{page}.html").read_text(encoding="utf-8"), (page, text)


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    found = [(page.name, loaded) for page in site.glob("*.html") for loaded in LOADED.findall(page.read_text("utf-8"))]
    assert len(found) > 100
    assert not [place for place in found if re.match(r"\w+:|//", place[1]) and not place[1].startswith("data:")]
    styles = " ".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"url\(\s*['\"]?(?:https?:|//)|@import", styles)


def test_a_link_that_leads_nowhere_fails(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text('extensions = ["myst_parser"]\n')
    for link, code in (("index.md", 0), ("nowhere.md", 1)):
        (source / "index.md").write_text(f"# A page\n\n[there]({link})\n")
        assert build(source, tmp_path / link).returncode == code
