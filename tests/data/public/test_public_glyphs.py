import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpldm.data.public.fonts import held_out
from dpldm.data.public.glyphs import make_glyphs, overlaps
from dpldm.errors import UserError


def rectangle(height: int, width: int) -> np.ndarray:
    return np.full((height, width), 255, np.uint8)


def test_overlap_of_rectangles_is_intersection_over_union() -> None:
    wide, tall, big = rectangle(20, 60), rectangle(60, 20), rectangle(60, 60)
    expected = [[1, 400 / 2000, 1 / 3], [400 / 2000, 1, 1 / 3]]
    np.testing.assert_allclose(overlaps([wide, tall], [wide, tall, big]), expected)


def test_letters_come_evenly_in_26_classes_with_their_names(make_font: Callable[..., Path]) -> None:
    folder = make_font("Good Sans").parent
    made = make_glyphs([folder], image_size=32, count=26 * 6, seed=0)
    assert made.images.shape == (156, 32, 32, 1)
    assert made.label_names == tuple(string.ascii_uppercase)
    np.testing.assert_array_equal(np.bincount(made.labels), np.full(26, 6))
    assert [made.label_names[label] for label in made.labels] == [name.upper() for name in made.names]
    assert set(made.families) == {"Good Sans"}
    assert {name for name in made.names if name.islower()}
    assert {name for name in made.names if name.isupper()}


def test_letters_are_light_on_black_and_of_fair_size(make_font: Callable[..., Path]) -> None:
    folder = make_font("Good Sans").parent
    images = make_glyphs([folder], image_size=32, count=200, seed=0).images[..., 0]
    assert (images.max(axis=(1, 2)) > 100).all()
    assert np.median(images, axis=(1, 2)).max() == 0
    rows = (images > 60).any(axis=2).sum(axis=1)
    columns = (images > 60).any(axis=1).sum(axis=1)
    longest = np.maximum(rows, columns)
    assert longest.max() <= 32
    assert 15 <= np.median(longest) <= 29
    assert len({image.tobytes() for image in images}) == 200


def test_the_same_letter_is_recognised_across_its_distortions(make_font: Callable[..., Path]) -> None:
    # Oracle: the nearest class mean of one half names the letters of the other half far above chance.
    folder = make_font("Good Sans", characters=string.ascii_uppercase + string.digits).parent
    made = make_glyphs([folder], image_size=32, count=26 * 40, seed=0)
    pixels = made.images.reshape(len(made), -1).astype(float)
    train, test = np.arange(len(made)) % 2 == 0, np.arange(len(made)) % 2 == 1
    means = np.stack([pixels[train & (made.labels == label)].mean(axis=0) for label in range(26)])
    nearest = ((pixels[test][:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == made.labels[test]).mean() > 0.4


def test_letters_drawn_like_a_digit_are_dropped(make_font: Callable[..., Path]) -> None:
    folder = make_font("Good Sans", redraw={"0": "O", "1": "l", "5": "S"}).parent
    made = make_glyphs([folder], image_size=16, count=400, seed=0)
    assert not {"l", "O", "S"} & set(made.names)
    assert {"L", "A", "b"} <= set(made.names)
    assert made.provenance["glyphs_dropped"]["looks like a digit of its font"] >= 3
    assert made.dropped is not None
    assert len(made.dropped) == made.provenance["glyphs_dropped"]["looks like a digit of its font"]


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("no letters, or too few distinct ones", {"characters": string.ascii_lowercase[:15]}),
        ("no letters, or too few distinct ones", {"redraw": dict.fromkeys(string.ascii_letters, "H")}),
        (
            "symbols: too many letters look like digits",
            {"redraw": dict(zip(string.digits, "ABCDEFGHKM", strict=True))},
        ),
    ],
)
def test_fonts_without_true_letters_are_dropped(
    make_font: Callable[..., Path], reason: str, change: dict[str, object]
) -> None:
    folder = make_font("Good Sans").parent
    make_font("Odd Sans", **change)
    made = make_glyphs([folder], image_size=16, count=100, seed=0)
    assert set(made.families) == {"Good Sans"}
    assert made.provenance["font_files_dropped"][reason] == 1
    assert [font["family"] for font in made.provenance["fonts"]] == ["Good Sans"]


def test_letters_missing_from_a_font_are_not_drawn_as_boxes(make_font: Callable[..., Path]) -> None:
    folder = make_font("Good Sans", characters=string.ascii_uppercase + string.digits).parent
    made = make_glyphs([folder], image_size=16, count=100, seed=0)
    assert all(name.isupper() for name in made.names)


def test_a_held_out_family_is_on_one_side_only(make_font: Callable[..., Path]) -> None:
    families = [f"Type{letter} Sans" for letter in "abcdefgh"]
    for family in families:
        path = make_font(family, base="DejaVuSerif.ttf" if held_out(family, 0.5) else "DejaVuSans.ttf")
    sides = [
        make_glyphs([path.parent], image_size=16, count=400, seed=0, held_out_fraction=0.5, only_held_out=side)
        for side in (False, True)
    ]
    seen, tuned = (set(side.families.tolist()) for side in sides)
    assert seen
    assert tuned
    assert not seen & tuned
    assert all(held_out(family, 0.5) for family in tuned)
    assert not any(held_out(family, 0.5) for family in seen)


def test_equal_arguments_give_equal_bytes(make_font: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_font("Good Sans").parent
    for name, seed in (("first", 5), ("second", 5), ("other", 6)):
        make_glyphs([folder], image_size=16, count=60, seed=seed).save(tmp_path / name)
    contents = [(tmp_path / name / "images.npz").read_bytes() for name in ("first", "second", "other")]
    assert contents[0] == contents[1] != contents[2]
    provenance = (tmp_path / "first" / "provenance.json").read_text()
    assert provenance == (tmp_path / "second" / "provenance.json").read_text()
    assert str(tmp_path) not in provenance


def test_families_weigh_by_the_root_of_their_size(make_font: Callable[..., Path]) -> None:
    # One cut against four cuts of another design: expected shares 1/3 and 2/3.
    make_font("One Sans", base="DejaVuSerif.ttf")
    for number, cut in enumerate(("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSans-Oblique")):
        folder = make_font(f"Four {'Bold ' * number}".strip(), base=f"{cut}.ttf").parent
    made = make_glyphs([folder], image_size=8, count=2600, seed=0)
    shares = Counter(made.families.tolist())
    assert set(shares) == {"One Sans", "Four"}
    assert abs(shares["One Sans"] / len(made) - 1 / 3) < 0.06


@pytest.mark.parametrize("change", [{"image_size": 4}, {"count": 0}, {"held_out_fraction": 1.5}])
def test_arguments_out_of_range_are_user_errors(make_font: Callable[..., Path], change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"image_size": 16, "count": 5, "seed": 0}
    folder = make_font("Good Sans").parent
    make_glyphs([folder], **good)
    with pytest.raises(UserError):
        make_glyphs([folder], **(good | change))


def test_no_usable_font_is_a_user_error(make_font: Callable[..., Path]) -> None:
    folder = make_font("Closed", licence="All rights reserved").parent
    with pytest.raises(UserError, match="none of the font files passed"):
        make_glyphs([folder], image_size=16, count=5, seed=0)
