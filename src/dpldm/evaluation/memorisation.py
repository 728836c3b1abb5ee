"""`memorisation`: did the model keep training images? Synthetic images beside those trained on and those held out.

INTERNAL, asked for by the holder of the data, after a run and outside of it: it reads private images and its answer is
private. It is no gate, adds nothing to (epsilon, delta) and replaces nothing of it; what it is for is a mistake that no
guarantee covers, such as a model that was tuned elsewhere. A release and its report never hold any of it.
"""

import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpldm.config import RunConfig
from dpldm.data.ingest import Ingested, ingest
from dpldm.data.latents import preprocessing_of, private_source
from dpldm.data.readers import open_source
from dpldm.data.source import Source
from dpldm.errors import UserError
from dpldm.evaluation.evaluate import extractor_of, require_test_path
from dpldm.evaluation.features import FeatureExtractor, Images, scaled
from dpldm.evaluation.neighbours import Copies, Nearness, copies, nearness
from dpldm.privacy.durable import replace_file
from dpldm.run import Run
from dpldm.sampling import load_synthetic
from dpldm.sheet import contact_sheet

ALARM = 1e-3
"""A p-value below it is an alarm, in either test. Fixed before anything was looked at."""
MOST_SYNTHETIC = 10_000
FEWEST_REAL = 20
"""On each side."""


@dataclass(frozen=True)
class Memorisation:
    """What was found. INTERNAL unless `public_benchmark`."""

    nearness: Nearness
    copies: Copies
    extractor: str
    public_benchmark: bool

    @property
    def alarm(self) -> bool:
        """Whether a test finds more than chance would bring about in one of a thousand models that kept nothing."""
        return min(self.nearness.p_value, self.copies.p_value) < ALARM

    @property
    def status(self) -> str:
        """Whether it may be shown."""
        return "public benchmark" if self.public_benchmark else "INTERNAL: reads private images, do not publish"

    def to_json(self) -> dict[str, Any]:
        """Plain values, headed by their status."""
        return {"status": self.status, "alarm": self.alarm, **asdict(self)}


def memorisation(config: RunConfig) -> Memorisation:
    """Compare a sampled run's images with its private ones, and write private/memorisation.json and .png (the closest
    pairs: synthetic images above, real ones below).

    Raises:
        UserError: the run is not sampled, has no test images, or too few are left of either kind.
    """
    synthetic, run = load_synthetic(config), Run(config)
    trained, held_out = real_images(config)
    order = np.random.default_rng(0).permutation(len(synthetic.images))[:MOST_SYNTHETIC]
    drawn = synthetic.images[order]
    found = compared(trained, held_out, drawn, extractor_of(config), public_benchmark=config.privacy.public_benchmark)
    replace_file(run.private / "memorisation.json", json.dumps(found.to_json(), indent=2).encode())
    rows = np.array(found.copies.closest)
    pairs = np.concatenate([drawn[rows[:, 0]], trained[rows[:, 1]]])
    buffer = io.BytesIO()
    contact_sheet(pairs, np.repeat([0, 1], len(rows)), ("drawn", "real")).save(buffer, format="PNG")
    replace_file(run.pairs, buffer.getvalue())
    return found


def compared(
    trained: Images, held_out: Images, synthetic: Images, extractor: FeatureExtractor, *, public_benchmark: bool
) -> Memorisation:
    """Both tests on images, uint8 (N, H, W, C)."""
    seen, unseen, drawn = (scaled(extractor(images)) for images in (trained, held_out, synthetic))
    near = nearness(seen, unseen, drawn, np.random.default_rng(0))
    return Memorisation(near, copies(seen, unseen, drawn), extractor.name, public_benchmark)


def real_images(config: RunConfig) -> tuple[Images, Images]:
    """Images that were trained on, and those of data.test_path that show nobody who was. INTERNAL.

    Raises:
        UserError: there are no test images, they cannot be read, or too few are left.
    """
    data, privacy = config.data, config.privacy
    test_path = require_test_path(config)
    trained = private_source(data)
    kept = ingest(
        trained, preprocessing_of(data), data.labels, privacy.max_images_per_group if privacy.unit == "group" else None
    )
    test = open_source(test_path, label_column=data.label_column, group_column=data.group_column, split="test")
    unseen = ingest(test, preprocessing_of(data), data.labels)
    images = kept.pixels[_usable(kept)], unseen.pixels[_usable(unseen) & ~_known(test, trained)]
    if min(map(len, images)) < FEWEST_REAL:
        raise UserError(
            f"Memorisation cannot be told from fewer than {FEWEST_REAL} images that were trained on and as many that "
            "were not: give a larger data.test_path, of persons who are not among the private ones."
        )
    return images


def _usable(records: Ingested) -> NDArray[np.bool_]:
    return ~records.null & (records.units >= 0)


def _known(test: Source, trained: Source) -> NDArray[np.bool_]:
    """Which test images belong to a group that was trained on."""
    persons = set(trained.groups or ()) - {""}
    return np.array([group in persons for group in test.groups or [""] * len(test)])
