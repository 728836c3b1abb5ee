"""The shares of public classes beside a released model: an answer of the plan, and nothing beside it. No torch."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpldm.report.wording import public_classes_told
from dpldm.scanning.kinds import SHARES
from dpldm.scanning.texts import parsed


def strange_shares(model: Path, statement: Mapping[str, Any]) -> str | None:
    """What is wrong with the shares of a released model, or None.

    There are some if its plan asks for them, a row for each class and a share for each public class that it asks
    about; rows add up to 1.
    """
    path, classes = model / SHARES, len(statement["declared_constants"]["labels"])
    publics = public_classes_told(statement["plan"])
    if not publics:
        return f"{SHARES}, which the plan does not ask for" if path.exists() else None
    try:
        content = parsed(path.read_text(encoding="utf-8"))
        rows = content["shares"]
        plain = set(content) == {"shares"} and len(rows) == classes
        plain = plain and all(_is_distribution(row, publics) for row in rows)
    except (OSError, ValueError, LookupError, TypeError):
        plain = False
    return None if plain else f"{SHARES}, which holds no shares of {publics} public classes in {classes}"


def _is_distribution(row: Any, length: int) -> bool:
    return (
        type(row) is list
        and len(row) == length
        and all(type(share) is float and 0 <= share <= 1 for share in row)
        and math.isclose(sum(row), 1, abs_tol=1e-9)
    )
