"""Prompts for sampling: a public text file. Whether it is public is judged by where it lies, never by what it says:
comparing it with private captions would itself be an output about them.
"""

from pathlib import Path

from dpldm.config import RunConfig
from dpldm.errors import UserError


def prompts_of(config: RunConfig) -> list[str]:
    """The prompts of sampling.prompts, one a line, blank lines left out; [] if there is none.

    Raises:
        UserError: the file lies with the private data, cannot be read, is empty, or does not fit the other settings.
    """
    path = config.sampling.prompts
    if path is None:
        return []
    if config.data.caption_column is None:
        raise UserError("sampling.prompts is for data.caption_column: set that, or leave sampling.prompts out.")
    if config.sampling.label_counts is not None:
        raise UserError("sampling.label_counts is for data.labels, and there are prompts: leave one of them out.")
    _refuse_private_place(path, config)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        raise UserError(f"The prompts {path} cannot be read as UTF-8 text: correct sampling.prompts.") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"The prompts {path} are empty: write one a line.")
    return prompts


def _refuse_private_place(path: Path, config: RunConfig) -> None:
    data = config.data
    private = [place.resolve() for place in (data.path, data.test_path) if place is not None]
    private.append((config.runtime.output / config.name / "private").resolve())
    if any(path.resolve().is_relative_to(place) for place in private):
        raise UserError(
            f"The prompts {path} lie with the private data, and would be published with the images: write prompts that "
            "come from nobody's record, in another folder."
        )
