"""`dpldm ledger show|verify`: what has been spent on a data set, and whether the record of it is whole."""

import argparse
import json
from pathlib import Path
from typing import Any

from dpldm.data.fingerprints import plans_after_a_change
from dpldm.data.names import printable
from dpldm.errors import UserError
from dpldm.privacy.ledger import Head, Ledger, LedgerError, read_ledger
from dpldm.report.wording import asks_alone


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Read a ledger; nothing is ever written."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|verify")
    show = actions.add_parser("show", help="plans, attempts and budget of a data set")
    verify = actions.add_parser("verify", help="check every line, and that published heads belong to it")
    for action in (show, verify):
        action.add_argument("ledger", help="dataset_id of a ledger in the account's folder, or a file")
    verify.add_argument(
        "--release",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a release of this data set; repeatable",
    )
    given = parser.parse_args(words)
    path = _locate(given.ledger)
    try:
        entries = read_ledger(path)
    except LedgerError as error:
        raise UserError(str(error)) from None
    if given.action == "show":
        changed = plans_after_a_change(path, [entry["plan"] for entry in entries if entry["event"] == "plan"])
        print(_shown(entries, changed))
        return 0
    return _verified(Ledger(path, entries), given.release)


def _locate(name: str) -> Path:
    from platformdirs import user_data_path

    path = Path(name)
    if path.is_file():
        return path
    folder = user_data_path("dpldm") / "ledgers"
    if (folder / f"{name}.jsonl").is_file():
        return folder / f"{name}.jsonl"
    known = ", ".join(sorted(entry.stem for entry in folder.glob("*.jsonl"))) or "none yet"
    raise UserError(f"There is no ledger {name!r}: give a file, or a dataset_id of this account ({known}).")


def _shown(entries: list[dict[str, Any]], changed: set[str]) -> str:
    created, plans = entries[0], [entry for entry in entries if entry["event"] == "plan"]
    cap = "none (public benchmark)" if created["cap"] is None else "epsilon {:g}, delta {:g}".format(*created["cap"])
    lines = [f"data set  {created['dataset_id']}", f"cap       {cap}", "", "plans, each paid for whole when it began:"]
    for entry in plans:
        constants = entry["constants"]
        used = sum(line["event"] == "attempt" and line["plan"] == entry["plan"] for line in entries)
        budget = f"epsilon {constants['epsilon']:g}, delta {constants['delta']:g}"
        note = "; INTERNAL: the data had changed since the plan before" if entry["plan"] in changed else ""
        if constants.get("kind") == "selection":
            state = f"selection among {constants['candidates']} candidates, {('not begun', 'begun', 'ended')[used]}"
        elif asks_alone(constants):
            state = "queries alone, no gradients"
        else:
            state = f"{used} of {constants['steps'] + constants['reserve_steps']} attempts made"
        lines.append(f"  {printable(constants['run'])}: {budget}, {state}{note}")
        for query in constants.get("queries", ()):
            asked = sum(
                line["event"] == "query" and (line["plan"], line["query"]) == (entry["plan"], query["kind"])
                for line in entries
            )
            paid = f"{asked} of {query.get('rounds', 1) + query['reserve']} attempts made"
            lines.append(f"    query {printable(query['kind'])}: noise {query['noise_multiplier']:g}, {paid}")
    spent = [sum(entry["constants"][key] for entry in plans) for key in ("epsilon", "delta")]
    head = entries[-1]
    lines += ["", f"reserved  epsilon {spent[0]:g}, delta {spent[1]:g}", f"head      {head['seq']} {head['hash']}"]
    return "\n".join(lines)


def _verified(ledger: Ledger, releases: list[Path]) -> int:
    """0 if every line follows from the one before and holds the head of every release, else 1."""
    print(f"ok      {len(ledger.entries)} lines, each sealed by the one after it; head {ledger.head.seq}")
    complete = True
    for release in releases:
        try:
            head = json.loads((release / "privacy.json").read_text(encoding="utf-8"))["ledger"]["head"]
            held = ledger.contains(Head(head["seq"], head["hash"]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{release} is no release: give the directory that `dpldm release` made.") from error
        print(f"{'ok    ' if held else 'FAILED'}  holds the head that {release} was published with")
        complete &= held
    if not complete:
        print("The ledger was cut, forked or replaced after that release: restore it from a copy.")
    return 0 if complete else 1
