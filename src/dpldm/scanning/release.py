"""All content checks of a release, one after the other. Each failure taints: no guarantee covers what was found."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from dpldm.data.names import printable
from dpldm.errors import UserError
from dpldm.report.head import is_sealed_page
from dpldm.scanning.kinds import OWN, WEIGHTS, Kind, kind_of_statement
from dpldm.scanning.pictures import extra_in_npz, extra_in_png
from dpldm.scanning.texts import extra_in_table, parsed, place_or_mark, private_key
from dpldm.scanning.weights import HALF, PUBLIC, changed_frozen_weight, foreign_tensor, public_half
from dpldm.verdict import Check

BARE_NAME = re.compile(r"[\w.+ -]{1,100}")

Statement = Mapping[str, Any]


def content_checks(directory: Path, statement: Statement, backbone: Path | None) -> Iterator[Check]:
    """What the files of a release hold, in a fixed order. Files that are not there, or are links, are others' affair.

    Args:
        backbone: directory of the public backbone; None: the bundled one of that name, if it is the same.
    """
    files = [directory / name for name in sorted(statement["files"])]
    files = [path for path in files if path.is_file() and not path.is_symlink()]
    declared = statement["declared_constants"]

    def found(suffix: str, extra: Callable[[Path], str | None]) -> str | None:
        """The first file of a kind with something extra in it, and what that is."""
        for path in files:
            if path.name.endswith(suffix) and (what := extra(path)) is not None:
                return f"{printable(path.relative_to(directory).as_posix())}: {printable(what)}"
        return None

    labels, kind, prompts = declared["labels"], kind_of_statement(statement), declared.get("prompts", [])
    images = [name.removeprefix("synthetic/") for name in statement["files"] if name.endswith(".png")]
    scans = {
        "images bare": found(".png", lambda path: extra_in_png(path, declared))
        or found(".npz", lambda path: extra_in_npz(path, declared)),
        "table bare": found(".csv", lambda path: extra_in_table(path, labels, images, prompts)),
        "weights bare": found(".safetensors", lambda path: foreign_tensor(path, _types(path, directory, statement))),
        "texts bare": _text_of_statement(statement)
        or found(".md", lambda path: place_or_mark(path.read_text(encoding="utf-8"), labels))
        or found(".txt", lambda path: place_or_mark(path.read_text(encoding="utf-8"), labels))
        or found(".json", lambda path: _extra_in_json(path, labels))
        or found(".html", lambda path: _extra_in_page(path, labels)),
    }
    for name, what in scans.items():
        yield Check(name, what is None, what or "nothing beside what belongs there", taints=True)
    if any(name.startswith("model/") for name in statement["files"]):
        yield _debt(directory / "model", statement, kind)
        if kind is OWN or kind is None:
            yield _against_backbone(directory / "model", statement, backbone)
        else:
            yield _not_compared(statement, backbone)


def _types(path: Path, directory: Path, statement: Statement) -> frozenset[str]:
    """Tensors are stored in half precision; those of a foreign backbone that are copied byte for byte, as they are."""
    name = path.relative_to(directory).as_posix()
    public = statement["backbone"]["sha256"].get(name.removeprefix("model/"))
    copied = name.startswith("model/") and public == statement["files"][name]
    return PUBLIC if copied and kind_of_statement(statement) is not OWN else HALF


def _text_of_statement(statement: Statement) -> str | None:
    labels = statement["declared_constants"]["labels"]
    rest = {**statement, "declared_constants": {**statement["declared_constants"], "labels": []}, "files": {}}
    what = place_or_mark(json.dumps(rest, ensure_ascii=False), labels)
    return None if what is None else f"privacy.json: {what}"


def _extra_in_json(path: Path, labels: list[str]) -> str | None:
    text = path.read_text(encoding="utf-8")
    try:
        value = parsed(text)
        key = None if path.parent.name == "tokenizer" else private_key(value)  # its keys are words
    except ValueError:
        return "no JSON, or a key that stands twice"
    return place_or_mark(text, labels) if key is None else f"a value {key}"


def _extra_in_page(path: Path, labels: list[str]) -> str | None:
    text = path.read_text(encoding="utf-8")
    return place_or_mark(text, labels) if is_sealed_page(text) else "no page that is sealed against loading anything"


def _debt(model: Path, statement: Statement, kind: Kind | None) -> Check:
    """Weights that were tuned say so, and at what price: they must never pass for a public backbone."""
    claim = statement["guarantee"]
    owed = {key: claim[key] for key in ("epsilon", "delta", "unit", "adjacency")}
    owed["dataset_id"] = statement["ledger"]["dataset_id"]
    try:
        card = json.loads((model / "backbone.json").read_text(encoding="utf-8"))
        told = card["tuned"] == owed and card["sha256"] == _hashes(statement, kind)
    except (OSError, ValueError, LookupError, TypeError):
        told = False
    passed = told and _is_a(kind, model)
    return Check("model card", passed, "it tells what the weights were tuned on, and their hashes")


def _hashes(statement: Statement, kind: Kind | None) -> Mapping[str, str | None]:
    """sha256 of the model's weights, at least one file of every part: what is missing has none."""
    files = {name: digest for name, digest in statement["files"].items() if name.startswith("model/")}
    files = {name.removeprefix("model/"): digest for name, digest in files.items()}
    if kind is None or kind is OWN:
        return {name: files.get(name) for name in WEIGHTS}
    found: dict[str, str | None] = {name: digest for name, digest in files.items() if kind.is_weights(name)}
    present = {name.partition("/")[0] for name in found}
    return found | dict.fromkeys(kind.parts - present)


def _is_a(kind: Kind | None, model: Path) -> bool:
    """Whether the model says that it is of the kind that its statement's backbone is of."""
    try:
        index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
        return kind is not None and index["_class_name"] in kind.pipelines
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _against_backbone(model: Path, statement: Statement, given: Path | None) -> Check:
    """What was not tuned is the public backbone's, bit for bit."""
    name = "frozen weights"
    public = given if given is not None else _bundled(statement)
    if public is None:
        return Check(name, True, "not compared: give the public backbone with --backbone DIR", done=False)
    try:
        hashes = json.loads((public / "backbone.json").read_text(encoding="utf-8"))["sha256"]
        if hashes != statement["backbone"]["sha256"]:
            return Check(name, False, f"{printable(public.name)} is not the backbone that the statement names")
        settings = (public_half(model), public_half(public))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if given is not None and not (given / "backbone.json").is_file():
            raise UserError(f"{given} is no backbone: give a directory made by `dpldm pretrain`.") from error
        return Check(name, False, "settings of the model cannot be read")
    different = next((part for part in settings[0] if settings[0][part] != settings[1][part]), None)
    if different is None:
        try:
            different = changed_frozen_weight(model / WEIGHTS[1], public / WEIGHTS[1], statement["declared_constants"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            different = f"unreadable ({type(error).__name__})"
    detail = f"equal to those of {printable(public.name)}" if different is None else f"{printable(different)} differs"
    return Check(name, different is None, detail, taints=True)


def _not_compared(statement: Statement, given: Path | None) -> Check:
    """Of other kinds than our own only the identity of the given backbone is looked at, and what was copied byte for
    byte (`public weights`): whether what was not tuned in denoiser and text encoder is public stays open, and so does
    what a tokenizer holds."""
    name = "frozen weights"
    if given is None:
        return Check(name, True, "not compared: this kind of model is not compared with its backbone", done=False)
    if not (given / "model_index.json").is_file():
        raise UserError(f"{given} is no backbone: give the directory of the public backbone, with a model_index.json.")
    for file, digest in statement["backbone"]["sha256"].items():
        half = file.removesuffix(".safetensors") + ".fp16.safetensors"  # stored so, it counts under the plain name
        path = next((given / each for each in (file, half) if (given / each).is_file()), None)
        if path is None or _digest(path) != digest:
            return Check(name, False, f"{printable(given.name)} is not the backbone that the statement names")
    return Check(name, True, f"not compared; {printable(given.name)} is the backbone of the statement", done=False)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bundled(statement: Statement) -> Path | None:
    """The bundled backbone of the statement's name, if it is the same one."""
    name = str(statement["backbone"]["name"])
    if not BARE_NAME.fullmatch(name):
        return None
    directory = Path(str(resources.files("dpldm"))) / "backbones" / name
    try:
        card = json.loads((directory / "backbone.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return directory if card["sha256"] == statement["backbone"]["sha256"] else None
