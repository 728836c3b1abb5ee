"""All content checks of a release, one after the other. Each failure taints: no guarantee covers what was found."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from dpldm.data.names import printable
from dpldm.errors import UserError
from dpldm.models.borrowing import completed
from dpldm.report.head import is_sealed_page
from dpldm.report.wording import public_classes_told
from dpldm.scanning.frozen import Told, changed_setting, changed_weight, is_named, network_of, strange_adapter
from dpldm.scanning.kinds import ADAPTERS, OWN, WEIGHTS, Kind, kind_of_statement
from dpldm.scanning.pictures import extra_in_npz, extra_in_png
from dpldm.scanning.shares import strange_shares
from dpldm.scanning.texts import extra_in_table, parsed, place_or_mark, private_key
from dpldm.scanning.weights import HALF, PUBLIC, SINGLE, foreign_tensor
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
        strange = strange_shares(directory / "model", statement)
        yield Check("public classes", strange is None, strange or "as the plan asks about them", taints=True)
        yield _against_backbone(directory / "model", statement, kind or OWN, backbone)


def _types(path: Path, directory: Path, statement: Statement) -> frozenset[str]:
    """Tensors are stored in half precision, adapters in single; those of a foreign backbone that are copied byte for
    byte, as they are."""
    name = path.relative_to(directory).as_posix()
    if name == f"model/{ADAPTERS}":
        return SINGLE
    public = statement["backbone"]["sha256"].get(name.removeprefix("model/"))
    copied = name.startswith("model/") and public == statement["files"][name]
    return PUBLIC if copied else HALF


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
    """sha256 of what identifies the model, at least one file of every part: what is missing has none."""
    files = {name: digest for name, digest in statement["files"].items() if name.startswith("model/")}
    files = {name.removeprefix("model/"): digest for name, digest in files.items()}
    if kind is None or kind is OWN:
        return {name: files.get(name) for name in WEIGHTS}
    if ADAPTERS in files:
        return {ADAPTERS: files[ADAPTERS]}
    found: dict[str, str | None] = {name: digest for name, digest in files.items() if kind.is_bound(name)}
    present = {name.partition("/")[0] for name in found}
    return found | dict.fromkeys(kind.parts - present)


def _is_a(kind: Kind | None, model: Path) -> bool:
    """Whether the model says that it is of the kind that its statement's backbone is of. Adapters are of the kind that
    takes them, and nothing lies beside them."""
    if kind is not None and kind.takes_adapters and (model / ADAPTERS).is_file():
        beside = {path.name for path in model.iterdir()} - {ADAPTERS, "backbone.json", "README.md"}
        return not beside
    try:
        index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
        return kind is not None and index["_class_name"] in kind.pipelines
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _against_backbone(model: Path, statement: Statement, kind: Kind, given: Path | None) -> Check:
    """What was not tuned is the public backbone's, bit for bit; of adapters, that they add to what was tuned."""
    name, declared, bound = "frozen weights", statement["declared_constants"], statement["backbone"]["sha256"]
    public = given if given is not None else _bundled(statement)
    if given is not None and not (given / "model_index.json").is_file():
        raise UserError(f"{given} is no backbone: give the directory of the public backbone, with a model_index.json.")
    if public is None:
        return _without_backbone(name, model / ADAPTERS, declared, kind)
    try:
        if not is_named(public, bound):
            return Check(name, False, f"{printable(public.name)} is not the backbone that the statement names")
        theirs = network_of(public, bound, kind, ours=False)
        if (model / ADAPTERS).is_file():
            different = strange_adapter(model / ADAPTERS, theirs, declared, kind.called)
        else:
            released = [file.removeprefix("model/") for file in statement["files"] if file.startswith("model/")]
            ours = network_of(model, released, kind, ours=True)
            different = changed_setting(model, public, kind, declared)
            told = Told(len(declared["labels"]), public_classes_told(statement["plan"]))
            different = different or changed_weight(ours, theirs, declared, kind.called, told)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        different = f"something unreadable ({type(error).__name__})"
    detail = f"equal to those of {printable(public.name)}" if different is None else f"{printable(different)} differs"
    return Check(name, different is None, detail, taints=True)


def _without_backbone(name: str, adapters: Path, declared: Mapping[str, Any], kind: Kind) -> Check:
    """Nothing to compare with: of adapters, names and ranks are looked at all the same."""
    try:
        different = strange_adapter(adapters, None, declared, kind.called) if adapters.is_file() else None
    except (ValueError, LookupError, TypeError, AttributeError):
        different = ADAPTERS
    if different is not None:
        return Check(name, False, f"{printable(different)} is none of the declared adapters", taints=True)
    return Check(name, True, "not compared: give the public backbone with --backbone DIR", done=False)


def _bundled(statement: Statement) -> Path | None:
    """The bundled backbone of the statement's name, if it is the same one."""
    name = str(statement["backbone"]["name"])
    if not BARE_NAME.fullmatch(name):
        return None
    directory = Path(str(resources.files("dpldm"))) / "backbones" / name
    try:
        card = json.loads((directory / "backbone.json").read_text(encoding="utf-8"))
        return completed(directory) if card["sha256"] == statement["backbone"]["sha256"] else None
    except (OSError, ValueError, UserError):  # of the last kind: what it borrows is not installed here
        return None
