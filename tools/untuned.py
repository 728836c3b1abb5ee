"""What the backbone of a run draws before any tuning, measured and drawn as the run's own images are.

    python tools/untuned.py runs/emoji-eps10 [--picture docs/images/NAME.png]

A backbone that is told classes knows none of the private ones and is told nothing; one that is told captions gets the
run's prompts. Only for public benchmarks: real test images are read. Writes results/NAME-untuned.json.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import yaml

from dpldm.config import RunConfig
from dpldm.evaluation.evaluate import extractor_of, real_test_images
from dpldm.evaluation.fidelity import measure
from dpldm.models.backbone import load_backbone
from dpldm.sampling import Sampler, texts_of
from dpldm.sheet import save_contact_sheet
from dpldm.train.public_data import step_generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--picture", type=Path, help="contact sheet to write")
    given = parser.parse_args()
    config = RunConfig.model_validate(yaml.safe_load((given.run / "config.resolved.yaml").read_text()))
    if not config.privacy.public_benchmark:
        raise SystemExit("Only for a public benchmark: the result is a function of the test images.")
    test = real_test_images(config)
    real = test.pixels[~test.null]
    images, labels = drawn(config, len(real))
    found = measure(real, images, extractor_of(config))
    result = {"backbone": Path(config.backbone).name, "sampling": config.sampling.model_dump(mode="json")}
    result["distances"] = [asdict(one) | {"text": str(one)} for one in found]
    target = Path("results") / f"{given.run.name}-untuned.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if given.picture:
        save_contact_sheet(given.picture, images, labels)
    print(f"wrote {target}: {found[0]}")


def drawn(config: RunConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    """So many images of the public backbone, and which prompt each was drawn for (-1: none)."""
    backbone = load_backbone(config.backbone)
    texts = [] if config.data.labels else texts_of(config)
    labels = torch.arange(count) % len(texts) if texts else torch.full((count,), -1)
    sampler = Sampler(backbone, backbone.denoiser, config.sampling, config.data.image_size, texts)
    parts = labels.split(config.sampling.batch_size)
    images = [sampler(part, step_generator(config.sampling.seed, number)) for number, part in enumerate(parts)]
    return np.concatenate(images), labels.numpy()


if __name__ == "__main__":
    main()
