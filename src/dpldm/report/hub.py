"""The cards of what may be put on a data hub: Markdown below the YAML block that hubs read.

Made from the privacy statement and declared constants alone, like all that accompanies a release.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from dpldm.config import RunConfig
from dpldm.models.backbone import HUB_ID
from dpldm.report.card import benchmark_note, plain
from dpldm.report.wording import (
    asks_alone,
    guarantee_sentence,
    is_evolution,
    odds_sentence,
    public_classes_told,
    trial_constants,
)
from dpldm.scanning.kinds import SHARES

TAGS = ("synthetic", "differential-privacy")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""Numbers of images below which a hub calls a set so."""
LIMITS = """Limits: small classes and rare appearances are rendered worst, since noise hides what few images have: some
may look like another class, or all alike, and what learns from them does worse on them. Differential privacy does not
remove bias from the data. Test any model trained on these images on real ones before relying on it, for each group of
people or things that matters by itself."""


ADAPTERS = """Load that pipeline, then

    pipeline.load_lora_weights("FOLDER", weight_name="pytorch_lora_weights.safetensors")

where FOLDER is the one that holds this file."""


def synthetic_card(config: RunConfig, statement: Mapping[str, Any]) -> str:
    """Data card of the synthetic images: synthetic/README.md."""
    sampling = config.sampling
    count = sum(sampling.label_counts) if sampling.label_counts and config.data.labels else sampling.count
    header = {
        "license": config.licence,
        "task_categories": [_task(config, statement)],
        "size_categories": [next((name for most, name in SIZES if count < most), "1M<n<10M")],
        "annotations_creators": ["machine-generated"],
        "tags": [*TAGS, _method(statement["plan"])],
        "pretty_name": config.name,
    }
    return f"""{_block(header)}
# Synthetic images: {plain(config.name)}

Every image here was drawn from a generative model; none is a photograph of anyone or anything. The set is
{guarantee_sentence(statement)}.
{benchmark_note(statement)}
* {count} images, {config.data.image_size} x {config.data.image_size}, {_conditions(config, statement)}
* drawn {_how(config, statement["plan"])}, seed {sampling.seed}
* {_frequencies(config, trial_constants(statement["plan"]))}
* licence: {config.licence}{_no_licence(config)}

{LIMITS}
"""


def _method(plan: Mapping[str, Any]) -> str:
    """A tag for it."""
    if is_evolution(plan):
        return "private-evolution"
    return "gaussian-mechanism" if asks_alone(plan) else "dp-sgd"


def _how(config: RunConfig, plan: Mapping[str, Any]) -> str:
    """From what, and by which solver."""
    sampling = config.sampling
    if asks_alone(plan) and not is_evolution(plan):
        return "from a noised mixture of Gaussians for each class, decoded by the public autoencoder"
    return f"by {sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}"


def model_card(
    config: RunConfig, statement: Mapping[str, Any], pipeline: str, told: str, *, adapters: bool = False
) -> str:
    """Card of the tuned model: model/README.md.

    Args:
        pipeline: class that its model_index.json names.
        told: what it can be told, classes, captions or nothing.
        adapters: it is adapters alone, for the stock pipeline of that class.
    """
    claim, base = statement["guarantee"], statement["backbone"]["name"]
    name = plain(base)
    header = {
        "license": config.licence,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image" if told == "captions" else "unconditional-image-generation",
        "tags": [*TAGS, "dp-sgd", "latent-diffusion", "dpldm", *(["lora"] if adapters else [])],
        **({"base_model": base} if HUB_ID.fullmatch(base) else {}),
    }
    kind = f"adapters (LoRA) for the {plain(pipeline)} {name}" if adapters else f"a {plain(pipeline)} of diffusers"
    use = ADAPTERS if adapters else _code(config, statement, told)
    size = f"{config.data.image_size} x {config.data.image_size}"
    return f"""{_block(header)}
# A private latent diffusion model: {plain(config.name)}

The public backbone {name}, of which some parameters (trainable: {plain(config.trainable)}) were tuned on private images
with DP-SGD. The weights are {guarantee_sentence(statement)}.

{odds_sentence(claim["epsilon"], claim["unit"])} Everything that is drawn from the model or tuned further from it is
covered too, as long as the private images are not used again.
{benchmark_note(statement)}
* stored as {kind}; told {_told(config, statement, told)}
* draws images of {size}, {"grey" if config.data.channels == 1 else "colour"}
* licence: {config.licence}{_no_licence(config)}; the backbone's own terms come first

{use}

Never use it as a backbone for private images as if it were public: what it cost is in `backbone.json`.

{LIMITS}
"""


def _code(config: RunConfig, statement: Mapping[str, Any], told: str) -> str:
    """How to draw from it."""
    sampling, names, paired = config.sampling, "Sampler", ""
    if public_classes_told(statement["plan"]):
        names += ", released_shares, with_public_classes"
        paired = '\nlabels = with_public_classes(labels, released_shares("DIRECTORY"), seed=0)'
    return f"""```python
import torch
from dpldm import load_backbone
from dpldm.config import SamplingConfig
from dpldm.sampling import {names}

model = load_backbone("DIRECTORY")
settings = SamplingConfig(steps={sampling.steps}, guidance={sampling.guidance:g})
draw = Sampler(model, model.denoiser, settings, {config.data.image_size}{_texts(told)})
labels = torch.zeros(16, dtype=torch.int64){paired}
images = draw(labels, torch.Generator().manual_seed(0))  # uint8 (16, S, S, C)
```"""


def _told(config: RunConfig, statement: Mapping[str, Any], told: str) -> str:
    """What the network is told about an image, in words."""
    labels = config.data.labels
    if told != "classes" or not labels:
        return "captions" if told == "captions" else "nothing"
    named = "classes by number: " + ", ".join(f"{number} = {plain(label)}" for number, label in enumerate(labels))
    if public_classes_told(statement["plan"]):
        named += (
            f"; each beside a class of the backbone, counted on from {len(labels)}: pairs (N, 2), as often as the "
            f"noised shares in `{SHARES}` say, which are part of the guarantee above"
        )
    return named


def _texts(told: str) -> str:
    return ', ["a text"]' if told == "captions" else ""


def _block(header: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(header), sort_keys=False).strip()}\n---"


def _no_licence(config: RunConfig) -> str:
    return " (whoever publishes this has not said: ask)" if config.licence == "unknown" else ""


def _task(config: RunConfig, statement: Mapping[str, Any]) -> str:
    """What a data hub files the images under."""
    if config.data.labels:
        return "image-classification"
    return "text-to-image" if statement["declared_constants"].get("prompts") else "unconditional-image-generation"


def _conditions(config: RunConfig, statement: Mapping[str, Any]) -> str:
    """What the images were told to be."""
    if config.data.labels:
        return "classes: " + ", ".join(plain(name) for name in config.data.labels)
    if prompts := statement["declared_constants"].get("prompts"):
        return f"drawn for {len(prompts)} public prompts in turn (column `text` of metadata.csv)"
    return "classes: none (unconditional)"


def _frequencies(config: RunConfig, plan: Mapping[str, Any]) -> str:
    """Where the frequencies of the classes come from."""
    noised = any(query["kind"] == "class_histogram" for query in plan.get("queries", ()))
    if noised and config.sampling.label_counts is None:
        return "classes are as frequent as a noised histogram says, which is part of the guarantee above"
    return "classes are equally frequent unless declared otherwise: their true frequencies were not used"
