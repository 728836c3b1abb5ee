"""Put a backbone that `dpldm pretrain` made into the package, without the files that it can borrow.

    python tools/bundle.py candidates/rgb32-text

What another bundled backbone or MiniLM's package holds byte for byte is left out and listed in the card
(models/borrowing.py).
"""

import argparse
import json
import shutil
from pathlib import Path

from dpldm.models.borrowing import installed
from dpldm.models.minilm import BORROWED

BUNDLED = Path("src/dpldm/backbones")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", type=Path)
    given = parser.parse_args()
    target = BUNDLED / given.backbone.name
    shutil.copytree(given.backbone, target)
    others = [path for path in BUNDLED.glob("*/*/*.safetensors") if not path.is_relative_to(target)]
    lenders = {path: f"dpldm/{path.relative_to('src/dpldm')}" for path in others}
    if (target / "text_encoder").exists():
        lenders |= {installed(source): source for source in BORROWED.values()}
    borrowed = {}
    for path in sorted(target.glob("*/*")):
        source = next((name for lender, name in lenders.items() if same(lender, path)), None)
        if source is not None:
            borrowed[path.relative_to(target).as_posix()] = source
            path.unlink()
    card = json.loads((target / "backbone.json").read_text(encoding="utf-8"))
    text = json.dumps(card | ({"borrowed": borrowed} if borrowed else {}), indent=2)
    (target / "backbone.json").write_text(text + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB, borrowed: {', '.join(borrowed) or 'nothing'}")


def same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


if __name__ == "__main__":
    main()
