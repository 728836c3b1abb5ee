"""The private cache: every private image encoded once, by mean and log-variance.

Lives in the run's `private/` folder (0600 in 0700) and never leaves it. Keeping both moments lets every step
sample a fresh latent, as encoding on the fly would.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpldm.config import DataConfig
from dpldm.data.ingest import ingest
from dpldm.data.preprocessing import Preprocessing
from dpldm.data.readers import open_source
from dpldm.data.source import Source
from dpldm.models.autoencoder import Autoencoder, Posterior, encode, images_at_once
from dpldm.models.backbone import read_card
from dpldm.train.checkpoint import load_checkpoint, save_checkpoint

PASS = 64
"""Private images that are encoded together, or fewer if they are large."""


@dataclass(frozen=True)
class PrivateLatents:
    """Encoded private records. PRIVATE, including how many there are.

    A *unit* is what the guarantee protects: one record, or the kept records of one group.
    """

    posterior: Posterior  # mean and log-variance, each (N, c, h, w)
    labels: Tensor  # (N,) int64, index in data.labels, -1 if unconditional
    usable: Tensor  # (N,) bool, False for null records
    members: Tensor | None = None  # (U, m) int64, the records of each unit, then -1; None: every record is a unit
    tokens: Tensor | None = None  # (N, T) int64, the caption of each record; None: the network is told labels
    publics: Tensor | None = None  # (N,) int64, id of the public class that each record resembles, if that is told too
    parts: Tensor | None = None  # (N,) int64, the part of its class that each record belongs to, if classes have any

    @property
    def units(self) -> int:
        """Number of units, null ones included."""
        return len(self.labels if self.members is None else self.members)

    def passes(self, batch: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`records_of` the units of a batch, in parts of about `rows` records, all units of a part having equally many.

        So no unit is filled up to the size of another, and what is computed for it does not depend on who shares its
        part (but for the last bits of floating-point sums).
        """
        sizes = torch.ones_like(batch) if self.members is None else (self.members[batch] >= 0).sum(1)
        for size in torch.unique(sizes).tolist():
            for part in torch.split(batch[sizes == size], max(1, rows // size)):
                yield self.records_of(part)

    def records_of(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """(records, weights), each (B, w), of units (B,): w is the size of the largest of them.

        A unit's gradient is the mean over its records, so weights are 1 / size; they are 0 for null records and for
        places that a smaller unit leaves empty (which repeat its first record).
        """
        if self.members is None:
            return units[:, None], self.usable[units, None].float()
        table = self.members[units]
        present = table >= 0
        width = int(present.sum(1).max()) if len(units) else 1
        table, present = table[:, :width], present[:, :width]
        records = torch.where(present, table, table[:, :1])
        return records, (present & self.usable[records]).float() / present.sum(1, keepdim=True)


def preprocessing_of(data: DataConfig) -> Preprocessing:
    """The fixed, public preprocessing that a config declares."""
    return Preprocessing(image_size=data.image_size, channels=data.channels, window=data.window, crop=data.crop)


def private_latents(
    data: DataConfig,
    autoencoder: Autoencoder,
    backbone: str,
    path: Path,
    *,
    images_per_group: int | None = None,
    keep: bool = False,
    tokenize: Callable[[Sequence[str]], Tensor] | None = None,
) -> PrivateLatents:
    """The private images, encoded by the backbone's autoencoder, and kept in a cache (see `private_encodings`)."""
    # The card names the weights by sha256, so a backbone that was made again at the same place is another one.
    card = json.dumps(read_card(backbone), sort_keys=True)

    def encoder(pixels: NDArray[np.uint8]) -> Posterior:
        return encode(autoencoder, pixels)

    return private_encodings(data, encoder, card, path, images_per_group=images_per_group, keep=keep, tokenize=tokenize)


def private_encodings(
    data: DataConfig,
    encoder: Callable[[NDArray[np.uint8]], Posterior],
    name: str,
    path: Path,
    *,
    images_per_group: int | None = None,
    keep: bool = False,
    tokenize: Callable[[Sequence[str]], Tensor] | None = None,
) -> PrivateLatents:
    """The private images, encoded, and kept in a cache at `path`.

    Args:
        encoder: images uint8 (N, S, S, C) to posteriors, each a function of its own image alone.
        name: identity of the encoder: another one must not meet the cache of this one.
        images_per_group: None, or the number of images that a unit keeps (see `ingest`).
        keep: a model has been trained on the cache: use it again. Otherwise it is made anew, since images may have been
            added, withdrawn or labelled otherwise in between.
        tokenize: captions to ids, for a backbone that is told captions: those of the table, those that
            data.caption_template makes of labels, or empty ones.

    Everything that must be refused because of the data is refused here, before a ledger is opened.

    Raises:
        UserError: see `ingest`.
    """
    # The name of what was encoded: another preprocessing or encoder must not meet an old cache.
    unseen = {"test_path"} if tokenize else {"test_path", "caption_column", "caption_template"}
    recipe = hashlib.sha256((data.model_dump_json(exclude=unseen) + name).encode()).hexdigest()
    if keep and path.exists():
        groups, facts = load_checkpoint(path)
        if facts["recipe"] == recipe:
            cache = groups["latents"]
            posterior = Posterior(cache["mean"], cache["log_variance"])
            return PrivateLatents(
                posterior, cache["labels"], cache["usable"].bool(), cache.get("members"), cache.get("tokens")
            )
    source = private_source(data)
    records = ingest(source, preprocessing_of(data), data.labels, images_per_group)
    _log_problems(path.parent / "unreadable.jsonl", records.problems)
    posterior = _in_equal_passes(encoder, records.pixels)
    members = None if images_per_group is None else _members(records.units)
    tokens = None if tokenize is None else tokenize(_captions(data, source))
    usable = torch.from_numpy(~records.null)
    latents = PrivateLatents(posterior, torch.from_numpy(records.labels), usable, members, tokens)
    cache = {
        "mean": posterior.mean,
        "log_variance": posterior.log_variance,
        "labels": latents.labels,
        "usable": latents.usable.to(torch.uint8),
        **({} if members is None else {"members": members}),
        **({} if tokens is None else {"tokens": tokens}),
    }
    save_checkpoint(path, {"latents": cache}, {"recipe": recipe})
    return latents


def _in_equal_passes(encoder: Callable[[NDArray[np.uint8]], Posterior], pixels: NDArray[np.uint8]) -> Posterior:
    """Posteriors of images (N, S, S, C), encoded so many at a time, the last pass filled up with the first image.

    The size of a pass can change the last bits of what is computed in it. So it must not follow from how many images
    there are: what an image resembles most, its vote or its part of a class, may turn on these bits.
    """
    size, count = min(PASS, images_at_once(pixels.shape[1])), len(pixels)
    rows = np.arange(-(-count // size) * size)
    passes = [encoder(pixels[np.where(part < count, part, 0)]) for part in rows.reshape(-1, size)]
    means, log_variances = ([getattr(each, moment) for each in passes] for moment in ("mean", "log_variance"))
    return Posterior(torch.cat(means)[:count], torch.cat(log_variances)[:count])


def private_source(data: DataConfig) -> Source:
    """The images that a config points to."""
    return open_source(
        data.path,
        label_column=data.label_column,
        caption_column=data.caption_column,
        group_column=data.group_column,
    )


def _captions(data: DataConfig, source: Source) -> list[str]:
    """What a backbone that is told captions is told about each record. PRIVATE."""
    if data.caption_column is not None and source.captions is not None:
        return source.captions
    if data.labels and source.labels is not None:
        return [data.caption_of(label) for label in source.labels]
    return [""] * len(source)


def _members(units: NDArray[np.int64]) -> Tensor:
    """See `PrivateLatents.members`: from the unit of each record, -1 for a record that none keeps."""
    order = np.argsort(units, kind="stable")
    kept = order[units[order] >= 0]
    sizes = np.bincount(units[kept])
    column = np.arange(len(kept)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # place within its unit
    table = np.full((len(sizes), int(sizes.max())), -1, dtype=np.int64)
    table[units[kept], column] = kept
    return torch.from_numpy(table)


def _log_problems(path: Path, problems: list[tuple[str, str]]) -> None:
    """INTERNAL: which files became null records, and why."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        for key, reason in problems:
            file.write(json.dumps({"file": key, "reason": reason}) + "\n")
