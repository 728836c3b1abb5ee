"""What a baseline that draws images ends with: its contact sheet, its release, its accuracy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpldm.baselines.result import Baseline
from dpldm.config import RunConfig
from dpldm.data.ingest import Ingested
from dpldm.data.prompts import prompts_of
from dpldm.evaluation.evaluate import measured
from dpldm.privacy.plan import PrivacyPlan
from dpldm.progress import OnProgress
from dpldm.releasing import declared_always, release_images, statement_of
from dpldm.run import Run
from dpldm.sampling import all_drawn
from dpldm.sheet import save_contact_sheet
from dpldm.tuned import ledger_entries


def released(config: RunConfig, kind: str) -> Path:
    """What of a baseline may leave: its images, with a statement that `verify` accepts."""
    return Run(config).directory / f"release-{kind}"


def released_and_measured(
    config: RunConfig,
    run: Run,
    plan: PrivacyPlan,
    kind: str,
    what: str,
    test: Ingested,
    declared: dict[str, Any],
    facts: Mapping[str, str | int | float],
    on_progress: OnProgress,
) -> Baseline:
    """Release and measure the images that `draw_batches` drew for `run`, and keep what was found.

    Args:
        config: of the run that the baseline stands beside.
        run, plan: the baseline's own.
        what: it is, in a sentence.
        declared: what is declared public beside the data and how images were drawn.
        facts: what a reader of its accuracy must know beside the plan and the protocol.

    Raises:
        UserError: an older release is in the way, or there are too few images for the protocol.
    """
    synthetic = all_drawn(run.config, run.config.sampling)
    kinds = config.data.labels or prompts_of(config)
    save_contact_sheet(run.directory / "contact-sheet.png", synthetic.images, synthetic.labels, kinds)
    statement = statement_of(config, plan, 0, ledger_entries(run.config), declared_always(run.config) | declared)
    release_images(config, statement, synthetic, released(config, kind), on_progress)
    found = measured(
        config,
        synthetic,
        test,
        lambda classifier, seed, done, total: on_progress(f"{classifier}, seed {seed}, epoch", done, total),
    )
    utility = found.utility
    known: dict[str, str | int | float] = {
        "epsilon": plan.stated_epsilon(),
        "delta": plan.delta,
        "unit": plan.unit,
        **facts,
        "plan": plan.digest(),
        **({"protocol": utility.protocol, "train": utility.train} if utility else {}),
        **{distance.label: str(distance) for distance in found.distances},
    }
    scores = utility.scores if utility else {}
    result = Baseline(kind, what, plan.public_benchmark, int((~test.null).sum()), scores, known)
    result.keep(config)
    return result
