"""`evaluate`: how useful and how close synthetic images are, a run's or another tool's, against real test images.

The numbers are functions of private images unless the set is a public benchmark: they go to the run's `private/`
folder, marked INTERNAL, and a release never reads them.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpldm.config import RunConfig
from dpldm.data.ingest import Ingested, ingest
from dpldm.data.latents import preprocessing_of
from dpldm.data.readers import open_source
from dpldm.device import chosen_device
from dpldm.errors import UserError
from dpldm.evaluation.classifiers import Kind
from dpldm.evaluation.features import EfficientNetLite0, FeatureExtractor, InceptionV3
from dpldm.evaluation.fidelity import Comparison, measure
from dpldm.evaluation.foreign import Foreign, foreign_set
from dpldm.evaluation.utility import (
    DPIMAGEBENCH,
    DPIMAGEBENCH_LARGEST_SIDE,
    PROTOCOLS,
    Protocol,
    UtilityResult,
    quick,
    train_on_synthetic,
)
from dpldm.privacy.durable import replace_file
from dpldm.run import Run
from dpldm.sampling import SyntheticSet, load_synthetic, planned_labels


@dataclass(frozen=True)
class Evaluation:
    """Measurements of one run, or of another tool's set. INTERNAL unless `public_benchmark`."""

    utility: UtilityResult | None  # None without classes
    distances: list[Comparison]
    public_benchmark: bool
    foreign: Foreign | None = None  # the set, if it is not the run's

    def to_json(self) -> dict[str, Any]:
        """Plain values, headed by their status."""
        return {
            "status": "public benchmark" if self.public_benchmark else "INTERNAL: reads private images, do not publish",
            "utility": self.utility.to_json() if self.utility else None,
            "distances": [asdict(distance) | {"text": str(distance)} for distance in self.distances],
            **({"synthetic": asdict(self.foreign)} if self.foreign else {}),
        }


def check_evaluation(config: RunConfig) -> None:
    """Refuse before a run what `evaluate` would refuse after hours of it. Nothing is charged, nothing written.

    Raises:
        UserError: there are no readable test images, no extractor, or too few synthetic images for the protocol.
    """
    real_test_images(config)
    extractor_of(config)
    count = len(planned_labels(config.sampling, len(config.data.labels)))
    protocol = protocol_of(config, count)
    if config.data.labels and count < protocol.images:
        raise UserError(
            f"The evaluation {protocol.name} needs {protocol.images:,} synthetic images, sampling asks for {count:,}: "
            "raise sampling.count or set evaluation.protocol to quick."
        )


def evaluate(config: RunConfig, on_epoch: Callable[[Kind, int, int, int], None] | None = None) -> Evaluation:
    """Measure a sampled run against `data.test_path` and write `private/evaluation.json`.

    Raises:
        UserError: there are no test images, or too few synthetic ones for the protocol.
    """
    synthetic, test = load_synthetic(config), real_test_images(config)
    Run(config).note_settings()
    result = measured(config, synthetic, test, on_epoch)
    replace_file(Run(config).private / "evaluation.json", json.dumps(result.to_json(), indent=2).encode())
    return result


def evaluate_foreign(
    config: RunConfig, path: Path, on_epoch: Callable[[Kind, int, int, int], None] | None = None
) -> Evaluation:
    """Measure a synthetic set that another tool made, as `evaluate` measures a run's; no run is needed.

    Written to `private/evaluation-DIGEST.json` of the config's run folder, with what is known of the set.

    Raises:
        UserError: see `evaluate` and `foreign_set`.
    """
    test = real_test_images(config)
    synthetic, foreign = foreign_set(config, path)
    result = replace(measured(config, synthetic, test, on_epoch), foreign=foreign)
    run = Run(config)
    run.make_private()
    replace_file(run.private / f"evaluation-{foreign.digest}.json", json.dumps(result.to_json(), indent=2).encode())
    return result


def measured(
    config: RunConfig,
    synthetic: SyntheticSet,
    test: Ingested,
    on_epoch: Callable[[Kind, int, int, int], None] | None = None,
) -> Evaluation:
    """A synthetic set against real test images, by the config's protocol.

    Raises:
        UserError: there are too few synthetic images for it.
    """
    classes = len(config.data.labels)
    public = config.privacy.public_benchmark
    utility = None
    if classes:
        utility = train_on_synthetic(
            synthetic.images,
            synthetic.labels,
            test.pixels[~test.null],
            test.labels[~test.null],
            protocol=protocol_of(config, len(synthetic.labels)),
            classes=classes,
            seeds=config.evaluation.seeds,
            device=chosen_device(config.runtime.device).type,
            public_benchmark=public,
            on_epoch=on_epoch,
        )
    return Evaluation(utility, _distances(config, synthetic, test), public)


def real_test_images(config: RunConfig) -> Ingested:
    """The images of `data.test_path`. INTERNAL.

    Raises:
        UserError: there are none, they cannot be read, or they are those that are trained on.
    """
    data, test_path = config.data, require_test_path(config)
    source = open_source(test_path, label_column=data.label_column, group_column=data.group_column, split="test")
    if source.split is None and test_path.resolve() == data.path.resolve():
        raise UserError(
            "data.test_path is data.path, and this set has no test part of its own: keep some images out, in another "
            "folder or file."
        )
    return ingest(source, preprocessing_of(data), data.labels)


def require_test_path(config: RunConfig) -> Path:
    """Where the real test images are.

    Raises:
        UserError: the config does not say.
    """
    if config.data.test_path is None:
        raise UserError("There are no real images that were not trained on to compare with: set data.test_path.")
    return config.data.test_path


def protocol_of(config: RunConfig, images: int) -> Protocol:
    """The config's protocol, reduced if it says so; `images` is how many a quick one uses.

    Raises:
        UserError: there are too few images for a quick one, or the reduction is none.
    """
    settings = config.evaluation
    protocol = PROTOCOLS.get(settings.protocol) or quick(images)
    if protocol is DPIMAGEBENCH and config.data.image_size > DPIMAGEBENCH_LARGEST_SIDE:
        protocol = replace(protocol, kinds=tuple(kind for kind in protocol.kinds if not kind.startswith("resnext")))
    return protocol.reduced(settings.images, settings.epochs)


def _distances(config: RunConfig, synthetic: SyntheticSet, test: Ingested) -> list[Comparison]:
    real = test.pixels[~test.null]
    # As many synthetic as real images, in a fixed random order: more would only cost time.
    order = np.random.default_rng(0).permutation(len(synthetic.images))[: max(len(real), 10)]
    return measure(real, synthetic.images[order], extractor_of(config))


def extractor_of(config: RunConfig) -> FeatureExtractor:
    """The network through which distances see images.

    Raises:
        UserError: it is not installed, or its weights are not there.
    """
    settings, device = config.evaluation, chosen_device(config.runtime.device)
    if settings.extractor == "efficientnet-lite0":
        return EfficientNetLite0(device=device)
    if settings.inception_weights is None:
        raise UserError("The extractor inception-v3 needs evaluation.inception_weights, a local weights file.")
    return InceptionV3(settings.inception_weights, device)
