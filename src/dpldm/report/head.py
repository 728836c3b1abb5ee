"""The first lines of every report page: a policy by which a browser loads nothing, runs nothing and sends nothing.

`verify` checks for exactly this beginning; nothing further down in a page can lift a policy that stands above it.
"""

import base64
import hashlib
from html.parser import HTMLParser

ELEMENTS = frozenset(
    {
        *("meta", "title", "body", "header", "nav", "main", "section", "article", "footer", "h1", "h2", "h3", "p", "a"),
        *("strong", "code", "pre", "span", "ul", "li", "dl", "div", "dt", "dd", "details", "summary", "img"),
        *("figure", "figcaption", "table", "caption", "thead", "tbody", "tr", "th", "td"),
        *("svg", "g", "path", "use", "defs", "clippath", "rect", "text"),
    }
)
"""What a report is made of."""
ADDRESSES = frozenset(
    {
        *("href", "src", "xlink:href", "srcset", "action", "formaction", "data", "poster", "background", "cite"),
        *("longdesc", "ping", "manifest"),
    }
)


def policy(style: str, forms: str = "'none'") -> str:
    """The policy of a page with one style sheet, which is allowed by its hash.

    Args:
        style: the text inside the page's style element, byte for byte.
        forms: where its forms may go.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    sources = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:"
    return f"{sources}; base-uri 'none'; form-action {forms}"


def head(style: str, forms: str = "'none'") -> str:
    """The beginning of a page under its `policy`."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(style, forms)}">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<style>{style}</style>\n"
    )


def is_sealed_page(page: str) -> bool:
    """Whether a page begins as `head` has it, and holds no element or address that could act.

    A policy in a page does not stop a link from being followed or a page from forwarding: so only the elements that a
    report is made of, no handler, and no address but anchors and images of its own.
    """
    opened, _, rest = page.partition("<style>")
    style, closed, body = rest.partition("</style>\n")
    if not closed or head(style) != f"{opened}<style>{style}</style>\n":
        return False
    reader = _Reader()
    reader.feed(body)
    reader.close()
    return reader.harmless


class _Reader(HTMLParser):
    """Notices what a report has not."""

    def __init__(self) -> None:
        super().__init__()
        self.harmless = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            address = name in ADDRESSES and not (value or "").startswith(("#", "data:image/png;base64,"))
            self.harmless &= not (address or name.startswith("on") or name in ("style", "http-equiv"))
        self.harmless &= tag in ELEMENTS

    handle_startendtag = handle_starttag

    def handle_decl(self, decl: str) -> None:
        self.harmless = False

    def handle_comment(self, data: str) -> None:
        self.harmless = False
