"""`clean`: remove the private caches of a run once its release is made.

Latents, and the features of a baseline, are copies of the private images, and can be made again from them; so is the
picture of pairs that `memorisation` makes. Tuned weights were paid for and cannot be: they go only if the release holds
them too, or by force. Portraits, which no release holds, go by force alone. What is left of a selection goes too: it
tells how many trials there were. Never removed here: the ledger (what was spent stays spent), the release, and the
records that the holder may need to answer for the run.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from dpldm.errors import UserError
from dpldm.reporting import require_intact, run_at

COPIES = ("latents.safetensors", "features.safetensors", "memorisation.png")
"""Private images, encoded for the run or its baselines, or some of them as they are."""


@dataclass(frozen=True)
class Cleaned:
    """What was done."""

    removed: list[Path]  # what was there
    kept: list[tuple[Path, str]]  # files that hold something private or paid for, and why they were left


def clean(directory: Path, *, force: bool = False) -> Cleaned:
    """Remove the caches in runs/NAME/private.

    Args:
        directory: the run's folder.
        force: also without a release, and also tuned weights that nothing else holds. They are paid for, and lost.

    Raises:
        UserError: it is no run; or, without `force`, it has no release, or one that is not what it says.
    """
    run = run_at(directory)
    if not force:
        if not run.release.is_dir():
            raise UserError(
                f"The run {run.config.name!r} is not released, and what its caches hold is paid for: run `dpldm "
                "release` first, or give it up with --force."
            )
        require_intact(run.release)
    weights, kept = run.checkpoint, list[tuple[Path, str]]()
    caches = [path for name in COPIES for path in sorted(run.private.rglob(f"{name}*"))]  # and what a kill left of one
    if force or (run.release / "model").is_dir():
        caches.append(weights)
    elif weights.exists():
        way_out = (
            "it draws more images" if run.config.method == "portraits" else "the release lacks it (`--what model`)"
        )
        kept.append((weights, f"paid for, and {way_out}; --force removes it"))
    caches.append(weights.with_name(weights.name + ".partial"))
    removed = []
    for path in caches:
        if path.exists():
            removed.append(path)
            path.unlink()
    if run.selection.exists():  # a selection that was given up, or a rest that would tell how many trials there were
        removed.append(run.selection)
        shutil.rmtree(run.selection)
    records = sorted(path for path in run.private.rglob("*") if path.is_file() and path != weights)
    return Cleaned(removed, kept + [(path, "a record") for path in records])
