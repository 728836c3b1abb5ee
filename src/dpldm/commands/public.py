"""`dpldm public glyphs|icons|folder|emoji|digits|check`."""

import argparse
from pathlib import Path

from dpldm.console import add_manners, conclude, following_stages, manners, out
from dpldm.data.bundled import write_digits
from dpldm.data.names import printable
from dpldm.data.presence import check
from dpldm.data.public.collection import require_place
from dpldm.data.public.emoji import write_emoji
from dpldm.data.public.folder import make_from_folder
from dpldm.data.public.glyphs import make_glyphs
from dpldm.data.public.icons import make_icons
from dpldm.data.published import SETS, lines_of, published
from dpldm.progress import OnProgress


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Make one public set, or look at a published one."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="glyphs|icons|folder|emoji|digits|check")
    glyphs = kinds.add_parser("glyphs", help="letters of free fonts, jittered like handwriting")
    glyphs.add_argument("--fonts", type=Path, nargs="*", help="folders of font files (default: installed fonts)")
    glyphs.add_argument(
        "--hold-out", type=float, default=0.0, metavar="SHARE", help="font families to leave out (0.25)"
    )
    glyphs.add_argument("--only-held-out", action="store_true", help="make the set of the families left out")
    icons = kinds.add_parser("icons", help="shapes from an unpacked @iconify/json package")
    icons.add_argument("--source", type=Path, required=True, help="folder of the unpacked package")
    icons.add_argument("--shaded", type=float, default=0.6, metavar="SHARE", help="share drawn with texture (0.6)")
    icons.add_argument("--private-vendor", metavar="SET", help="emoji set that is private: what it tests is left out")
    emoji = kinds.add_parser("emoji", help="write the emoji of one vendor as folders, a benchmark in colour")
    emoji.add_argument("--source", type=Path, required=True, help="folder of the unpacked package @iconify/json")
    emoji.add_argument("--vendor", default="noto", help="name of the emoji set (noto)")
    folder = kinds.add_parser("folder", help="images of your own choice that may be used publicly")
    folder.add_argument("--source", type=Path, required=True, help="folder or file, as `dpldm inspect` reads it")
    folder.add_argument("--licence", required=True, help="licence of the images, for the provenance")
    folder.add_argument("--origin", required=True, help="where they come from, for the provenance")
    for kind in (glyphs, icons):
        kind.add_argument("--count", type=int, required=True, help="number of images")
        kind.add_argument("--seed", type=int, default=0, help="seed; the same seed gives the same bytes")
    for kind in (glyphs, icons, folder, emoji):
        kind.add_argument("--image-size", type=int, default=32, help="pixels a side (32)")
    for kind in (icons, folder):
        kind.add_argument("--channels", type=int, choices=(1, 3), default=1, help="1 grey, 3 colour (1)")
    digits = kinds.add_parser("digits", help="write the 5,000 bundled handwritten digits as folders")
    for kind in (glyphs, icons, folder, emoji, digits):
        kind.add_argument("--output", type=Path, required=True, help="folder to write")
        add_manners(kind)
    checked = kinds.add_parser("check", help="a published set: where to get it, what of it is there")
    checked.add_argument("name", nargs="?", help=f"one of {', '.join(SETS)} (all are listed)")
    checked.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="folder to look into")
    given = parser.parse_args(words)
    if given.kind == "check":
        return _check(given.name, given.directory)
    with manners(given), following_stages(f"public {given.kind}") as on_progress:
        return _make(given, on_progress)


def _make(given: argparse.Namespace, on_progress: OnProgress) -> int:
    if given.kind == "digits":
        private, test = write_digits(given.output)
        out.print(f"4,000 digits in {private}, 1,000 in {test}.")
        conclude(given, {"images": 5000}, {"private": private, "test": test}, ())
        return 0
    require_place(given.output)
    if given.kind == "emoji":
        return _emoji(given, on_progress)
    if given.kind == "glyphs":
        made = make_glyphs(
            given.fonts or None,
            image_size=given.image_size,
            count=given.count,
            seed=given.seed,
            held_out_fraction=given.hold_out,
            only_held_out=given.only_held_out,
            on_progress=on_progress,
        )
    elif given.kind == "folder":
        made = make_from_folder(
            given.source,
            image_size=given.image_size,
            channels=given.channels,
            licence=given.licence,
            origin=given.origin,
        )
    else:
        made = make_icons(
            given.source,
            image_size=given.image_size,
            channels=given.channels,
            count=given.count,
            seed=given.seed,
            shaded_fraction=given.shaded,
            private_vendor=given.private_vendor,
            on_progress=on_progress,
        )
    made.save(given.output)
    dropped = ", ".join(f"{number:,} {reason}" for reason, number in made.provenance.get("dropped", {}).items())
    left_out = f" (left out: {dropped})" if dropped else ""
    out.print(f"{len(made):,} images in {given.output}{left_out}; look at the sheets before you use them.")
    sheets = {path.stem.replace("-", " "): path for path in sorted(given.output.glob("*-sheet.png"))}
    conclude(given, {"images": len(made)}, {"folder": given.output} | sheets, ())
    return 0


def _emoji(given: argparse.Namespace, on_progress: OnProgress) -> int:
    private, test, counts = write_emoji(
        given.source, given.vendor, given.output, image_size=given.image_size, on_progress=on_progress
    )
    out.print(
        f"{sum(counts.values()):,} emoji in {given.output}: {', '.join(f'{n:,} {what}' for what, n in counts.items())}."
    )
    conclude(given, {"images": sum(counts.values())}, {"private": private, "test": test}, ())
    return 0


def _check(name: str | None, directory: Path | None) -> int:
    """Exit code 1 if something of the set is missing or wrong."""
    if name is None:
        for known, entry in SETS.items():
            out.print(f"{known:18}{entry.title}")
        return 0
    entry = published(name)
    rows = list(lines_of(name, entry))
    findings = None if directory is None else check(entry, directory)
    if findings is not None:
        rows += [("there", ", ".join(findings.there) or "nothing")]
        rows += [("MISSING", what) for what in findings.missing]
        rows += [("optional", f"not there: {what}") for what in findings.optional]
        rows += [("opened", line) for line in findings.opened]
        rows += [("WRONG", line) for line in findings.problems]
    for heading, text in rows:
        out.print(f"{heading:10}{printable(text)}", markup=False)
    return 0 if findings is None or findings.complete else 1
