"""Sphinx settings: `make docs` builds the site from these pages, and fails on a link or a name that leads nowhere."""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import dpldm

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

project, author, copyright = "dpldm", "The dpldm authors", "The dpldm authors, Apache-2.0"
version = release = dpldm.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference"]
exclude_patterns = ["_static"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

default_role = "code"  # one backtick in a docstring is a name
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88

html_theme = "furo"  # system fonts, light and dark, nothing from elsewhere
html_title = "dpldm"
html_static_path = ["_static"]
html_css_files = ["dpldm.css"]
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
html_show_sourcelink = False
html_copy_source = False

BORROWED = {
    "index": "README.md",
    "results": "results/README.md",
    "utility": "results/utility.md",
    "benchmarks": "benchmarks/README.md",
    "changelog": "CHANGELOG.md",
}
"""Pages whose text lies elsewhere in the repository, before what their own file adds to it."""


def borrow(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the text of borrowed pages in their place, and make links of all pages lead to pages of the site."""
    if page in BORROWED:
        path = ROOT / BORROWED[page]
        source[0] = f"{rebased(path.read_text(encoding='utf-8'), path.parent)}\n\n{source[0]}"
    else:
        source[0] = rebased(source[0], HERE)


def rebased(text: str, folder: Path) -> str:
    """Relative links of a text that lies in `folder`, as seen from here; to borrowed pages by their new names."""
    names = {ROOT / path: f"{page}.md" for page, path in BORROWED.items()}

    def link(found: re.Match[str]) -> str:
        path, mark, anchor = found[1].partition("#")
        place = Path(os.path.normpath(folder / path))
        return f"]({names.get(place) or os.path.relpath(place, HERE)}{mark}{anchor})"

    return re.sub(r"\]\((?!\w+:|#)([^)\s]+)\)", link, text)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", borrow)
