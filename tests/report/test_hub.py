"""Cards for data hubs: a block that the hub's own classes read, the guarantee, the limits, and code that runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.repocard import RepoCard

from dpldm.config import RunConfig
from dpldm.releasing import privacy_statement, release
from dpldm.report.hub import model_card, synthetic_card
from dpldm.report.wording import guarantee_sentence, odds_sentence
from dpldm.verifying import verify


def read(kind: type[RepoCard], path: Path) -> Any:
    """A card's data as the hub's own class reads it: nothing in it is lost or unknown, and it survives being saved."""
    card = kind.load(path)
    again = kind(f"---\n{card.data.to_yaml()}\n---\n{card.text}")
    assert again.data.to_dict() == card.data.to_dict()
    return card.data


def released(config: RunConfig, **changes: Any) -> Path:
    return release(config.model_copy(update=changes), "both")


def test_the_data_card_is_one_of_a_data_set(finished_copy: RunConfig) -> None:
    data = read(DatasetCard, released(finished_copy, licence="cc-by-4.0") / "synthetic" / "README.md")
    assert (data.license, data.pretty_name) == ("cc-by-4.0", "tiny")
    assert data.task_categories == ["image-classification"]
    assert data.size_categories == ["n<1K"]
    assert data.annotations_creators == ["machine-generated"]
    assert {"synthetic", "differential-privacy", "dp-sgd"} <= set(data.tags)


def test_the_model_card_is_one_of_a_model(finished_copy: RunConfig) -> None:
    data = read(ModelCard, released(finished_copy) / "model" / "README.md")
    assert (data.license, data.library_name) == ("unknown", "diffusers")
    assert data.pipeline_tag == "unconditional-image-generation"
    assert {"latent-diffusion", "differential-privacy"} <= set(data.tags)


def test_both_state_the_guarantee_the_licence_and_the_limits(finished_copy: RunConfig) -> None:
    target, statement = released(finished_copy), privacy_statement(finished_copy)
    for card in ("synthetic/README.md", "model/README.md"):
        text = " ".join((target / card).read_text().split())
        assert guarantee_sentence(statement) in text
        assert "licence: unknown (whoever publishes this has not said: ask)" in text
        assert "small classes and rare appearances are rendered worst" in text
        assert "does not remove bias" in text
        assert str(finished_copy.runtime.output) not in text
    assert "0 = dark, 1 = light" in (target / "model" / "README.md").read_text()
    assert odds_sentence(0.5, "image") in (target / "model" / "README.md").read_text()
    assert all(check.passed for check in verify(target))


def test_a_published_benchmark_is_called_one(finished: RunConfig) -> None:
    statement = privacy_statement(finished)
    for published in (False, True):
        statement["guarantee"]["public_benchmark"] = published
        cards = synthetic_card(finished, statement), model_card(finished, statement, "X", "classes")
        assert all(("are a published benchmark" in card) == published for card in cards)


def test_the_code_of_the_model_card_runs(finished_copy: RunConfig) -> None:
    model = released(finished_copy) / "model"
    code = (model / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    made: dict[str, Any] = {}
    exec(code.replace("DIRECTORY", str(model)), made)
    assert made["images"].shape == (16, 16, 16, 1)
    assert torch.is_tensor(next(made["model"].denoiser.parameters()))


def test_a_model_that_is_told_texts_is_called_so(finished: RunConfig) -> None:
    statement = privacy_statement(finished)
    card = model_card(finished, statement, "StableDiffusionPipeline", "captions")
    assert ModelCard(card).data.pipeline_tag == "text-to-image"
    assert 'settings, 16, ["a text"])' in card
    assert "told captions" in card
    query = {"kind": "public_class_histogram", "public_classes": 5}
    with_pairs = statement | {"plan": statement["plan"] | {"queries": [query]}}
    card = model_card(finished, with_pairs, "ClassConditionalLDMPipeline", "classes")
    assert "each beside a class of the backbone, counted on from 2: pairs (N, 2)" in card
    plain = finished.model_copy(update={"data": finished.data.model_copy(update={"labels": ()})})
    assert "told nothing" in model_card(plain, statement, "ClassConditionalLDMPipeline", "classes")
    assert "told nothing" in model_card(plain, statement, "LDMPipeline", "nothing")


@pytest.mark.parametrize(
    ("count", "size"),
    [(999, "n<1K"), (1_000, "1K<n<10K"), (60_000, "10K<n<100K"), (100_000, "100K<n<1M"), (2_000_000, "1M<n<10M")],
)
def test_sizes_are_those_of_the_hub(count: int, size: str, finished: RunConfig) -> None:
    counted = finished.model_copy(update={"sampling": finished.sampling.model_copy(update={"count": count})})
    data = DatasetCard(synthetic_card(counted, privacy_statement(finished))).data
    assert data.size_categories == [size]
