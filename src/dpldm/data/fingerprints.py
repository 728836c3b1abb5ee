"""Which state of the data each plan was spent on, for its holder: INTERNAL, in a file beside the ledger.

The ledger itself knows nothing of the data: its head is published, and a hash that depends on private records, however
it is keyed, is more than the proof allows. What was spent stays spent, whatever the fingerprints say.
"""

import json
import secrets
from itertools import pairwise
from pathlib import Path
from typing import Any

from dpldm.data.ingest import keyed_fingerprint
from dpldm.data.source import Source
from dpldm.privacy.durable import replace_file


def note_fingerprint(ledger: Path, plan: str, source: Source) -> None:
    """Keep the fingerprint of the data under the digest of the plan that is about to be spent on it.

    A file that is lost or damaged is begun anew: no guarantee rests on it.
    """
    known = _read(ledger) or {"key": secrets.token_hex(32), "plans": {}}
    known["plans"][plan] = keyed_fingerprint(source, bytes.fromhex(known["key"]))
    replace_file(_path(ledger), json.dumps(known, indent=1).encode(), mode=0o600)


def plans_after_a_change(ledger: Path, plans: list[str]) -> set[str]:
    """Those of `plans`, oldest first, whose data was not that of the plan before. Where either is unknown: none."""
    known = (_read(ledger) or {"plans": {}})["plans"]
    return {now for before, now in pairwise(plans) if {before, now} <= known.keys() and known[before] != known[now]}


def _path(ledger: Path) -> Path:
    return ledger.with_name(ledger.name + ".fingerprints")


def _read(ledger: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(_path(ledger).read_text(encoding="utf-8"))
        bytes.fromhex(known["key"]), dict(known["plans"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return dict(known)
