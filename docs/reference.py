"""Pages that are made from the code: every command's help, and every setting. A Sphinx extension of two directives."""

import argparse
import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NoReturn

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from dpldm import BackboneRecipe
from dpldm.cli import COMMANDS, OneSentenceParser
from dpldm.config import RunConfig
from dpldm.loading import settings

_COLUMNS = "88"  # of the help texts


class _Made(Exception):
    """A command has made its parser, and is stopped before it does anything."""


class _OnlyMade(OneSentenceParser):
    def parse_known_args(self, *_: Any, **__: Any) -> NoReturn:
        raise _Made


def parsers(name: str) -> Iterator[argparse.ArgumentParser]:
    """The parser of a command, then those of its actions (`dpldm public icons`)."""
    parser = _OnlyMade(prog=f"dpldm {name}", formatter_class=argparse.RawDescriptionHelpFormatter)
    try:
        import_module(COMMANDS[name].module).main(name, parser, [])
    except _Made:
        yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


class CommandLine(SphinxDirective):
    """A section for each command: what it is for, and its help."""

    def run(self) -> list[nodes.Node]:
        """The page as nodes."""
        os.environ["COLUMNS"] = _COLUMNS
        return self.parse_text_to_nodes("\n".join(map(_section, COMMANDS)), allow_section_headings=True)


class Settings(SphinxDirective):
    """A definition for each setting of a run (or of a recipe): its default and what it does."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The list as nodes."""
        model = {"run": RunConfig, "recipe": BackboneRecipe}[self.arguments[0]]
        parts, section = list[str](), None
        for key, description, default in settings(model):
            head = key.rpartition(".")[0]
            if head != section:
                section = head
                parts.append(f"## {head}\n" if head else "## At the top\n")
            shown = "" if default is None or default == () else f" ({_value(default)})"
            parts.append(f"**`{key}`**{shown}\n: {_escaped(description)}\n")
        return self.parse_text_to_nodes("\n".join(parts), allow_section_headings=True)


def _section(name: str) -> str:
    summary = COMMANDS[name].summary
    helps = "\n\n".join(parser.format_help().partition("settings (in the file")[0].rstrip() for parser in parsers(name))
    return f"## `{name}`\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{helps}\n```\n"


def _value(default: object) -> str:
    return "required" if default == "required" else f"default `{default}`"


def _escaped(text: str) -> str:
    """The description as text: no character of it is Markdown."""
    return "".join(f"\\{letter}" if letter in "\\*_[]{}<>$|" else letter for letter in text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("command-line", CommandLine)
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True}
