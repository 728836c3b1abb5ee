"""A draft for the OpenDP Deployments Registry: what a privacy statement knows, in the registry's field names.

Field names and choices are those of its schema of 2026 (opendp/deployments-registry-data, commit 057e5d8, file
schemas/deployments-schema.yaml). What only the holder of the data knows is left to fill in.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from dpldm.privacy.selection import plan_of_constants, trial_of
from dpldm.report.wording import asks_alone, guarantee_sentence, is_selection, unit_in_words, upper

FILL_IN = "FILL IN"
HEAD = f"""# A draft, made by `dpldm report` from the release's privacy.json. Before you submit it, replace every
# {FILL_IN}, and set data_curator_type (Government, Industry or Nonprofit) and publication_date, whose values here are
# only there to be valid.
"""


def registry_draft(statement: Mapping[str, Any]) -> str:
    """One entry, as YAML.

    Args:
        statement: a release's privacy.json, verified.
    """
    run = trial_of(plan_of_constants(statement["plan"])).run
    entry = {
        "url_slug": re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-"),
        "deployment": {
            "basic": _basic(statement, run),
            "dp_variant": _variant(statement),
            "privacy_loss": _loss(statement),
            "deployment_model": _model(statement),
            "implementation": _implementation(statement),
            "administrative": {"status": "Draft", "registry_authors": [FILL_IN], "tier": 3},
        },
    }
    return HEAD + yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=100)


def _basic(statement: Mapping[str, Any], run: str) -> dict[str, Any]:
    images = any(name.endswith(".npz") for name in statement["files"])
    size = statement["declared_constants"]["image_size"]
    what = "Synthetic images" if images else "A generative model of images"
    return {
        "name": run,
        "data_curators": [{"data_curator_name": FILL_IN, "data_curator_type": "Industry"}],
        "description": f"{what} ({size} x {size} pixels) from {_source(statement)}.",
        "intended_use": f"{FILL_IN}: what the images are meant to train, and what they must not be used for",
        "data_product_type": "Synthetic data" if images else "Machine learning model",
        "data_product_region": FILL_IN,
        "publication_date": "1900-01-01",
    }


def _source(statement: Mapping[str, Any]) -> str:
    """What the images were drawn from."""
    if asks_alone(statement["plan"]):
        return "noised means and covariances of private images in the latent space of a public autoencoder"
    return "a latent diffusion model that was tuned on private images with DP-SGD"


def _variant(statement: Mapping[str, Any]) -> dict[str, str]:
    declared = statement["declared_constants"]
    known = f"the declared number of records ({declared['records']}), the class names, image size and preprocessing"
    return {
        "variant_name": "Approximate DP",
        "data_domain": f"Sets of images with one of {len(declared['labels'])} labels each"
        if declared["labels"]
        else "Sets of images",
        "unprotected_quantities": f"Declared public: {known}, all settings, the public backbone, and that the set "
        "exists",
    }


def _loss(statement: Mapping[str, Any]) -> dict[str, Any]:
    claim = statement["guarantee"]
    return {
        "privacy_unit": {"image": "Image-level", "group": "User-level"}[claim["unit"]],
        "privacy_unit_details": f"Two sets are adjacent if one has {unit_in_words(claim['unit']).rstrip(',')} more.",
        "number_of_privacy_units": statement["declared_constants"]["records"],
        "privacy_parameters": {"epsilon": float(upper(claim["epsilon"])), "delta": claim["delta"]},
        "privacy_parameters_details": f"The release is {guarantee_sentence(statement)}. Covered are {claim['covers']}.",
    }


def _model(statement: Mapping[str, Any]) -> dict[str, str]:
    plans = statement["ledger"]["plans_on_this_data_set"]
    return {
        "model_name": "Central",
        "trust_assumptions": "The holder of the images runs everything on one machine of their own. Everybody else may "
        "see all that is released, know this code and every setting, and hold any other knowledge.",
        "release_type": "One release",
        "release_type_details": f"A ledger charges every run on the data set, of which there were {plans} so far; "
        "their losses add up.",
        "data_source_type": "Static",
        "access_type": "Non-interactive",
    }


def _implementation(statement: Mapping[str, Any]) -> dict[str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in statement["software"].items())
    tuning = (
        "Several learning rates were tried on the private images; the choice is part of the stated loss."
        if is_selection(statement["plan"])
        else f"{FILL_IN}: how the settings were chosen (dpldm rehearse tries them on public images)."
    )
    return {
        "preprocessing_and_hyperparameter_tuning": "Each image is cropped, resized and encoded by itself, with public "
        f"constants. {tuning}",
        "mechanisms": f"{statement['mechanism']}; randomness from the operating system's generator. {versions}.",
        "composition": "Renyi differential privacy of the best of a random number of trials (dp-accounting)."
        if is_selection(statement["plan"])
        else "Privacy loss distributions of all attempts and queries together (dp-accounting).",
        "post_processing": "Drawing of images, choice among drawn images."
        if asks_alone(statement["plan"])
        else "Averaging of weights, drawing of images, choice among drawn images.",
        "justification": f"{FILL_IN}: why this epsilon, and this unit",
        "additional_information": f"Plan {statement['plan_digest']}, head of the ledger "
        f"{statement['ledger']['head']['hash']}. Whoever has the release can check it with dpldm verify.",
    }
