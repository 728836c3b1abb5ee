"""The commands that take a run's config: plan, rehearse, run, finetune, sample, evaluate, release."""

import argparse
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import yaml

from dpldm.config import RunConfig
from dpldm.console import add_manners, conclude, follow, following, manners, out
from dpldm.errors import UserError
from dpldm.loading import load_config, settings
from dpldm.progress import duration

if TYPE_CHECKING:
    from dpldm.evaluation.utility import UtilityResult

Facts = Mapping[str, Any] | None
"""What a stage found that a program may want to know; public, but for what somebody asked for."""


def main(name: str, parser: argparse.ArgumentParser, words: list[str]) -> int:
    """Read the config and run one stage, or all of them."""
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="FILE",
        help="YAML; start one with `dpldm inspect`, or name a recipe",
    )
    if name in ("run", "release"):
        parser.add_argument(
            "--what", choices=("data", "model", "both"), default="data", help="what the release holds (data)"
        )
    if name == "plan":
        parser.add_argument("--resolved", action="store_true", help="show every setting as it is used, and stop there")
        parser.add_argument("--choices", action="store_true", help="also show what each choice of trainable would tune")
    if name == "sample":
        parser.add_argument(
            "--gen-npz", type=Path, metavar="FILE", help="also write the images as DPImageBench's gen.npz"
        )
    if name == "evaluate":
        parser.add_argument(
            "--synthetic",
            type=Path,
            metavar="PATH",
            help="a folder or .npz of another tool, instead of the run's images",
        )
    if name == "rehearse":
        parser.add_argument("--stand-in", type=Path, metavar="DIR", help="a labelled public set (held-out letters)")
    add_manners(parser)
    parser.set_defaults(command=name, choices=False, resolved=False, gen_npz=None, synthetic=None)
    parser.epilog = _all_settings()
    given, rest = parser.parse_known_args(words)
    config = load_config(RunConfig, given.config, overrides(rest))
    if given.resolved:
        out.print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), markup=False)
        return 0
    use_threads(config)
    with manners(given):
        return _run(config, given)


def _run(config: RunConfig, given: argparse.Namespace) -> int:
    facts: dict[str, Any] = {"command": given.command}
    if given.command == "rehearse":
        from dpldm.rehearsing import rehearsal

        config = rehearsal(config, given.stand_in)
        out.print(f"Rehearsal on public images: run {config.name!r}.")
    facts |= run_stages(config, given)
    _conclude(config, given, facts)
    return 0


def run_stages(config: RunConfig, given: argparse.Namespace) -> dict[str, Any]:
    """The stages of a command, one after the other; what they found."""
    if given.command in ("run", "release"):
        from dpldm.releasing import require_releasable

        require_releasable(config, given.what)
    facts: dict[str, Any] = {}
    for stage in _STAGES[given.command]:
        start = time.monotonic()
        with crashes_kept_inside(config):
            facts |= stage(config, given) or {}
        note_duration(config, stage.__name__.strip("_"), time.monotonic() - start)
    return facts


def _conclude(config: RunConfig, given: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Where things are now, and what comes next. That a file exists tells nothing of an image."""
    from dpldm.run import Run

    run = Run(config)
    known = {
        "contact sheet": run.directory / "contact-sheet.png",
        "release": run.release,
        "INTERNAL": run.private,
    }
    places = {name: place for name, place in known.items() if place.exists()}
    line = f"--config {quote(str(given.config))}"
    if given.command == "rehearse":
        then = [f"dpldm run {line}"]
    elif given.command == "plan":
        then = [f"dpldm rehearse {line}"]
    elif run.release.exists():
        directory, release = quote(str(run.directory)), quote(str(run.release))
        then = [f"dpldm report {directory}", f"dpldm verify {release}", f"dpldm app {release}"]
    else:
        done = [run.checkpoint.exists(), run.synthetic.exists()]
        then = [f"dpldm {('finetune', 'sample', 'release')[sum(done)]} {line}"]
    conclude(given, {"run": config.name, **facts}, places, then)


@contextmanager
def crashes_kept_inside(config: RunConfig) -> Iterator[None]:
    """What a defect says (a shape, a size of memory) may follow private data: it is kept in private/. So may what a
    library warns of (a value that overflows in one record): it is not shown.

    Raises:
        UserError: with a fixed text, in place of any exception that is not meant for the user.
    """
    from dpldm.run import Run

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, OSError):
        raise
    except Exception:
        private = Run(config).private
        if not private.is_dir():  # nothing was read yet
            raise
        report = private / "crash.txt"
        report.write_text(traceback.format_exc(), encoding="utf-8")
        raise UserError(
            f"The run stopped unexpectedly; what happened is in {report} (INTERNAL). "
            "The same command continues; with less memory, lower runtime.physical_batch_size."
        ) from None


def note_duration(config: RunConfig, stage: str, seconds: float) -> None:
    """Append to private/timings.jsonl (durations follow batch sizes: INTERNAL), with the peak of memory so far; `plan`
    leaves no trace on disk."""
    from dpldm.run import Run
    from dpldm.train.memory import peak_so_far

    directory = Run(config).private
    if directory.is_dir():
        with (directory / "timings.jsonl").open("a", encoding="utf-8") as file:
            line = {"stage": stage, "seconds": round(seconds, 1), "peak_bytes": peak_so_far()}
            file.write(json.dumps(line) + "\n")


def overrides(words: list[str]) -> list[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as (key, text) pairs.

    Raises:
        UserError: something is no flag, or has no value.
    """
    pairs: list[tuple[str, str]] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise UserError(f"{word!r} is no option: write settings as --section.key value.")
        key, has_value, text = word[2:].partition("=")
        if not has_value:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(f"--{key} needs a value.")
            text = remaining.pop(0)
        pairs.append((key.replace("-", "_"), text))
    return pairs


def _all_settings() -> str:
    lines = ["settings (in the file, or as --section.key value):"]
    for key, description, default in settings(RunConfig):
        shown = "" if default is None or default == () else f" [{default}]"
        lines.append(f"  {key}{shown}\n      {description}")
    return "\n".join(lines)


def use_threads(config: RunConfig) -> None:
    """As many threads of torch as the config says."""
    if config.runtime.threads:
        import torch

        torch.set_num_threads(config.runtime.threads)


def _plan(config: RunConfig, given: argparse.Namespace) -> Facts:
    from dpldm.planning import choices, plan
    from dpldm.report.forecast import choices_table, forecast_table

    table = choices_table(choices(config), config.trainable) if given.choices else None
    made = plan(config)
    out.print(forecast_table(made))
    if table is not None:
        out.print(table)
    return {"plan": made.to_json()}


def _finetune(config: RunConfig, given: argparse.Namespace) -> Facts:
    if config.method == "portraits":
        return _portray(config)
    if config.selection.learning_rates:
        return _select(config)
    from dpldm.planning import plan
    from dpldm.report.wording import upper
    from dpldm.run import plan_of
    from dpldm.train.finetune import finetune
    from dpldm.train.shown import FinetuneStep

    expected = plan(config).seconds or 0.0  # measured on random numbers, so that the time left tells nothing private

    last: FinetuneStep | None = None
    with following("finetune", timed=False) as show:
        for last in finetune(config, lambda stage, done, total: show(done, total, stage)):
            left = duration(expected * (1 - last.number / last.steps))
            spent = f"epsilon {upper(last.epsilon_spent)} (delta {config.privacy.delta:g})"
            show(last.number, last.steps, spent + (f", about {left} left" if last.number < last.steps else ""))
    if last is None:
        out.print("finetune: finished before, nothing to do")
    elif last.number == last.steps:
        stated = upper(plan_of(config).stated_epsilon())
        out.print(f"finetune: done; the release states epsilon {stated}, which pays for the reserve too")
    elif last.ended_early:
        out.print(f"The reserve of attempts is used up: the run ends after {last.number} of {last.steps} updates.")
    return None


def _portray(config: RunConfig) -> Facts:
    from dpldm.report.wording import upper
    from dpldm.run import plan_of
    from dpldm.train.portraying import portray

    portray(config)
    stated = upper(plan_of(config).stated_epsilon())
    out.print(
        f"portraits: the questions are answered; the release states epsilon {stated}, which pays for the reserve too"
    )
    return None


def _select(config: RunConfig) -> Facts:
    from dpldm.report.wording import upper
    from dpldm.train.selecting import select

    out.print("select: trials are under way; how many there are stays secret, so nothing is shown before the last ends")
    chosen = select(config)
    out.print(
        f"select: done, learning rate {chosen.learning_rate:g} was kept; the release states epsilon "
        f"{upper(chosen.epsilon)}"
    )
    return None


def _sample(config: RunConfig, given: argparse.Namespace) -> Facts:
    from dpldm.data.prompts import prompts_of
    from dpldm.run import Run
    from dpldm.sampling import SampleStep, load_synthetic, sample
    from dpldm.sheet import save_contact_sheet

    def describe(step: SampleStep) -> tuple[int, int, str]:
        return step.done, step.count, "images"

    follow(sample(config), "sample", describe)
    drawn = load_synthetic(config)
    names = config.data.labels or prompts_of(config)
    save_contact_sheet(Run(config).directory / "contact-sheet.png", drawn.images, drawn.labels, names)
    if given.gen_npz:
        from dpldm.data.export import export_gen_npz

        export_gen_npz(given.gen_npz, drawn.images, drawn.labels)
        out.print(f"DPImageBench's format: {given.gen_npz}")
    return {"images": len(drawn.images)}


def _evaluate(config: RunConfig, given: argparse.Namespace) -> Facts:
    from dpldm.evaluation.evaluate import evaluate, evaluate_foreign
    from dpldm.report.forecast import evaluation_table
    from dpldm.run import Run

    # The console of a run is outside: what reads private images is shown only to who asks for it.
    shown = config.privacy.public_benchmark or given.command == "evaluate"
    with following("evaluate", timed=shown) as show:

        def on_epoch(kind: str, seed: int, done: int, total: int) -> None:
            show(done, total, f"epochs of {kind}, seed {seed}")

        result = evaluate_foreign(config, given.synthetic, on_epoch) if given.synthetic else evaluate(config, on_epoch)
    if not shown:
        out.print(f"evaluation: INTERNAL, see {Run(config).private / 'evaluation.json'} or run `dpldm evaluate`")
        return None
    out.print(evaluation_table(result))
    facts: dict[str, Any] = {"evaluation": result.to_json()}
    if given.command == "rehearse" and result.utility is not None:
        facts["outlook"] = _show_outlook(config, result.utility)
    return facts


def _show_outlook(config: RunConfig, utility: "UtilityResult") -> dict[str, Any]:
    """What a rehearsal says of the plan."""
    from dpldm.outlook import of_rehearsal
    from dpldm.planning import start_of
    from dpldm.report.forecast import outlook_lines

    accuracy, classes = utility.scores["cnn"].mean, len(config.data.labels)
    found = of_rehearsal(accuracy, start_of(config), classes, tunes=config.method == "diffusion")
    out.print(outlook_lines(found))
    return asdict(found)


def _check_evaluation(config: RunConfig, given: argparse.Namespace) -> Facts:
    from dpldm.evaluation.evaluate import check_evaluation

    if config.data.test_path is not None:
        check_evaluation(config)
    return None


def _evaluate_if_possible(config: RunConfig, given: argparse.Namespace) -> Facts:
    if config.data.test_path is not None:
        return _evaluate(config, given)
    out.print("No data.test_path: evaluation is left out.")
    return None


def _release(config: RunConfig, given: argparse.Namespace) -> Facts:
    from dpldm.releasing import release
    from dpldm.verifying import read_statement

    with following("release") as show:
        target = release(config, given.what, lambda stage, done, total: show(done, total, stage))
    return {"guarantee": read_statement(target)["guarantee"]}


Stage = Callable[[RunConfig, argparse.Namespace], Facts]
_STAGES: dict[str, tuple[Stage, ...]] = {
    "plan": (_plan,),
    "finetune": (_finetune,),
    "sample": (_sample,),
    "evaluate": (_evaluate,),
    "release": (_release,),
    "run": (_plan, _check_evaluation, _finetune, _sample, _evaluate_if_possible, _release),
    "rehearse": (_plan, _check_evaluation, _finetune, _sample, _evaluate),
    "reproduce": (_plan, _check_evaluation, _finetune, _sample, _evaluate),
}
