"""A picture of what prompts give: a row for each, its words, images of the untuned backbone, then those of each run.

python tools/prompts.py runs/emoji-text-eps10 runs/emoji-text-eps1 docs/images/emoji-text.png [--every 2]
"""

import argparse
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw
from untuned import drawn

from dpldm.config import RunConfig
from dpldm.sampling import load_synthetic, texts_of

EACH, GAP, WORDS, SCALE = 6, 8, 110, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="runs with the same prompts")
    parser.add_argument("output", type=Path)
    parser.add_argument("--every", type=int, default=2, help="show every N-th prompt (2)")
    given = parser.parse_args()
    configs = [
        RunConfig.model_validate(yaml.safe_load((run / "config.resolved.yaml").read_text())) for run in given.run
    ]
    texts = texts_of(configs[0])
    shown = range(0, len(texts), given.every)
    sets = [drawn(configs[0], EACH * len(texts))]
    sets += [(synthetic.images, synthetic.labels) for synthetic in map(load_synthetic, configs)]
    size = configs[0].data.image_size
    width = WORDS + sum(GAP + EACH * (size + 1) for _ in sets)
    picture = Image.new("RGB", (width, len(shown) * (size + 1)), "white")
    for row, number in enumerate(shown):
        for column, (images, labels) in enumerate(sets):
            left = WORDS + column * (GAP + EACH * (size + 1)) + GAP
            for place, index in enumerate(np.flatnonzero(labels == number)[:EACH]):
                picture.paste(Image.fromarray(images[index]), (left + place * (size + 1), row * (size + 1)))
    picture = picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for row, number in enumerate(shown):
        pen.text((4, SCALE * (row * (size + 1) + size // 3)), texts[number], fill="black", font_size=13)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    picture.save(given.output)


if __name__ == "__main__":
    main()
