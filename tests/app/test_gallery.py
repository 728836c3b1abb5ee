"""What there is to see: the released images as they are stored, and what the released model draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dpldm.app.gallery import MOST_GUIDANCE, MOST_ROWS, Drawing, Look, Painter, Released
from dpldm.config import RunConfig, SamplingConfig
from dpldm.errors import UserError
from dpldm.models.backbone import load_backbone
from dpldm.releasing import privacy_statement, release
from dpldm.sampling import Sampler
from dpldm.train.public_data import step_generator
from stock_models import make


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Ten images in two classes; the level of each is its number."""
    levels = np.arange(10, dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (10, 4, 4, 1))
    np.savez(tmp_path / "synthetic.npz", x=images, y=np.arange(10) % 2)
    return tmp_path / "synthetic.npz"


def levels(shelf: Released, **asked: int) -> list[tuple[str, list[int]]]:
    return [(row.name, row.images[:, 0, 0, 0].tolist()) for row in shelf.rows(Look(**asked))]


def test_released_images_come_by_class_in_their_order(stored: Path) -> None:
    shelf = Released(stored, ["even", "odd"])
    assert levels(shelf, number=3) == [("even", [0, 2, 4]), ("odd", [1, 3, 5])]
    assert levels(shelf, number=2, kind=1, first=3) == [("odd", [7, 9])]
    assert levels(shelf, number=9, kind=0, first=5) == [("even", [])]


def test_without_classes_all_images_are_one_row(stored: Path) -> None:
    shelf = Released(stored, [])
    assert levels(shelf, number=4, first=8) == [("", [8, 9])]


def test_one_can_go_on_and_back_and_no_further(stored: Path) -> None:
    shelf = Released(stored, ["even", "odd"])
    seen, asked = [], Look(number=2)
    while True:
        seen += [level for _, row in levels(shelf, **asked.model_dump()) for level in row]
        further = shelf.neighbours(asked)
        assert ("Earlier images" in further) == (asked.first > 0)
        if "Later images" not in further:
            break
        asked = Look(**further["Later images"])
    assert sorted(seen) == list(range(10))
    assert Look(**shelf.neighbours(asked)["Earlier images"]).first == asked.first - 2


def test_a_class_that_is_not_there_is_refused(stored: Path) -> None:
    for names, kind in ((["even", "odd"], 2), ([], 0)):
        with pytest.raises(UserError, match="There is no such class"):
            Released(stored, names).rows(Look(kind=kind))


def test_some_of_each_class_ends_somewhere(tmp_path: Path) -> None:
    many = MOST_ROWS + 5
    np.savez(tmp_path / "many.npz", x=np.zeros((many, 4, 4, 1), np.uint8), y=np.arange(many))
    shelf = Released(tmp_path / "many.npz", [f"class {k}" for k in range(many)])
    assert len(list(shelf.rows(Look()))) == MOST_ROWS
    assert next(shelf.rows(Look(kind=many - 1))).name == f"class {many - 1}"


@pytest.mark.parametrize(
    "asked",
    [
        *({"number": 0}, {"number": 10_000}, {"guidance": float("nan")}, {"guidance": 1e9}, {"seed": -1}),
        *({"seed": 2**40}, {"prompt": "x" * 301}, {"kind": -2}, {"unknown": 1}),
    ],
)
def test_nobody_can_ask_for_what_has_no_end(asked: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Drawing.model_validate(asked)


@pytest.fixture
def painter(finished_copy: RunConfig) -> Painter:
    statement = privacy_statement(finished_copy)
    return Painter(release(finished_copy, "model") / "model", statement["declared_constants"])


def test_the_model_draws_what_the_sampler_draws(painter: Painter, finished_copy: RunConfig) -> None:
    asked = Drawing(kind=1, number=3, seed=5, guidance=1.5)
    row = next(painter.rows(asked))
    backbone = load_backbone(str(finished_copy.runtime.output / "tiny" / "release" / "model"))
    sampling = finished_copy.sampling
    settings = SamplingConfig(sampler=sampling.sampler, steps=sampling.steps, eta=sampling.eta, guidance=1.5)
    expected = Sampler(backbone, backbone.denoiser, settings, 16)(torch.tensor([1, 1, 1]), step_generator(5, 2))
    assert row.name == "light"
    assert np.array_equal(row.images, expected)


def test_a_seed_draws_the_same_again_and_another_does_not(painter: Painter) -> None:
    def drawn(seed: int) -> np.ndarray:
        return np.concatenate([row.images for row in painter.rows(Drawing(number=2, seed=seed))])

    first = drawn(1)
    painter.drawn.cache_clear()
    assert np.array_equal(drawn(1), first)
    assert not np.array_equal(drawn(2), first)
    assert not np.array_equal(first[:2], first[2:]), "each class has noise of its own"


def test_nothing_is_drawn_before_its_turn(painter: Painter) -> None:
    rows = painter.rows(Drawing(number=1))
    assert painter.drawn.cache_info().currsize == 0
    next(rows)
    assert painter.drawn.cache_info().currsize == 1


# --- models that are told something else ------------------------------------------------------------------------------

SAMPLING = {"sampler": "ddim", "steps": 2, "eta": 0.0, "guidance": 30.0}


def test_a_model_that_is_told_captions_is_told_a_prompt(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = make("stable diffusion", tmp_path / "model")
    declared = {"image_size": 32, "labels": ["cat", "dog"], "caption_template": "a {label}", "sampling": SAMPLING}
    painter = Painter(model, declared)
    assert painter.names == []
    assert painter.prompts == ["a cat", "a dog"]
    assert painter.beginning() == {"guidance": MOST_GUIDANCE, "prompt": "a cat"}
    rows = [next(painter.rows(Drawing(prompt=prompt, number=2))) for prompt in ("a cat", "a dog", "a cat")]
    assert [row.name for row in rows] == ["a cat", "a dog", "a cat"]
    assert rows[0].images.shape == (2, 32, 32, 3)
    assert np.array_equal(rows[0].images, rows[2].images)
    assert not np.array_equal(rows[0].images, rows[1].images)
    with_prompts = Painter(model, declared | {"labels": [], "prompts": ["a red house"]})
    assert with_prompts.beginning()["prompt"] == "a red house"


def test_a_model_that_is_told_nothing_draws(tmp_path: Path) -> None:
    declared = {"image_size": 32, "labels": [], "sampling": SAMPLING}
    painter = Painter(make("unconditional", tmp_path / "model"), declared)
    assert (painter.names, painter.prompts) == ([], None)
    row = next(painter.rows(Drawing(number=3, prompt="not told")))
    assert row.name == ""
    assert row.images.shape == (3, 32, 32, 3)
