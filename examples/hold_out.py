"""Move the images of one person in ten to a folder of their own, to evaluate on (`data.test_path`).

    python examples/hold_out.py scans held-out --group-column patient

Whole persons are moved, or the same person would be trained on and tested on. Who is moved is decided by a hash of the
person's name alone: one person more or less changes nothing for the others, as the guarantee wants it.
"""

import argparse
import csv
import hashlib
import shutil
from pathlib import Path

Row = dict[str, str]


def main() -> None:
    """Move files, and write a metadata.csv for each of the two folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with a metadata.csv that has a column file_name")
    parser.add_argument("held_out", type=Path, help="new folder for what is held out")
    parser.add_argument("--group-column", default="file_name", help="column that names the person (each image alone)")
    parser.add_argument("--share", type=float, default=0.1, help="share of persons to hold out (0.1)")
    given = parser.parse_args()

    table = given.folder / "metadata.csv"
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    held_out = [row for row in rows if is_held_out(row[given.group_column] or row["file_name"], given.share)]
    given.held_out.mkdir()  # never into a folder that holds something
    write_table(given.held_out / "metadata.csv", held_out)
    for row in held_out:
        place = given.held_out / row["file_name"]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(given.folder / row["file_name"], place)
    write_table(table, [row for row in rows if row not in held_out])


def is_held_out(name: str, share: float) -> bool:
    """The same answer for the same name, whatever else there is."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < share * 2**64


def write_table(path: Path, rows: list[Row]) -> None:
    """The rows with the header of the first."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
