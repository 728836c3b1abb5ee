"""What of a published set is there, and whether it can be opened: `dpldm public check NAME DIR`."""

from dataclasses import dataclass
from pathlib import Path

from dpldm.data.folders import FolderSource
from dpldm.data.published import Published
from dpldm.data.readers import open_source
from dpldm.errors import UserError


@dataclass(frozen=True)
class Findings:
    """What a check found. Counts of images are told of published sets only."""

    there: list[str]
    missing: list[str]
    optional: list[str]
    """Not there, and not needed."""
    opened: list[str]
    """A line for each split that could be opened."""
    problems: list[str]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing or wrong."""
        return not self.missing and not self.problems


def check(entry: Published, root: Path) -> Findings:
    """Look at what lies in `root`, and open what can be opened.

    Raises:
        UserError: `root` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder: give the one into which the archives were unpacked.")
    there = [part for part in entry.parts if part.lies_in(root)]
    absent = [part for part in entry.parts if part not in there]
    findings = Findings(
        [part.what for part in there],
        [part.what for part in absent if part.needed],
        [part.what for part in absent if not part.needed],
        [],
        [],
    )
    if there:
        for split in entry.splits or {"train": 0}:
            try:
                findings.opened.append(_opened(entry, root, split))
            except UserError as error:
                if str(error) not in findings.problems:
                    findings.problems.append(str(error))
    return findings


def _opened(entry: Published, root: Path, split: str) -> str:
    """What opening a split shows, in a line.

    Raises:
        UserError: it cannot be opened, or lacks images.
    """
    if split in entry.large:
        return f"{split}: not opened, because it is large"
    source = open_source(root, split=split, **entry.columns)
    if not entry.splits:  # a format: the images may be private, and are for `dpldm inspect`
        return f"recognised as {source.layout}"
    if isinstance(source, FolderSource):
        lacking = sum(not (source.root / key).is_file() for key in source.keys)
        if lacking:
            raise UserError(f"{lacking:,} of the {len(source):,} images of the split {split} are not there.")
    published = (entry.splits[split], *entry.otherwise.get(split, ()))
    if len(source) not in published:
        counts = " or ".join(f"{count:,}" for count in published)
        raise UserError(f"The split {split} has {len(source):,} images; published are {counts}.")
    classes = "" if source.labels is None else f" in {len(set(source.labels)):,} classes"
    return f"{split}: {len(source):,} images{classes}"
