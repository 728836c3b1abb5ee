"""`rehearse`: the same plan on public stand-in images, to see the quality to expect before spending any budget.

The stand-in must not be among the images that the backbone was trained on. Letters of font families that were held
out of the bundled backbones ship for the purpose; any labelled public set can take their place.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpldm.config import DataConfig, RunConfig
from dpldm.data.preprocessing import Preprocessing
from dpldm.data.public.collection import PublicSet
from dpldm.errors import UserError
from dpldm.run import Run, settings_of_training

TEST_SHARE = 0.2


def rehearsal(config: RunConfig, stand_in: Path | None = None) -> RunConfig:
    """The run's config with public images in the place of private ones, ready for `finetune` and what follows.

    The same call resumes; with other settings or another stand-in the earlier rehearsal is replaced.

    As many classes and records as the config declares are taken from the stand-in; if it has fewer images, they are
    repeated. Accuracy is measured on a fifth that is held back.

    Args:
        stand_in: directory of a public set with labels; default: held-out letters.

    Raises:
        UserError: the stand-in has fewer classes than the config declares, or something else has the rehearsal's name.
    """
    public = _load(stand_in)
    data = config.data
    if public.images.shape[1:] != (data.image_size, data.image_size, data.channels):
        public = _resized(public, data)
    classes = len(data.labels)
    if classes > len(public.label_names):
        raise UserError(
            f"The stand-in has {len(public.label_names)} classes, the config {classes}: give --stand-in another set."
        )
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.flatnonzero(public.labels < classes) if classes else len(public.labels))
    cut = int(len(rows) * TEST_SHARE)
    records = config.privacy.records or 0
    name = f"{config.name[:54]}-rehearsal"  # a name has at most 64 characters
    directory = Run(config.model_copy(update={"name": name})).directory
    folder = directory / "stand-in"
    train = rows[cut:][rng.permutation(np.arange(records) % (len(rows) - cut))]
    made = config.model_copy(
        update={
            "name": name,
            "data": data.model_copy(
                update={
                    "path": folder / "train.npz",
                    "test_path": folder / "test.npz",
                    "labels": tuple(str(k) for k in range(classes)),
                    "label_column": None,
                    "caption_column": None,  # a stand-in has none: its captions are empty, or those of its labels
                    "group_column": None,
                }
            ),
            "sampling": config.sampling.model_copy(update={"prompts": None}),
            "privacy": config.privacy.model_copy(
                update={
                    "dataset_id": f"rehearsal-{config.name}"[:64],
                    "unit": "image",  # a stand-in has no groups; the noise is that of as many units
                    "max_images_per_group": 1,
                    "ledger": (directory / "ledger.jsonl").absolute(),
                    "cap": None,
                    "public_benchmark": True,
                }
            ),
        }
    )
    parts = {
        part: (public.images[chosen], public.labels[chosen])
        for part, chosen in (("train", train), ("test", rows[:cut]))
    }
    _start_anew_if_changed(directory, made, parts)
    for part, (images, labels) in parts.items():
        np.savez_compressed(folder / f"{part}.npz", x=images, y=labels)
    return made


def _start_anew_if_changed(directory: Path, config: RunConfig, parts: Mapping[str, tuple[NDArray[Any], ...]]) -> None:
    """Nothing in a rehearsal is worth protecting: with other settings or other images it replaces the earlier one."""
    digest = hashlib.sha256(json.dumps(settings_of_training(config), default=str).encode())
    for array in itertools.chain(*parts.values()):
        digest.update(array.tobytes())
    key = directory / "stand-in" / "sha256"
    if directory.exists():
        if not key.exists():
            raise UserError(
                f"{directory} is in the way and is no rehearsal: move it away, or give this run another name."
            )
        if key.read_text(encoding="utf-8") != digest.hexdigest():
            shutil.rmtree(directory)
    key.parent.mkdir(parents=True, exist_ok=True)
    key.write_text(digest.hexdigest(), encoding="utf-8")


def _load(stand_in: Path | None) -> PublicSet:
    if stand_in is not None:
        return PublicSet.load(stand_in)
    with resources.as_file(resources.files("dpldm") / "assets" / "letters") as directory:
        return PublicSet.load(directory)


def _resized(public: PublicSet, data: DataConfig) -> PublicSet:
    """The stand-in at the config's size, by the package's ordinary preprocessing."""
    preprocessing = Preprocessing(image_size=data.image_size, channels=data.channels)
    squeezed = public.images[..., 0] if public.images.shape[3] == 1 else public.images
    resized = [preprocessing.apply(Image.fromarray(image)) for image in squeezed]
    return replace(public, images=np.stack(resized))
