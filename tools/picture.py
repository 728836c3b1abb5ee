"""The picture of the README: real public-benchmark images on the left, synthetic ones on the right.

python tools/picture.py runs/quickstart docs/images/quickstart.png
"""

import argparse
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from dpldm.config import RunConfig
from dpldm.data.ingest import ingest
from dpldm.data.latents import preprocessing_of
from dpldm.data.readers import open_source
from dpldm.sampling import load_synthetic
from dpldm.sheet import contact_sheet

COLUMNS, GAP = 12, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    config = RunConfig.model_validate(yaml.safe_load((given.run / "config.resolved.yaml").read_text()))
    if not config.privacy.public_benchmark:
        raise SystemExit("Only images of a public benchmark may be shown.")
    real = ingest(open_source(config.data.path), preprocessing_of(config.data), config.data.labels)
    synthetic = load_synthetic(config)
    left = np.asarray(contact_sheet(real.pixels, real.labels, COLUMNS))
    right = np.asarray(contact_sheet(synthetic.images, synthetic.labels, COLUMNS))
    gap = np.full((len(left), GAP, *left.shape[2:]), 255, dtype=np.uint8)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([left, gap, right], axis=1)).save(given.output)


if __name__ == "__main__":
    main()
