"""From YAML and flags to one validated config: raw values are merged first, then validated once.

Later wins: defaults < file < `--section.key value`. Texts of errors name the setting and never repeat the value.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dpldm.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
MAX_CONFIG_BYTES = 1_000_000
KEY_TWICE = "a key stands twice"


def load_config(model: type[Model], path: Path | None, overrides: Sequence[tuple[str, str]] = ()) -> Model:
    """Read `path`, put `overrides` (dotted key, YAML text) on top, validate.

    Raises:
        UserError: the file cannot be read, a key is unknown, or a value is out of range.
    """
    raw = _read(path) if path is not None else {}
    for key, text in overrides:
        _put(raw, key, text)
    return validate(model, raw)


def validate(model: type[Model], raw: Mapping[str, Any]) -> Model:
    """`model` from raw values.

    Raises:
        UserError: names every offending key and what to change.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError("  ".join(_explain(model, problem) for problem in error.errors())) from None


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted key, description, default) of every setting, in the order of the classes."""
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            yield from settings(section, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else field.default
            yield f"{prefix}{name}", " ".join((field.description or "").split()), default


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model of a setting that is a section, also of one that may be left out."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:
        remedy = (
            "save it as UTF-8 text" if isinstance(error, UnicodeDecodeError) else "check the path given with --config"
        )
        raise UserError(f"The config {path} cannot be read: {remedy}.") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise UserError(f"The config {path} is larger than 1 MB: check the path given with --config.")
    try:
        raw = _parse(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        twice = getattr(error, "problem", None) == KEY_TWICE
        remedy = "a key stands twice in a section, keep one" if twice else "correct its indentation or quoting"
        raise UserError(f"The config {path} is not valid YAML{line}: {remedy}.") from None
    if not isinstance(raw, dict):
        raise UserError(f"The config {path} must hold sections such as `data:` and `privacy:`.")
    return {key: value for key, value in raw.items() if value is not None}  # `sampling:` with all lines commented out


def _parse(text: str) -> Any:
    """A YAML document as plain values; whatever is wrong with it is a `yaml.YAMLError`."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError:
        raise
    except (ValueError, LookupError, AttributeError, RecursionError) as error:  # a 13th month, a tag without its value
        raise yaml.YAMLError("a value that YAML cannot read") from error


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, which configs do not need and which can be nested into bombs.

    Also reads 1e-5 as a number, which YAML 1.1 takes for text, and refuses a key that stands twice in a section:
    of two budgets, silence must not choose one.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, KEY_TWICE, node.start_mark)
        return mapping


_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _put(raw: dict[str, Any], key: str, text: str) -> None:
    try:
        value = _parse(text)
    except yaml.YAMLError:
        value = text
    *sections, leaf = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise UserError(f"--{key}: {section} is not a section.")
    raw[leaf] = value


def _explain(model: type[BaseModel], problem: Any) -> str:
    """One sentence for one pydantic problem."""
    key = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
    known = [name for name, _, _ in settings(model)]
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f": did you mean {close[0]}?" if close else ": `dpldm run --help` lists all settings."
        return f"{key} is not a setting{hint}"
    if problem["type"] == "missing":
        return f"{key} is missing: set it in the config or with --{key}."
    text = problem["msg"].removeprefix("Value error, ")
    remedy = ", in quotes" if problem["type"] == "string_type" else ""
    if problem["type"] == "value_error" and key not in known:  # a rule about several settings, which names them itself
        return f"{text}."
    return f"{key} is not valid: {text[0].lower()}{text[1:]}{remedy}."
