"""`dpldm reproduce [ROW --scale smoke|laptop|paper]`."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dpldm.commands.run import overrides, run_stages, use_threads
from dpldm.console import add_manners, conclude, follow, manners, out
from dpldm.errors import UserError

if TYPE_CHECKING:
    from dpldm.config import RunConfig
    from dpldm.reproduction.rows import Row

EPILOG = """Without a row: all rows, and what each needs.
smoke   every step in seconds, on sets in miniature; its figures mean nothing
laptop  a declared reduction for two cores and a night
paper   as published; weeks without a GPU
Sets lie in --data, each in a folder of its name (`dpldm public check`): data/mnist, data/emnist-letters.
ROW+CHOICE tunes something else, such as cifar10/eps10+lora-8. Settings of runtime may follow as --runtime.KEY value."""


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """List the rows, or run one to its manifest."""
    parser.add_argument("row", nargs="?", metavar="ROW", help="such as mnist/eps10")
    parser.add_argument("--scale", choices=("smoke", "laptop", "paper"), help="how much of it")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="published sets (data)")
    parser.add_argument(
        "--output", type=Path, default=Path("reproductions"), metavar="DIR", help="what is made (reproductions)"
    )
    add_manners(parser)
    parser.epilog = EPILOG
    parser.set_defaults(command=name, choices=False, gen_npz=None, synthetic=None)
    given, rest = parser.parse_known_args(words)
    with manners(given):
        if given.row is None:
            return _list(given)
        if given.scale is None:
            raise UserError("Say how much of the row: --scale smoke, laptop or paper.")
        return _reproduce(given, rest)


def _list(given: argparse.Namespace) -> int:
    from dpldm.reproduction.rows import CHECKPOINTS, PAIRS, row_names, row_of

    table = Table("rows", "from -> to", "reads", show_lines=True)
    for pair, title in PAIRS.items():
        names = [name for name in row_names() if name.startswith(f"{pair}/")]
        row = row_of(names[0], "paper", given.data, given.output)
        reads = [f"{folder}" for folder, _ in row.sets()]
        reads += [f"{row.checkpoint}: {CHECKPOINTS[row.backbone.name]}"] if row.checkpoint else []
        reads += [str(row.run.evaluation.inception_weights)] if row.run.evaluation.inception_weights else []
        table.add_row("\n".join(names), title, "\n".join(reads))
    out.print(table)
    conclude(given, {"rows": row_names()}, {}, ["dpldm reproduce ROW --scale smoke"])
    return 0


def _reproduce(given: argparse.Namespace, rest: list[str]) -> int:
    from dpldm.reproduction.comparison import comparison
    from dpldm.reproduction.rows import row_of
    from dpldm.reproduction.stages import make_backbone, make_public_sets, require_sets
    from dpldm.run import Run
    from dpldm.train.pretrain import PretrainStep

    row = row_of(given.row, given.scale, given.data, given.output, overrides(rest))
    place = Run(row.run).directory / "manifest.json"
    use_threads(row.run)

    def describe(step: PretrainStep) -> tuple[int, int, str]:
        return step.number, step.steps, f"{step.stage}, loss {step.loss:.4f}"

    manifest = _finished(place, row.run)
    if manifest is None:
        require_sets(row)
        make_public_sets(row)
        follow(make_backbone(row), "pretrain", describe)
        run_stages(row.run, given)
        manifest = _write_manifest(row, place)
    else:
        out.print(f"{row.name}: finished before, nothing to do")
    out.print(comparison(manifest))
    conclude(given, {"row": row.name, "scale": row.scale}, {"run": place.parent, "manifest": place}, ())
    return 0


def _finished(place: Path, config: "RunConfig") -> Mapping[str, Any] | None:
    """The manifest of an earlier call with the same settings; a damaged one is made again."""
    from dpldm.reproduction.manifest import shown

    try:
        manifest: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        return manifest if manifest["config"] == shown(config) else None
    except (OSError, ValueError, LookupError):
        return None


def _write_manifest(row: "Row", place: Path) -> Mapping[str, Any]:
    from dpldm.privacy.durable import replace_file
    from dpldm.reproduction.manifest import collect, config_hash, data_fingerprint
    from dpldm.reproduction.stages import timings_of

    made = timings_of(row)
    manifest = collect(place.parent, f"dpldm reproduce {row.name} --scale {row.scale}")
    manifest |= {
        "row": row.name,
        "scale": row.scale,
        "config_hash": config_hash(manifest),
        "data_sha256": data_fingerprint(row.run),
        "pretraining": [json.loads(line) for line in made.read_text().splitlines()] if made.is_file() else [],
    }
    replace_file(place, (json.dumps(manifest, indent=2) + "\n").encode(), mode=0o644)
    return manifest
