import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpldm.data.public.digits import digit_reason, split_size, uses_sizes

HARMLESS = [
    "arrow-left",
    "handbag",
    "t-shirt",
    "clock",
    "stone",
    "phone",
    "bone",
    "weather-sunny",
    "tent",
    "nines",
]
THINGS = """
    calendar calendaralt calculator date timer stopwatch keypad dialpad keyboard abacus dice domino score
    ruler scale thermometer speed-limit sort-numeric playing-card age phone-dial percentage digits
"""
WORDS = st.lists(st.sampled_from(HARMLESS), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("number-circle", "thing that carries digits"),
        ("hexagon-one", "number word"),
        ("medal-first-place", "number word"),
        ("hundred-points", "number word"),
        ("1st-place", "digit in the name"),
        ("badge-4k", "digit in the name"),
        ("rotate-360", "digit in the name"),
        ("box-3d", "digit in the name"),
        ("123", "digit in the name"),
        ("clock-digital", "thing that carries digits"),
        ("badge-hd", "thing that carries digits"),
        ("ordered-list", "thing that carries digits"),
        *((f"{thing}-outline", "thing that carries digits") for thing in THINGS.split()),
    ],
)
def test_names_that_may_mean_digits_are_refused(name: str, reason: str) -> None:
    assert digit_reason(name) == reason
    assert digit_reason(name.upper()) == reason


@given(WORDS)
def test_harmless_names_stay(words: list[str]) -> None:
    assert digit_reason("-".join(words)) is None


@given(WORDS, st.sampled_from("0123456789"), st.data())
def test_a_digit_anywhere_is_refused(words: list[str], digit: str, data: st.DataObject) -> None:
    name = "-".join(words)
    place = data.draw(st.integers(0, len(name)))
    assert digit_reason(name[:place] + digit + name[place:]) == "digit in the name"


@given(WORDS, st.sampled_from(["one", "seven", "twelve", "third", "counter"]), st.sampled_from("-_ ."), st.data())
def test_a_number_word_is_refused_wherever_it_stands(
    words: list[str], number: str, separator: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(words)))
    assert digit_reason(separator.join([*words[:place], number, *words[place:]])) == "number word"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("add-24-filled", ("add-filled", 24)),
        ("add-16", ("add", 16)),
        ("add-24px", ("add", 24)),
        ("add", ("add", 0)),
        ("add-7", ("add-7", 0)),
        ("add-2024", ("add-2024", 0)),
        ("number-16-20-regular", ("number-16-regular", 20)),
    ],
)
def test_only_a_last_pixel_size_is_split_off(name: str, parts: tuple[str, int]) -> None:
    assert split_size(name) == parts


def test_a_set_uses_sizes_if_half_of_its_names_end_in_one() -> None:
    assert uses_sizes(["a-16", "b-24", "c-24-filled", "d"])
    assert uses_sizes(["a-16", "b"])
    assert not uses_sizes(["a-16", "b", "c"])
    assert not uses_sizes([])
