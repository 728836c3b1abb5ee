"""The texts that accompany a release: plain Markdown, from the privacy statement and declared constants alone."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from dpldm.config import RunConfig
from dpldm.models.choices import rank_of
from dpldm.report.wording import guarantee_sentence, is_selection, odds_sentence, trial_constants

PLAIN = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>()#|!~&:@$"})
WEB = re.compile(r"\bwww\.", re.IGNORECASE)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
OWN_PIPELINE = "ClassConditionalLDMPipeline"


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
    sampling = config.sampling
    count = sum(sampling.label_counts) if sampling.label_counts and config.data.labels else sampling.count
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---
# Synthetic images: {plain(config.name)}

Every image here was drawn from a generative model; none is a photograph of anyone or anything. The set is
{guarantee_sentence(statement)}.

* {count} images, {config.data.image_size} x {config.data.image_size}, {_conditions(config, statement)}
* drawn by {sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}, seed {sampling.seed}
* {_frequencies(config, trial_constants(statement["plan"]))}

Limits: small classes and rare appearances are rendered worst; differential privacy does not remove bias from the
data. Test any model trained on this set on real images before relying on it.
"""


def model_card(config: RunConfig, statement: Mapping[str, Any], pipeline: str, *, adapters: bool) -> str:
    """README.md of a released model, with the metadata block that model hubs read."""
    base = statement["backbone"]["name"]
    header: dict[str, Any] = {
        "library_name": "diffusers",
        "tags": ["differential-privacy", "dp-sgd", *(["lora"] if adapters else [])],
    }
    if HUB_ID.fullmatch(base):
        header["base_model"] = base
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---
# {plain(config.name)}

{_use(base, pipeline, adapters)}

Tuned on private images from the public backbone {plain(base)}: {plain(config.trainable)},
{_embedder(config, adapters)}.

## Privacy

This model is {guarantee_sentence(statement)}.

{odds_sentence(statement["guarantee"]["epsilon"], statement["guarantee"]["unit"])}

What this rests on is in the `privacy.json` of the release that this folder is part of; `dpldm verify` recomputes it.
The guarantee covers what was done with the private images; it says nothing of the images that the backbone was trained
on. Tuning this model further on the same private images costs more than is stated here.
"""


def _use(base: str, pipeline: str, adapters: bool) -> str:
    """How to load a released model."""
    if adapters:
        return (
            f"Adapters (LoRA) for the `{pipeline}` {plain(base)}. Load that pipeline, then\n\n"
            '    pipeline.load_lora_weights("FOLDER", weight_name="pytorch_lora_weights.safetensors")\n\n'
            "where FOLDER is the one that holds this file."
        )
    if pipeline == OWN_PIPELINE:
        return "Load it with `dpldm.load_backbone` (a stock `UNet2DConditionModel` and autoencoder of diffusers)."
    return f"Load it with diffusers: `{pipeline}.from_pretrained(FOLDER)`, where FOLDER holds this file."


def _embedder(config: RunConfig, adapters: bool) -> str:
    tuned = "the conditioning embedder too" if config.tune_embedder else "the conditioning embedder left as it was"
    return f"rank {rank_of(config.trainable)}, {tuned}" if adapters else tuned


def _conditions(config: RunConfig, statement: Mapping[str, Any]) -> str:
    """What the images were told to be."""
    if config.data.labels:
        return "classes: " + ", ".join(plain(name) for name in config.data.labels)
    if prompts := statement["declared_constants"].get("prompts"):
        return f"drawn for {len(prompts)} public prompts in turn (column `text` of metadata.csv)"
    return "classes: none (unconditional)"


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
