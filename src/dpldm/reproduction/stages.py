"""What comes before the run of a row: its sets are there, its public set and backbone are made. Once; all public."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpldm.data.presence import check
from dpldm.data.public.folder import make_from_folder
from dpldm.data.published import published
from dpldm.errors import UserError
from dpldm.models.backbone import read_card
from dpldm.models.compvis.convert import convert
from dpldm.reproduction.rows import CHECKPOINTS, PUBLISHED_AS, Row
from dpldm.train.begun import differing, without_places
from dpldm.train.memory import peak_so_far
from dpldm.train.pretrain import PretrainStep, pretrain

TIMINGS = "timings.jsonl"


def lacking(row: Row) -> list[str]:
    """What is missing or wrong of what a row reads, part by part. At scale smoke sets may be miniatures."""
    found = []
    for folder, entry in row.sets():
        if not folder.is_dir():
            found.append(f"{folder}: {entry.title}, from {entry.origin} ({entry.archives})")
            continue
        seen = check(entry, folder)
        found += [f"{folder}: {what}" for what in seen.missing]
        found += [f"{folder}: {problem}" for problem in (seen.problems if row.scale != "smoke" else [])]
    weights = row.run.evaluation.inception_weights
    if weights is not None and not weights.is_file():
        found.append(f"{weights}: weights of the Inception network, as pytorch-fid has them")
    if row.checkpoint is not None and not row.checkpoint.is_file() and not row.backbone.exists():
        found.append(f"{row.checkpoint}: {CHECKPOINTS[row.backbone.name]}")
    return found


def require_sets(row: Row) -> None:
    """Refuse before hours of work what would be missing after them.

    Raises:
        UserError: names everything that is missing or wrong.
    """
    if missing := lacking(row):
        raise UserError(
            f"{row.name} lacks what it reads; put it there, then give the same command again. Missing or wrong: "
            + "; ".join(missing)
        )


def make_public_sets(row: Row) -> None:
    """Turn published sets into public sets of the backbone's size, unless that is done.

    Raises:
        UserError: one cannot be read.
    """
    recipe = row.pretraining
    if recipe is None or is_made(row):
        return
    for place in recipe.public:
        if (place / "provenance.json").is_file():
            continue
        entry = published(PUBLISHED_AS.get(place.name, place.name))
        with noted(place.parent / TIMINGS, f"public set {place.name}"):
            made = make_from_folder(
                row.data / place.name,
                image_size=recipe.image_size,
                channels=recipe.channels,
                licence=entry.licence,
                origin=entry.origin,
            )
            made.save(place)


def make_backbone(row: Row) -> Iterator[PretrainStep]:
    """Pre-train the row's backbone, or convert its checkpoint, unless that is done. The same call resumes.

    Raises:
        UserError: a public set or the checkpoint cannot be used, or the backbone that is there is of another recipe.
    """
    if is_made(row):
        _require_own(row)
        return
    row.backbone.parent.mkdir(parents=True, exist_ok=True)
    if row.pretraining is not None:
        with noted(timings_of(row), "pretrain"):
            yield from pretrain(row.pretraining)
    elif row.checkpoint is not None:
        settings, tokenizer = row.checkpoint.with_suffix(".yaml"), row.data / "bert-base-uncased"
        with noted(timings_of(row), "convert"):
            convert(
                *(row.checkpoint, row.backbone),
                settings if settings.is_file() else None,
                str(tokenizer) if tokenizer.is_dir() else None,
            )


def is_made(row: Row) -> bool:
    """Whether the backbone is there already: bundled, or made by an earlier call."""
    return (row.pretraining is None and row.checkpoint is None) or (row.backbone / "backbone.json").is_file()


def _require_own(row: Row) -> None:
    """Refuse a backbone that the row's recipe, as it is now, did not make; its card tells.

    Raises:
        UserError: names the settings that are others.
    """
    if row.pretraining is None:
        return
    made = read_card(str(row.backbone)).get("recipe", {})
    if others := differing(made, without_places(row.pretraining)):
        raise UserError(
            f"The backbone {row.backbone} was made with other settings ({', '.join(others)}) than {row.name} has: move "
            "it and its .work folder away, or give another --output."
        )


def timings_of(row: Row) -> Path:
    """What making the backbone took, a JSON line for each session."""
    return row.backbone.with_name(f"{row.backbone.name}.{TIMINGS}")


@contextmanager
def noted(place: Path, stage: str, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Append to `place` what the block took, also if it is interrupted: seconds, and the peak of memory so far."""
    start = clock()
    try:
        yield
    finally:
        place.parent.mkdir(parents=True, exist_ok=True)
        line = {"stage": stage, "seconds": round(clock() - start, 1), "peak_bytes": peak_so_far()}
        with place.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
