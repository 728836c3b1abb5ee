"""A source to arrays, once, before anything is charged.

Every record of the index stays, whatever its file holds: an unreadable one becomes a null record, which
is drawn like any other and contributes exactly zero. So the batch sizes of training never depend on
whether a file could be read. What must be refused because of the data is refused here, before the ledger
opens.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpldm.data.arrays import ArraySource
from dpldm.data.decode import Unreadable
from dpldm.data.names import printable
from dpldm.data.preprocessing import Preprocessing
from dpldm.data.source import Source
from dpldm.errors import UserError

MIN_READABLE = 10
"""Fewer readable images than this are taken for a mistake in the path or the settings."""


@dataclass(frozen=True, eq=False)
class Ingested:
    """The private records as arrays, in the order of the source. INTERNAL: all of it is private."""

    pixels: NDArray[np.uint8]
    """(N, S, S, C); zero for null records."""
    labels: NDArray[np.int64]
    """(N,) index in the declared list of labels; -1 everywhere when unconditional."""
    null: NDArray[np.bool_]
    """(N,) True where the record could not be read."""
    units: NDArray[np.int64]
    """(N,) which unit of privacy each record belongs to, numbered from 0 without gaps; -1: not kept."""
    problems: list[tuple[str, str]]
    """(key, reason) of each null record, printable. INTERNAL: for the private log only."""


def ingest(
    source: Source, preprocessing: Preprocessing, labels: Sequence[str] | None, images_per_group: int | None = None
) -> Ingested:
    """Decodes and preprocesses every record.

    Args:
        labels: the declared class names; None or empty trains without classes.
        images_per_group: None: every record is a unit of its own. Otherwise the groups of the source are the units, and
            each keeps at most so many records.

    Raises:
        UserError: a label of the source is not declared, labels are declared but the source has none, or
            fewer than `MIN_READABLE` images can be read. No text tells a label, a file name or a count of
            the data.
    """
    label_index = _label_index(source, labels)
    pixels, problems = _whole_array(source, preprocessing) or _one_by_one(source, preprocessing)
    if len(source) - len(problems) < MIN_READABLE:
        raise UserError(
            f"Fewer than {MIN_READABLE} images can be read with these settings: look at the data with "
            "dpldm inspect, then correct data.path (of test images: data.test_path) or data.window."
        )
    null = np.zeros(len(source), dtype=np.bool_)
    null[list(problems)] = True
    named = [(printable(source.keys[index]), reason) for index, reason in sorted(problems.items())]
    units = _units(source, images_per_group)
    return Ingested(pixels=pixels, labels=label_index, null=null, units=units, problems=named)


def keyed_fingerprint(source: Source, secret: bytes) -> str:
    """HMAC-SHA256 (hex) of all keys, labels, captions, groups and stored bytes. INTERNAL.

    It tells the holder of `secret` that a data set changed between two runs. Without the key it tells
    nothing, whereas a plain hash of a small set could be found by trial.
    """
    digest = hmac.new(secret, digestmod=hashlib.sha256)
    for index, key in enumerate(source.keys):
        texts = [column[index] if column else "" for column in (source.labels, source.captions, source.groups)]
        try:
            content = b"+" + source.content(index)
        except Unreadable:
            content = b"-"
        for part in (*(text.encode("utf-8", "surrogateescape") for text in (key, *texts)), content):
            digest.update(len(part).to_bytes(8, "big"))  # lengths make the sequence of parts unambiguous
            digest.update(part)
    return digest.hexdigest()


def _label_index(source: Source, labels: Sequence[str] | None) -> NDArray[np.int64]:
    if not labels:
        return np.full(len(source), -1, dtype=np.int64)
    declared = {label: index for index, label in enumerate(labels)}
    if len(declared) < len(labels):
        raise UserError("data.labels names a class twice: name each once.")
    if source.labels is None:
        raise UserError(
            "data.labels declares classes, but the data has none: name the column with data.label_column, "
            "sort the images into class folders, or declare no labels."
        )
    if not declared.keys() >= set(source.labels):
        raise UserError(
            f"The data has a label that data.labels does not declare (declared: {', '.join(labels)}): "
            "see the labels with dpldm inspect, then declare every one or take its records out."
        )
    return np.array([declared[label] for label in source.labels], dtype=np.int64)


def _units(source: Source, images_per_group: int | None) -> NDArray[np.int64]:
    """See `Ingested.units`. What a group keeps is decided by hashes of its own records' names alone.

    A record without a group is a group of its own.
    """
    if images_per_group is None or source.groups is None:
        return np.arange(len(source), dtype=np.int64)
    numbers: dict[str, int] = {}
    members: list[list[int]] = []
    for record, group in enumerate(source.groups):
        if not group or group not in numbers:
            if group:
                numbers[group] = len(members)
            members.append([])
        members[numbers[group] if group else -1].append(record)
    units = np.full(len(source), -1, dtype=np.int64)
    for number, records in enumerate(members):
        chosen = sorted(records, key=lambda record: _hash_of_name(source.keys[record]))[:images_per_group]
        units[chosen] = number
    return units


def _hash_of_name(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


_Result = tuple[NDArray[np.uint8], dict[int, str]]


def _one_by_one(source: Source, preprocessing: Preprocessing) -> _Result:
    size = preprocessing.image_size
    pixels = np.zeros((len(source), size, size, preprocessing.channels), dtype=np.uint8)
    problems = {}
    for index in range(len(source)):
        try:
            pixels[index] = preprocessing.apply(source.image(index))
        except Unreadable as error:
            problems[index] = error.reason
    return pixels, problems


def _whole_array(source: Source, preprocessing: Preprocessing) -> _Result | None:
    """What `_one_by_one` gives, without a loop, for arrays that have the right size and channels already."""
    if not isinstance(source, ArraySource) or source.array.dtype != np.uint8:
        return None
    size, channels = preprocessing.image_size, preprocessing.channels
    if source.array.shape[1:3] != (size, size) or source.array.shape[3] not in (1, channels):
        return None
    pixels = np.empty((len(source), size, size, channels), dtype=np.uint8)
    pixels[...] = source.array  # one channel is repeated where three are wanted
    return pixels, dict(source.unreadable)
