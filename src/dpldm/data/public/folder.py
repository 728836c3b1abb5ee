"""Any set of images that you may use publicly, as a public set: every layout that `dpldm inspect` reads."""

from pathlib import Path
from typing import Literal

import numpy as np

from dpldm.data.ingest import ingest
from dpldm.data.preprocessing import Preprocessing
from dpldm.data.public.collection import PublicSet
from dpldm.data.readers import open_source
from dpldm.errors import UserError


def make_from_folder(path: Path, *, image_size: int, channels: Literal[1, 3], licence: str, origin: str) -> PublicSet:
    """Read the images at `path`, crop and resize them as private ones are, and note where they come from.

    Byte-equal images are kept once. The labels of the source, if it has any, become those of the set; they are
    not needed for pre-training, but a set with labels can serve as stand-in for `dpldm rehearse`.

    Args:
        path: whatever `open_source` reads.
        licence: under which the images may be used (an SPDX name, say); written into the provenance.
        origin: package and version, address, or book they come from; written into the provenance.

    Raises:
        UserError: fewer than ten images can be read, or licence or origin is blank.
    """
    if not licence.strip() or not origin.strip():
        raise UserError("A public set needs --licence and --origin: a backbone must be able to say what it has seen.")
    source = open_source(path)
    names = tuple(sorted(set(source.labels or [])))
    read = ingest(source, Preprocessing(image_size=image_size, channels=channels), names)
    rows = _first_of_each(read.pixels, np.flatnonzero(~read.null))
    return PublicSet(
        images=read.pixels[rows],
        labels=np.maximum(read.labels[rows], 0),  # without labels: one class for all
        label_names=names or ("image",),
        families=np.full(len(rows), Path(path).name),
        names=np.array([source.keys[row] for row in rows]),
        provenance={
            "kind": "folder",
            "layout": source.layout,
            "licence": licence,
            "origin": origin,
            "parameters": {"image_size": image_size, "channels": channels},
            "dropped": {"unreadable": int(read.null.sum()), "copies": int((~read.null).sum()) - len(rows)},
        },
    )


def _first_of_each(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those of `rows` whose pixels no earlier row has, in order."""
    flat = np.ascontiguousarray(pixels[rows].reshape(len(rows), -1))
    _, first = np.unique(flat, axis=0, return_index=True)
    return rows[np.sort(first)]
