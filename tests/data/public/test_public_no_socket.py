"""Public icons and letters are made of what is on this machine (the other commands: test_no_socket.py)."""

from collections.abc import Callable
from pathlib import Path

from dpldm.cli import main
from sockets import no_socket


def test_icons_and_glyphs_are_made_without_a_socket(
    make_font: Callable[..., Path], icon_package: Path, tmp_path: Path
) -> None:
    fonts = {make_font(f"Family {number}").parent for number in range(3)}
    with no_socket() as tried:
        for kind, source in (("icons", ["--source", str(icon_package)]), ("glyphs", ["--fonts", *map(str, fonts)])):
            words = [*source, "--count", "30", "--output", str(tmp_path / kind)]
            assert main(["public", kind, *words]) == 0
    assert tried == []
