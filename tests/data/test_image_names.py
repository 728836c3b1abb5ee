"""Text of others: escapes, spreadsheets, folder names."""

import os
import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpldm.data.names import folder_names, has_image_suffix, printable, spreadsheet_safe

ANY_TEXT = st.text(st.characters(), max_size=80)  # surrogates and control characters too


@given(ANY_TEXT)
def test_printable_is_one_line_of_utf8(text: str) -> None:
    result = printable(text)
    assert result.encode().decode() == result
    assert len(result.splitlines()) <= 1
    assert not set(result) & {*map(chr, range(32)), *map(chr, range(127, 160)), "\u202e", "\u200b"}
    assert (result == text) == all(unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029" for c in text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Grün 3, α!", "Grün 3, α!"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb", "a\\nb"),
        ("\udcff.png", "\\udcff.png"),
        ("x\u202egnp.exe", "x\\u202egnp.exe"),
    ],
)
def test_printable_examples(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_spreadsheets_see_no_formula() -> None:
    assert [spreadsheet_safe(t) for t in ("=cmd|' /C calc'!A0", "+1", "-1", "@x", "a=b", "7")] == [
        "'=cmd|' /C calc'!A0",
        "'+1",
        "'-1",
        "'@x",
        "a=b",
        "7",
    ]


def test_ordinary_labels_are_their_own_folders() -> None:
    labels = ["0", "10", "Gram positive", "T-shirt", "naïve", "猫", "v1.2"]
    assert folder_names(labels) == labels


@given(st.lists(ANY_TEXT, max_size=12))
def test_folder_names_are_safe_and_distinct(labels: list[str]) -> None:
    names = folder_names(labels)
    assert len(names) == len(labels)
    assert len({name.casefold() for name in names}) == len(names)
    assert folder_names(labels) == names
    for name in names:
        assert PurePosixPath(name).parts == (name,)
        assert name == os.path.basename(os.path.normpath(os.path.join("/root", name)))
        assert len(name.encode()) <= 255
        assert not name.startswith((".", "=", "+", "-", "@", "~", " "))
        assert not name.endswith((".", " "))
        assert not set(name) & set('/\\:*?"<>|\0\n\r\t\x1b')
        assert not has_image_suffix(name)


@pytest.mark.parametrize(
    ("label", "folder"),
    [
        ("../../etc", "_._.._etc"),
        (".hidden", "_hidden"),
        ("=cmd", "_cmd"),
        ("CON", "_CON"),
        ("lpt1.txt", "_lpt1.txt"),
        ("", "_"),
        ("..", "_"),
        ("cat.png", "cat.png_"),
        ("README.md", "README.md_"),
    ],
)
def test_dangerous_labels(label: str, folder: str) -> None:
    assert folder_names([label]) == [folder]


def test_labels_that_differ_in_case_only_get_two_folders() -> None:
    assert folder_names(["Cat", "cat", "cat/", "cat_"]) == ["Cat", "cat_", "cat__", "cat___"]
