"""The pictures of the README: real public-benchmark images on the left, beside them the synthetic ones of each run.

python tools/picture.py runs/quickstart docs/images/quickstart.png
python tools/picture.py runs/A runs/B docs/images/portraits.png --baseline portraits
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
from dpldm.sampling import all_drawn, load_synthetic
from dpldm.sheet import contact_sheet

COLUMNS, GAP = 12, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="runs on the same real images")
    parser.add_argument("output", type=Path)
    parser.add_argument("--baseline", choices=("pe", "portraits"), help="what that drew beside each run")
    given = parser.parse_args()
    beside = Path("private/baselines", given.baseline) if given.baseline else Path()
    settings = [yaml.safe_load((run / beside / "config.resolved.yaml").read_text()) for run in given.run]
    configs = [RunConfig.model_validate(values) for values in settings]
    if not all(config.privacy.public_benchmark for config in configs):
        raise SystemExit("Only images of a public benchmark may be shown.")
    data = configs[0].data
    real = ingest(open_source(data.path), preprocessing_of(data), data.labels)
    sheets = [contact_sheet(real.pixels, real.labels, columns=COLUMNS)]
    for config in configs:
        synthetic = all_drawn(config, config.sampling) if given.baseline else load_synthetic(config)
        sheets.append(contact_sheet(synthetic.images, synthetic.labels, columns=COLUMNS))
    columns = [np.asarray(sheet) for sheet in sheets]
    gap = np.full((len(columns[0]), GAP, *columns[0].shape[2:]), 255, dtype=np.uint8)
    joined = [part for column in columns for part in (gap, column)][1:]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(joined, axis=1)).save(given.output)


if __name__ == "__main__":
    main()
