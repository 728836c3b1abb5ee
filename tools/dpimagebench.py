"""DPImageBench's part of a benchmark: the images that its methods train on, and all test images, as an .npz.

    python tools/dpimagebench.py /usr/share/datasets/fashion-mnist runs/fashion-55000.npz

Of 60,000 training images it keeps 55,000 at random (torch.utils.data.random_split after manual_seed(0), by its code);
with 5,000 real ones it chooses the classifier's epoch, which we never do (docs/evaluation.md#protocols).
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from dpldm.data.ingest import Preprocessing, ingest
from dpldm.data.readers import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a published set of grey images with classes 0 to 9")
    parser.add_argument("output", type=Path, help=".npz to write")
    parser.add_argument("--count", type=int, default=55_000, help="training images to keep (55,000)")
    parser.add_argument("--image-size", type=int, default=28, help="pixels a side (28)")
    given = parser.parse_args()
    how, labels = Preprocessing(given.image_size, 1), [str(digit) for digit in range(10)]
    arrays = {}
    for split in ("train", "test"):
        found = ingest(open_source(given.source, split=split), how, labels)
        rows = np.arange(len(found.labels))
        if split == "train":
            rows = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).numpy()[: given.count]
        arrays |= {f"{split}_images": found.pixels[rows][..., 0], f"{split}_labels": found.labels[rows]}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(given.output, **arrays)
    print(f"wrote {given.output}: {len(arrays['train_labels']):,} training and {len(rows):,} test images")


if __name__ == "__main__":
    main()
