"""`dpldm push RELEASE REPOSITORY`."""

import argparse
from pathlib import Path

EPILOG = """Uploads exactly the files that `dpldm verify` accepts, after it accepted them. Log in first, with
`hf auth login`. Nothing else of dpldm ever uploads anything."""


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Upload a release and say where it is."""
    parser.add_argument("release", type=Path, help="directory made by `dpldm release`")
    parser.add_argument("repository", help="OWNER/NAME on the Hugging Face hub; made, private, if it does not exist")
    parser.add_argument("--public", action="store_true", help="let everyone see it")
    parser.epilog = EPILOG
    given = parser.parse_args(words)
    from dpldm.pushing import push

    print(f"pushed: {push(given.release, given.repository, public=given.public)}")
    return 0
