"""Templates and what fills them: text is escaped, and nothing in it is invisible."""

from importlib import resources
from typing import Any

import jinja2

from dpldm.data.names import printable
from dpldm.progress import duration
from dpldm.report.wording import percent, upper


def template_text(name: str) -> str:
    """A file of the templates' folder, as it is."""
    return (resources.files("dpldm.report") / "templates" / name).read_text(encoding="utf-8")


def environment() -> jinja2.Environment:
    """Templates by the names of their files; a name that is not filled in is an error."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    made.filters |= {"percent": percent, "duration": duration, "short": short, "bound": upper}
    return made


def _visible(value: Any) -> Any:
    """Text with control characters, line breaks and bidirectional overrides written out; autoescape does the rest."""
    return printable(value) if type(value) is str else value


def short(number: float) -> str:
    """Up to three digits."""
    return f"{number:.3g}"
