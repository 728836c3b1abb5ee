"""From YAML and flags to one validated config: raw values are merged first, then validated once.

Later wins: defaults < what a file extends < the file < `--section.key value`. Texts of errors name the setting and
never repeat the value.

In the place of a file there may be the name of a recipe that ships with the package, such as mnist/eps1; or that with
another choice of `trainable`: cifar10/eps10+lora-8.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

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
    raw = read_raw(path) if path is not None else {}
    for key, text in overrides:
        put(raw, key, text)
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
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from settings(annotation, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else field.default
            yield f"{prefix}{name}", " ".join((field.description or "").split()), default


def recipes() -> Path:
    """The folder of the recipes that ship with the package."""
    return Path(str(resources.files("dpldm") / "recipes"))


def read_raw(path: Path) -> dict[str, Any]:
    """The raw values of a file, or of a bundled recipe by its name, on top of those that it extends.

    Raises:
        UserError: a file cannot be read, or extends itself.
    """
    name, _, trainable = path.as_posix().partition("+")
    bundled = recipes() / f"{name}.yaml"
    if not bundled.is_file():
        return _extended(path, ())
    named = {"name": re.sub(r"[^A-Za-z0-9._-]", "-", path.as_posix())}
    return named | _extended(bundled, ()) | ({"trainable": trainable} if trainable else {})


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` on top of `below`, section by section."""
    both = {key: overlaid(below[key], value) for key, value in above.items() if _are_sections(below.get(key), value)}
    return {**below, **above, **both}


def _are_sections(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _extended(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A file on top of the one that its `extends` names, a path from where the file lies."""
    raw = _read(path)
    if path.resolve() in above:
        raise UserError(f"The config {path} extends itself: take that `extends` out.")
    below = raw.pop("extends", None)
    if below is None:
        return raw
    if not isinstance(below, str):
        raise UserError(f"The config {path}: `extends` takes the path of one file.")
    return overlaid(_extended(path.parent / below, (*above, path.resolve())), raw)


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


def put(raw: dict[str, Any], key: str, text: str) -> None:
    """Set a dotted key to what a YAML text means.

    Raises:
        UserError: a part of the key is no section.
    """
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
