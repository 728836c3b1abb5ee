"""`dpldm baseline KIND --config FILE [--stand-in [DIR]]`."""

import argparse
import time
from pathlib import Path

from dpldm.commands.run import crashes_kept_inside, note_duration, overrides, use_threads
from dpldm.config import RunConfig
from dpldm.console import add_manners, conclude, following_stages, manners, out
from dpldm.loading import load_config

EPILOG = """classifier  a linear classifier on public features, trained with DP-SGD on the real images; resumes.
            A plan of its own, which costs privacy.epsilon once more, within privacy.cap. Its accuracy is INTERNAL
pe          Private Evolution: images of the backbone as it is, chosen by noised votes of the real ones (evolution.*);
            resumes. Paid for like classifier
portraits   images drawn from noised means and covariances of the classes' latents, without any gradient; resumes.
            Paid for like classifier
real        the papers' CNN trained on the real images
noiseless   the run's own tuning, sampling and evaluation without noise; resumes
The last two are NOT PRIVATE, hence only for images that are published, or for --stand-in.
Settings may follow as --section.key value. Results: private/baselines/KIND.json in the run's folder."""


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Run one baseline and print what it found."""
    parser.add_argument("kind", choices=("classifier", "pe", "portraits", "real", "noiseless"))
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run's config")
    parser.add_argument(
        "--stand-in",
        type=Path,
        nargs="?",
        const=True,
        metavar="DIR",
        help="on public images in place of private ones: a labelled public set (held-out letters)",
    )
    add_manners(parser)
    parser.epilog = EPILOG
    given, rest = parser.parse_known_args(words)
    config = load_config(RunConfig, given.config, overrides(rest))
    use_threads(config)
    with manners(given):
        return _run(config, given)


def _run(config: RunConfig, given: argparse.Namespace) -> int:
    from dpldm.baselines.classifier import classifier
    from dpldm.baselines.noiseless import noiseless
    from dpldm.baselines.pe import pe
    from dpldm.baselines.portraits import portraits
    from dpldm.baselines.real import real
    from dpldm.baselines.result import folder_of
    from dpldm.report.baseline import baseline_table

    if given.stand_in is not None:
        from dpldm.rehearsing import rehearsal

        config = rehearsal(config, None if given.stand_in is True else given.stand_in)
        out.print(f"Rehearsal on public images: run {config.name!r}.")
    kinds = {"classifier": classifier, "pe": pe, "portraits": portraits, "real": real, "noiseless": noiseless}
    start = time.monotonic()
    # Numbers alone decide what is shown, never a time: see `console.following`.
    with crashes_kept_inside(config), following_stages(f"baseline {given.kind}", timed=False) as on_progress:
        result = kinds[given.kind](config, on_progress)
    note_duration(config, f"baseline {given.kind}", time.monotonic() - start)
    out.print(baseline_table(result))
    place = "figures" if result.public else "INTERNAL figures"
    conclude(given, result.to_json(), {place: folder_of(config) / f"{given.kind}.json"}, ())
    return 0
