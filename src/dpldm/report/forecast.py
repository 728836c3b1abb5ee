"""The tables of `plan` and `evaluate` for a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dpldm.evaluation.evaluate import Evaluation
from dpldm.outlook import Outlook, Verdict
from dpldm.planning import Choice, Forecast
from dpldm.privacy.plan import PrivacyPlan
from dpldm.privacy.selection import SelectionPlan
from dpldm.progress import duration
from dpldm.report.wording import upper


def forecast_table(forecast: Forecast) -> RenderableType:
    """Everything about a plan, privacy first."""
    plan = forecast.plan
    table = Table(title=f"plan of run {plan.run}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    claim = f"epsilon {upper(forecast.epsilon)}, delta {plan.delta:g}"
    table.add_row("guarantee", f"{claim}, adding or removing one {plan.unit}")
    table.add_row("", f"epsilon {upper(forecast.epsilon_replace_one)} for replacing one {plan.unit}")
    if forecast.epsilon_of_person:
        of_person = ", ".join(f"{upper(value)} with {images}" for images, value in forecast.epsilon_of_person)
        table.add_row("", f"for a person with several images: epsilon {of_person}")
    if forecast.selection is not None:
        _add_selection(table, forecast.selection)
    if plan.tunes:
        _add_gradients(table, plan)
    for question in plan.queries:
        table.add_row(
            f"query {question.kind}", f"noise {question.noise_multiplier:g}, once, {question.reserve} in reserve"
        )
    if forecast.noise_in_means is not None:
        table.add_row("noise in a class's mean", f"{forecast.noise_in_means:.3f} of the norm that latents are cut to")
    if plan.tunes:
        _add_tuning(table, forecast)
    if forecast.seconds is not None:
        average = "on average " if forecast.selection is not None else ""
        what = "fine-tuning here" if plan.tunes else "encoding, asking here"
        table.add_row(what, f"{average}about {duration(forecast.seconds)}")
    if forecast.seconds_of_drawing is not None:
        table.add_row(
            "drawing here", f"about {duration(forecast.seconds_of_drawing)} for {forecast.images_to_draw:,} images"
        )
    if forecast.memory_bytes is not None:
        rows = "an example" if forecast.rows_at_once == 1 else f"{forecast.rows_at_once} examples"
        passes = f", with {rows} in a pass" if plan.tunes else ", while encoding and asking"
        table.add_row("memory", f"{forecast.memory_bytes / 1e9:.1f} GB at most{passes}")
    warnings = [Text(f"! {warning}", style="yellow") for warning in forecast.warnings]
    return Group(table, outlook_lines(forecast.outlook), *warnings)


def _add_gradients(table: Table, plan: PrivacyPlan) -> None:
    """The constants of Algorithm 1."""
    table.add_row(
        "sampling probability q",
        f"{plan.sampling_probability:.5f} = {plan.expected_batch_size} / {plan.records}",
    )
    table.add_row("attempts", f"T = {plan.steps} updates + R = {plan.reserve_steps} in reserve")
    table.add_row("noise multiplier sigma", f"{plan.noise_multiplier}")
    table.add_row("clip norm C, draws K", f"{plan.max_grad_norm:g}, {plan.draws_per_example}")


def _add_tuning(table: Table, forecast: Forecast) -> None:
    """What is tuned, and how epsilon grows meanwhile."""
    if forecast.plan.queries and forecast.selection is None:
        table.add_row("queries alone", f"epsilon {upper(forecast.epsilon_of_queries)}, part of the guarantee's")
    curve = "  ".join(f"{n}: {upper(value)}" for n, value in forecast.epsilon_curve)
    table.add_row("epsilon after attempts", curve)
    share = forecast.trainable_parameters / forecast.total_parameters
    table.add_row(
        "tuned parameters P",
        f"{forecast.trainable_parameters:,} of {forecast.total_parameters:,} ({share:.0%})",
    )
    if forecast.noise_to_signal is not None:
        table.add_row("noise-to-signal", f"{forecast.noise_to_signal:.2f} = sigma sqrt(P) / L, per step")


def outlook_lines(outlook: Outlook) -> RenderableType:
    """A verdict with its reason, and what could be done instead, a line each."""
    verdict = f"{outlook.verdict[0].upper()}{outlook.verdict[1:]}: {outlook.reason}."
    if outlook.verdict is not Verdict.NO:
        return Text(verdict)
    return Group(Text(verdict, style="bold yellow"), *(Text(f"  instead: {other}") for other in outlook.alternatives))


def _add_selection(table: Table, selection: SelectionPlan) -> None:
    """What a selection costs, and what it can miss."""
    table.add_row(
        "selection",
        f"best of a secret number of trials, {selection.mean_trials:g} on average; each of {selection.candidates} "
        f"learning rates is tried with probability {selection.chance_of_a_candidate:.0%}",
    )
    table.add_row("", f"a trial alone: epsilon {upper(selection.trial.stated_epsilon())}; all below is of one trial")


def choices_table(choices: list[Choice], current: str) -> RenderableType:
    """What each choice of `trainable` would tune, and how loud the noise would be for it."""
    table = Table(title="what could be tuned instead", title_justify="left")
    table.add_column("trainable", style="bold")
    for name in ("parameters", "share", "noise-to-signal"):
        table.add_column(name, justify="right")
    for choice in choices:
        name = f"{choice.trainable} (this plan)" if choice.trainable == current else choice.trainable
        table.add_row(name, f"{choice.parameters:,}", f"{choice.share:.1%}", f"{choice.noise_to_signal:.2f}")
    return table


def evaluation_table(result: Evaluation) -> RenderableType:
    """Accuracies and distances, headed by whether they may be shown. Means and best values never share a column.

    `by class` is the mean over classes of their accuracies; `one answer` that of always naming the most frequent class.
    """
    status = "public benchmark" if result.public_benchmark else "INTERNAL: reads private images, do not publish"
    accuracies = Table(title=f"evaluation ({status})", title_justify="left")
    for name in ("accuracy", "mean", "by class", "one answer", "best", "how"):
        accuracies.add_column(name, style="bold" if name == "accuracy" else None)
    if (utility := result.utility) is not None:
        how = f"{utility.protocol}: {utility.train:,} + {utility.validation:,} synthetic, {utility.epochs} epochs"
        for kind, score in utility.scores.items():
            low, high = score.interval
            best = f"{100 * max(score.accuracies):.1f} % of {len(score.accuracies)} seeds"
            accuracies.add_row(
                f"{kind} accuracy",
                f"{100 * score.mean:.1f} %  ({100 * low:.1f} to {100 * high:.1f})",
                f"{100 * score.balanced:.1f} %",
                f"{100 * utility.guessing:.1f} %",
                best if len(score.accuracies) > 1 else "",
                how,
            )
        if len(utility.scores) > 1:
            summary = utility.summary
            best = f"{100 * summary.best:.1f} %  ({summary.best_kind})"
            accuracies.add_row(
                f"all {len(utility.scores)}", f"{100 * summary.mean:.1f} %", "", "", best, "of the rows above"
            )
    distances = Table(title="" if utility else accuracies.title, title_justify="left")
    for name in ("measure", "value", "how"):
        distances.add_column(name, style="bold" if name == "measure" else None)
    for distance in result.distances:
        error = "" if distance.error is None else f" ± {distance.error:.2g}"
        distances.add_row(distance.label, f"{distance.value:.4g}{error}", distance.counts)
    parts = [Text(str(result.foreign))] if result.foreign else []
    return Group(*parts, *([accuracies] if utility else []), distances)
