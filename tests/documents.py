"""Blocks of the documents: what stands between ``` marks, in which language, and whether it can be run here."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*")


@dataclass(frozen=True)
class Block:
    """One block of a page."""

    page: str
    line: int
    language: str  # empty for an indented one
    text: str
    not_run: str | None  # why not, as the page says in a comment before it

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    found, before = list[Block](), ""
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            reason = _NOT_RUN.fullmatch(before)
            line = 1 + (token.map or [0])[0]
            found.append(Block(page, line, token.info.strip(), token.content, reason and reason[1]))
        before = token.content if token.type == "html_block" else ""
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a shell block; optional ones, in [brackets], are taken."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.replace("[-", "-"), comments=True) for line in lines]
    return [command for line in words for command in _split(line) if command]


def _split(words: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            found.append([])
        else:
            found[-1].append(word.removesuffix("]") if "[" not in word else word)
    return found
