"""The draft for the registry of deployments has the registry's fields, and what the statement says in them."""

import datetime
from typing import Any

import pytest
import yaml

from dpldm.config import RunConfig
from dpldm.releasing import privacy_statement
from dpldm.report.registry import FILL_IN, registry_draft
from dpldm.report.wording import guarantee_sentence
from hostile import hostile_texts

TEXT = str
SCHEMA: dict[str, Any] = {
    "url_slug": TEXT,
    "deployment": {
        "basic": {
            "name": TEXT,
            "data_curators": [
                {"data_curator_name": TEXT, "data_curator_type": {"Government", "Industry", "Nonprofit"}},
            ],
            "description": TEXT,
            "intended_use": TEXT,
            "data_product_type": {"Machine learning model", "Synthetic data"},
            "data_product_region": TEXT,
            "publication_date": TEXT,
        },
        "dp_variant": {"variant_name": {"Approximate DP"}, "data_domain": TEXT, "unprotected_quantities": TEXT},
        "privacy_loss": {
            "privacy_unit": TEXT,
            "privacy_unit_details": TEXT,
            "number_of_privacy_units": int,
            "privacy_parameters": {"epsilon": float, "delta": float},
            "privacy_parameters_details": TEXT,
        },
        "deployment_model": {
            "model_name": {"Central"},
            "trust_assumptions": TEXT,
            "release_type": {"One release"},
            "release_type_details": TEXT,
            "data_source_type": {"Static"},
            "access_type": {"Non-interactive"},
        },
        "implementation": {
            "preprocessing_and_hyperparameter_tuning": TEXT,
            "mechanisms": TEXT,
            "composition": TEXT,
            "post_processing": TEXT,
            "justification": TEXT,
            "additional_information": TEXT,
        },
        "administrative": {"status": {"Draft"}, "registry_authors": [TEXT], "tier": int},
    },
}
"""The fields of the registry's schema that we fill, with their types and, of its choices, ours (commit 057e5d8)."""


def fits(value: Any, schema: Any, place: str = "") -> None:
    """Closed: every field is there and no other."""
    if isinstance(schema, dict):
        assert list(value) == list(schema), place
        for key, of in schema.items():
            fits(value[key], of, f"{place}/{key}")
    elif isinstance(schema, list):
        assert value, place
        for entry in value:
            fits(entry, schema[0], place)
    elif isinstance(schema, set):
        assert value in schema, place
    else:
        assert type(value) is schema, place
        assert value != "", place


@pytest.mark.parametrize("fixture", ["finished", "answered", "selected"])
def test_a_draft_has_the_fields_of_the_registry(fixture: str, request: pytest.FixtureRequest) -> None:
    config: RunConfig = request.getfixturevalue(fixture)
    statement = privacy_statement(config) | {"files": {"synthetic.npz": "0" * 64}}
    text = registry_draft(statement)
    draft = yaml.safe_load(text)
    fits(draft, SCHEMA)
    loss, claim = draft["deployment"]["privacy_loss"], statement["guarantee"]
    assert claim["epsilon"] <= loss["privacy_parameters"]["epsilon"] < claim["epsilon"] + 0.01 + 1e-9
    assert loss["privacy_parameters"]["delta"] == claim["delta"]
    assert loss["number_of_privacy_units"] == config.privacy.records
    assert guarantee_sentence(statement) in loss["privacy_parameters_details"]
    assert FILL_IN in draft["deployment"]["basic"]["data_product_region"]
    datetime.date.fromisoformat(draft["deployment"]["basic"]["publication_date"])
    tuned = draft["deployment"]["implementation"]["preprocessing_and_hyperparameter_tuning"]
    assert ("is part of the stated loss" in tuned) == (fixture == "selected")


def test_a_model_alone_is_called_one(finished: RunConfig) -> None:
    draft = yaml.safe_load(registry_draft(privacy_statement(finished) | {"files": {"model/vae/config.json": ""}}))
    assert draft["deployment"]["basic"]["data_product_type"] == "Machine learning model"


def test_names_of_others_are_values(finished: RunConfig) -> None:
    statement = privacy_statement(finished) | {"files": {}}
    for text in hostile_texts()[:60]:
        statement["plan"] = statement["plan"] | {"run": text}
        draft = yaml.safe_load(registry_draft(statement))
        assert list(draft) == ["url_slug", "deployment"]
        assert draft["deployment"]["basic"]["name"] == text
