"""The defects of `make mutants` still fit the code: each text stands once where it is changed, each test is there.

Whether each test notices is what `make mutants` itself finds out, in minutes.
"""

import ast
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def mutants() -> list[Any]:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # its dataclass looks for it there
    spec.loader.exec_module(module)
    found: list[Any] = module.MUTANTS
    return found


@cache
def parsed(path: Path) -> tuple[str, ast.Module]:
    text = path.read_text(encoding="utf-8")
    return text, ast.parse(text)


def source_of(path: Path, qualified: str) -> str:
    """Text of a function or class, such as Owner.method; empty if it is not there."""
    text, place = parsed(path)
    for name in qualified.split("."):
        inside = (node for node in ast.walk(place) if isinstance(node, ast.FunctionDef | ast.ClassDef))
        place = next((node for node in inside if node.name == name), None)  # type: ignore[assignment]
        if place is None:
            return ""
    return ast.get_source_segment(text, place) or ""


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_a_defect_fits_the_code_and_has_its_test(mutant: Any) -> None:
    module, _, qualified = mutant.place.partition(":")
    source = source_of(ROOT / "src" / "dpldm" / f"{module.replace('.', '/')}.py", qualified)
    assert source.count(mutant.old) == 1
    file, _, test = mutant.test.partition("::")
    assert not test or source_of(ROOT / file, test.partition("[")[0])
