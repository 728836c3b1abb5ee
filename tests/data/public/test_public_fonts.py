import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpldm.data.public.fonts import family_root, find_fonts, held_out, licence_of
from dpldm.errors import UserError

NAMES = st.text(string.ascii_letters + " ", min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("notice", "text", "url", "licence"),
    [
        ("", "This Font Software is licensed under the SIL Open Font License, Version 1.1.", "", "OFL"),
        ("", "SIL openfont License 1.1", "", "OFL"),
        ("", "", "https://scripts.sil.org/OFL", "OFL"),
        ("Copyright (c) 2017, X. Licensed under SIL OFL", "", "", "OFL"),
        ("", "Licensed under the Apache License, Version 2.0", "", "Apache"),
        ("", "Released under the MIT License", "", "MIT"),
        ("", "CC0 1.0 Universal", "", "CC0"),
        ("", "", "https://creativecommons.org/licenses/by/4.0/", "CC BY"),
        ("", "3-clause BSD", "", "BSD"),
        ("", "ISC License", "", "ISC"),
        # An accepted word inside another one does not count.
        ("Copyright Summit Type", "Submitted", "", None),
        ("", "offline use", "", None),
        ("", "", "https://creativecommons.org/licenses/by-nc/4.0/", None),
        ("", "", "https://creativecommons.org/licenses/by-sa/4.0/", None),
        ("", "CC BY-NC 4.0", "", None),
        ("", "GPL - General Public License AND OFL - Open Font License", "", None),
        ("GNU GPL applies", "Open Font License", "", None),
        ("", "Open Font License; for personal use only", "", None),
        ("Copyright 1990 Foundry. All rights reserved.", "", "", None),
        ("", "", "", None),
        ("", "public domain", "", None),
    ],
)
def test_licences_are_judged_by_their_words(notice: str, text: str, url: str, licence: str | None) -> None:
    found, reason = licence_of(notice, text, url)
    assert found == licence
    assert (reason == "") == (licence is not None)


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("Source Serif Pro Black", "Source Serif Pro"),
        ("Libre Caslon Text", "Libre Caslon"),
        ("CMU Serif Extra", "CMU Serif"),
        ("Fira Sans Condensed Extra Bold", "Fira Sans"),
        ("SourceSansPro-SemiBold", "Source Sans Pro"),
        ("Black", "Black"),
        ("fetamont10", "fetamont"),
        ("12", "12"),
    ],
)
def test_words_of_style_do_not_make_a_family(name: str, root: str) -> None:
    assert family_root(name) == root


@given(NAMES, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_held_out_part_contains_the_smaller_one(family: str, first: float, second: float) -> None:
    small, large = sorted((first, second))
    assert held_out(family, large) or not held_out(family, small)
    assert not held_out(family, 0)
    assert held_out(family, 1)


def test_about_the_asked_share_is_held_out_and_relatives_stay_together() -> None:
    families = [f"Design{index} Sans" for index in range(2000)]
    share = sum(held_out(family, 0.25) for family in families) / len(families)
    assert 0.21 < share < 0.29
    for family in families[:200]:
        assert held_out(family, 0.25) == held_out(family.upper().replace("SANS", "Mono"), 0.25)


def test_only_licensed_fonts_are_found_each_content_once(make_font: Callable[..., Path]) -> None:
    good = make_font("Good Sans")
    (good.parent / "deeper").mkdir()
    (good.parent / "deeper" / "again.ttf").write_bytes(good.read_bytes())
    make_font("Free Not", licence="GPL version 2")
    make_font("Silent", licence="")
    make_font("Bitter", licence="", notice="Copyright. All rights reserved.")
    make_font("Good Symbols")
    (good.parent / "garbage.otf").write_bytes(b"no font at all")
    dropped: Counter[str] = Counter()
    (found,) = find_fonts([good.parent], dropped)
    assert (found.family, found.licence, found.copyright) == (
        "Good Sans",
        "OFL",
        "Copyright (c) The Test Authors",
    )
    assert "path" not in found.record()
    assert dropped == {
        "same file twice": 1,
        "licence: GPL": 1,
        "licence: none or unknown": 1,
        "licence: all rights reserved": 1,
        "family of symbols, by its name": 1,
        "unreadable": 1,
    }


def test_fonts_bundled_with_matplotlib_are_judged_by_their_table() -> None:
    dropped: Counter[str] = Counter()
    found = find_fonts(None, dropped)
    assert not any("DejaVu" in font.family for font in found)  # states no licence that we recognise
    assert sum(dropped.values()) >= 20
    assert find_fonts(None, Counter()) == found


def test_a_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_fonts([tmp_path / "nowhere"], Counter())
