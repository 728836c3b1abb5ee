"""`dpldm inspect DATA [--write run.yaml]`."""

import argparse
from pathlib import Path
from shlex import quote

from dpldm.data.inspect import inspect_source, render, write_config


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Print what is there; INTERNAL."""
    parser.add_argument("data", type=Path, help="folder, .npz, or idx file of images")
    parser.add_argument("--write", type=Path, metavar="FILE", help="start a config for this data")
    parser.add_argument("--label-column", help="column of the metadata table that holds the class")
    parser.add_argument("--caption-column", help="column that holds a text for each image, instead of a class")
    parser.add_argument("--group-column", help="column that names the person or patient of each image")
    given = parser.parse_args(words)
    inspection = inspect_source(
        given.data,
        label_column=given.label_column,
        caption_column=given.caption_column,
        group_column=given.group_column,
    )
    print(render(inspection))
    if given.write:
        write_config(inspection, given.write)
        print(f"\nWrote {given.write}: fill in privacy.records, then  dpldm plan --config {quote(str(given.write))}")
    return 0
