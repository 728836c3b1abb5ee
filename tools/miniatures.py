"""Write every set that rows of `dpldm reproduce` read, in miniature and in its true format, to try a row without them.

python tools/miniatures.py DIR
dpldm reproduce mnist/eps10 --scale smoke --data DIR
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from miniatures import ROWS, write_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_all(folder)
    print(f"wrote {', '.join(ROWS)} below {folder}")


if __name__ == "__main__":
    main()
