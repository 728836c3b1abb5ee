"""The texts that accompany a release: plain Markdown, from the privacy statement and declared constants alone."""

import re
from collections.abc import Mapping
from typing import Any

from dpldm.config import RunConfig
from dpldm.report.wording import asks_alone, guarantee_sentence, is_selection, odds_sentence, trial_constants

PLAIN = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>()#|!~&:@$"})
WEB = re.compile(r"\bwww\.", re.IGNORECASE)


def release_card(config: RunConfig, statement: Mapping[str, Any]) -> str:
    """README.md of the release directory."""
    claim, plan = statement["guarantee"], trial_constants(statement["plan"])
    return f"""# {plain(config.name)}

This release is {guarantee_sentence(statement)}.

{odds_sentence(claim["epsilon"], claim["unit"])}
{benchmark_note(statement)}
| | |
|---|---|
| mechanism | {statement["mechanism"]} |
{_mechanism_rows(statement)}| backbone (public) | {plain(statement["backbone"]["name"])} |
| ledger head | {statement["ledger"]["head"]["seq"]}, `{statement["ledger"]["head"]["hash"]}` |

Not protected, because declared public: the number of records as declared ({plan["records"]}), the class names, image
size, preprocessing, hyperparameters and the backbone. The promise is per {claim["unit"]}.

Check it with `dpldm verify` and this directory: epsilon is recomputed from `privacy.json`, and every file's hash is
compared.
"""


def benchmark_note(statement: Mapping[str, Any]) -> str:
    """A paragraph where the training images are public already; else nothing."""
    if not statement["guarantee"]["public_benchmark"]:
        return ""
    return (
        "\n**The training images are a published benchmark.** The mechanism is the same, but nothing was protected.\n"
    )


def handful_card(statement: Mapping[str, Any], what: str, asked: Mapping[str, Any]) -> str:
    """README.md of some images that were taken out of a release, or drawn by its model.

    Args:
        what: where they come from, in words.
        asked: what was asked for.
    """
    how = ", ".join(f"{name} {plain(str(value))}" for name, value in asked.items() if value != "")
    run, digest = trial_constants(statement["plan"])["run"], statement["plan_digest"]
    return f"""# Synthetic images of {plain(run)}

Some images of a release (plan `{digest}`), which is {guarantee_sentence(statement)}. That covers
everything computed from the release, so these too. What proves it is the release itself: `dpldm verify` checks that,
and no part of it alone.

* {what.lower()}: {how}
* none is a photograph of anyone or anything
"""


def _mechanism_rows(statement: Mapping[str, Any]) -> str:
    """Rows of the table about what was noised."""
    return _gradient_rows(statement) + _selection_row(statement) + _query_rows(trial_constants(statement["plan"]))


def _gradient_rows(statement: Mapping[str, Any]) -> str:
    """Rows of the table about gradients, where there are any."""
    if asks_alone(statement["plan"]):
        return ""
    plan = trial_constants(statement["plan"])
    return f"""| noise multiplier sigma | {plan["noise_multiplier"]} |
| sampling probability q | {plan["expected_batch_size"]} / {plan["records"]} |
| updates made | {statement["updates"]} of {plan["steps"]} |
| attempts accounted (T + R) | {plan["steps"]} + {plan["reserve_steps"]} |
| clip norm C, rule, draws K | {plan["max_grad_norm"]:g}, {plan["clipping"]}, {plan["draws_per_example"]} |
"""


def _selection_row(statement: Mapping[str, Any]) -> str:
    """A row of the table for a selection. The rows about sigma, updates and attempts are those of a trial."""
    if not is_selection(plan := statement["plan"]):
        return ""
    rates = ", ".join(f"{rate:g}" for rate in statement["declared_constants"]["learning_rates"])
    kept = statement["declared_constants"]["optimizer"]["learning_rate"]
    return (
        f"| selection | learning rate {kept:g} of {rates}; {plan['mean_trials']:g} trials on average, each as above |\n"
    )


def _query_rows(plan: Mapping[str, Any]) -> str:
    """A row of the table for each question beside the gradients."""
    return "".join(
        f"| query {query['kind']} | noise multiplier {query['noise_multiplier']:g}, "
        f"attempts accounted {query.get('rounds', 1)} + {query['reserve']} |\n"
        for query in plan.get("queries", ())
    )


def plain(text: str) -> str:
    """Text as Markdown shows it literally, on one line; nothing in it becomes a link."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()).translate(PLAIN)
    return WEB.sub(lambda found: found[0].replace(".", "\\."), line)
