"""What the documents claim to be tested is tested: every test that they name exists."""

import re
from pathlib import Path

import pytest
import yaml

import dpldm

ROOT = Path(__file__).parents[1]


def named_tests(page: str) -> list[tuple[str, str]]:
    """(file below tests/, test or "") of every mention; `::test_x` belongs to the file named last."""
    found, file = [], ""
    for path, test in re.findall(r"`([\w/]+\.py)?(?:::(test_\w+))?`", page):
        file = path or file
        if (path and "test_" in path) or (test and not path):
            found.append((file, test))
    return found


@pytest.mark.parametrize("page", ["docs/privacy.md"])
def test_every_test_that_is_named_exists(page: str) -> None:
    mentions = named_tests((ROOT / page).read_text(encoding="utf-8"))
    assert len(mentions) > 40
    for file, test in mentions:
        path = ROOT / "tests" / file
        assert path.is_file(), file
        assert f"def {test}(" in path.read_text(encoding="utf-8") or not test, f"{file}::{test}"


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys(), "what the format requires"
    assert (cited["version"], cited["license"]) == (dpldm.__version__, "Apache-2.0")
    assert "2305.15759" in cited["references"][0]["url"]


def test_every_page_is_reached_from_the_front_page() -> None:
    """The slow test_site.py builds the site, which fails on a page that is not."""
    listed = re.findall(r"^([a-z-]+)$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "docs").glob("*.md") if path.stem != "index")
