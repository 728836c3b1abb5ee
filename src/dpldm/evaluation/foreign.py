"""A synthetic set made by any tool, so that it can be measured by the same protocol as our own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dpldm.config import RunConfig
from dpldm.data.ingest import ingest
from dpldm.data.latents import preprocessing_of
from dpldm.data.names import printable
from dpldm.data.readers import open_source
from dpldm.data.source import Source
from dpldm.errors import UserError
from dpldm.sampling import SyntheticSet


@dataclass(frozen=True)
class Foreign:
    """Which set was measured."""

    path: str
    images: int
    unreadable: int  # left out
    digest: str  # of images and labels, 12 hexadecimal digits

    def __str__(self) -> str:
        left_out = f", {self.unreadable:,} unreadable left out" if self.unreadable else ""
        return f"synthetic set: {printable(self.path)} ({self.images:,} images{left_out})"


def foreign_set(config: RunConfig, path: Path) -> tuple[SyntheticSet, Foreign]:
    """A folder or file of synthetic images, prepared as the real ones are.

    Anything that `open_source` reads: class folders with data.labels as names, DPImageBench's `gen.npz` (`x` float32
    (N, C, H, W) in [0, 1], `y` numbers of classes), an export of our own.

    Raises:
        UserError: it is not there or cannot be read, has classes that are not declared, or fewer than ten images.
    """
    if not path.exists():
        raise UserError(f"There is nothing at {path}: correct --synthetic.")
    source = _with_names(open_source(path), config.data.labels, path)
    found = ingest(source, preprocessing_of(config.data), config.data.labels)
    kept = ~found.null
    synthetic = SyntheticSet(found.pixels[kept], found.labels[kept])
    return synthetic, Foreign(str(path), int(kept.sum()), int(found.null.sum()), _digest(synthetic))


def _digest(synthetic: SyntheticSet) -> str:
    digest = hashlib.sha256(str(synthetic.images.shape).encode())
    digest.update(synthetic.images.tobytes())
    digest.update(synthetic.labels.tobytes())
    return digest.hexdigest()[:12]


def _with_names(source: Source, labels: Sequence[str], path: Path) -> Source:
    """The set with the names of data.labels where it has numbers of classes, counted from 0."""
    if not labels or source.labels is None or set(source.labels) <= set(labels):
        return source
    numbers = {str(number): label for number, label in enumerate(labels)}
    if not numbers.keys() >= set(source.labels):
        raise UserError(
            f"{path} has classes that are neither among data.labels nor numbers from 0 to {len(labels) - 1}: correct "
            "data.labels, or the set."
        )
    return replace(source, labels=[numbers[label] for label in source.labels])
