"""The texts that accompany a release: plain Markdown, from the privacy statement and declared constants alone."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from dpldm.config import RunConfig
from dpldm.report.wording import guarantee_sentence, is_selection, odds_sentence, trial_constants

PLAIN = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>()#|!~&:@$"})
WEB = re.compile(r"\bwww\.", re.IGNORECASE)


def release_card(config: RunConfig, statement: Mapping[str, Any]) -> str:
    """README.md of the release directory."""
    claim, plan = statement["guarantee"], trial_constants(statement["plan"])
    benchmark = (
        "\n**The training images are a published benchmark.** The mechanism is the same, but nothing was protected.\n"
        if claim["public_benchmark"]
        else ""
    )
    return f"""# {plain(config.name)}

This release is {guarantee_sentence(statement)}.

{odds_sentence(claim["epsilon"], claim["unit"])}
{benchmark}
| | |
|---|---|
| mechanism | {statement["mechanism"]} |
| noise multiplier sigma | {plan["noise_multiplier"]} |
| sampling probability q | {plan["expected_batch_size"]} / {plan["records"]} |
| updates made | {statement["updates"]} of {plan["steps"]} |
| attempts accounted (T + R) | {plan["steps"]} + {plan["reserve_steps"]} |
| clip norm C, rule, draws K | {plan["max_grad_norm"]:g}, {plan["clipping"]}, {plan["draws_per_example"]} |
{_selection_row(statement)}{_query_rows(plan)}| backbone (public) | {plain(statement["backbone"]["name"])} |
| ledger head | {statement["ledger"]["head"]["seq"]}, `{statement["ledger"]["head"]["hash"]}` |

Not protected, because declared public: the number of records as declared ({plan["records"]}), the class names, image
size, preprocessing, hyperparameters and the backbone. The promise is per {claim["unit"]}.

Check it with `dpldm verify` and this directory: epsilon is recomputed from `privacy.json`, and every file's hash is
compared.
"""


def synthetic_card(config: RunConfig, statement: Mapping[str, Any]) -> str:
    """Data card of the synthetic images, with the metadata block that data hubs read."""
    header = {"tags": ["synthetic", "differential-privacy", "dp-sgd"], "pretty_name": config.name}
    labels = ", ".join(plain(name) for name in config.data.labels) or "none (unconditional)"
    sampling = config.sampling
    count = sum(sampling.label_counts) if sampling.label_counts and config.data.labels else sampling.count
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---
# Synthetic images: {plain(config.name)}

Every image here was drawn from a generative model; none is a photograph of anyone or anything. The set is
{guarantee_sentence(statement)}.

* {count} images, {config.data.image_size} x {config.data.image_size}, classes: {labels}
* drawn by {sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}, seed {sampling.seed}
* {_frequencies(config, trial_constants(statement["plan"]))}

Limits: small classes and rare appearances are rendered worst; differential privacy does not remove bias from the
data. Test any model trained on this set on real images before relying on it.
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
        f"attempts accounted 1 + {query['reserve']} |\n"
        for query in plan.get("queries", ())
    )


def _frequencies(config: RunConfig, plan: Mapping[str, Any]) -> str:
    """Where the frequencies of the classes come from."""
    noised = any(query["kind"] == "class_histogram" for query in plan.get("queries", ()))
    if noised and config.sampling.label_counts is None:
        return "classes are as frequent as a noised histogram says, which is part of the guarantee above"
    return "classes are equally frequent unless declared otherwise: their true frequencies were not used"


def plain(text: str) -> str:
    """Text as Markdown shows it literally, on one line; nothing in it becomes a link."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()).translate(PLAIN)
    return WEB.sub(lambda found: found[0].replace(".", "\\."), line)
