"""`dpldm baseline real`: the papers' CNN trained on the real images, without privacy: a synthetic set's upper bound."""

from dataclasses import replace

from dpldm.baselines.result import Baseline, require_classes, require_published
from dpldm.config import RunConfig
from dpldm.data.ingest import ingest
from dpldm.data.latents import preprocessing_of, private_source
from dpldm.device import chosen_device
from dpldm.evaluation.evaluate import protocol_of, real_test_images
from dpldm.evaluation.recipes import PAPERS
from dpldm.evaluation.utility import Protocol, train_on_synthetic
from dpldm.progress import OnProgress, unseen
from dpldm.run import Run


def real(config: RunConfig, on_progress: OnProgress = unseen) -> Baseline:
    """What a synthetic set would be worth if it were the real one, by the protocol of synthetic sets.

    Raises:
        UserError: the images are not published, have no classes, or there are no test images.
    """
    require_published(config, "real")
    require_classes(config)
    test = real_test_images(config)
    train = ingest(private_source(config.data), preprocessing_of(config.data), config.data.labels)
    Run(config).create()
    images, labels = train.pixels[~train.null], train.labels[~train.null]
    found = train_on_synthetic(
        images,
        labels,
        test.pixels[~test.null],
        test.labels[~test.null],
        protocol=_with_real_images(protocol_of(config, len(images)), len(images)),
        classes=len(config.data.labels),
        seeds=config.evaluation.seeds,
        device=chosen_device(config.runtime.device).type,
        public_benchmark=True,
        on_epoch=lambda kind, seed, done, total: on_progress(f"{kind}, seed {seed}, epoch", done, total),
    )
    how: dict[str, str | int | float] = {
        "protocol": found.protocol,
        "train": found.train,
        "validation": found.validation,
        "epochs": found.epochs,
    }
    result = Baseline(
        "real", "the papers' CNN trained on real images: NOT PRIVATE", True, found.test, found.scores, how
    )
    result.keep(config)
    return result


def _with_real_images(protocol: Protocol, images: int) -> Protocol:
    """The CNN alone, and fewer images where there are not as many real ones."""
    held_out = min(protocol.validation, images // 6)
    return replace(
        protocol, kinds=("cnn",), recipe=PAPERS, train=min(protocol.train, images - held_out), validation=held_out
    )
