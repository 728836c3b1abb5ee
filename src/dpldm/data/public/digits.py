"""The digit rule: which icons to leave out so that a public set holds no picture of a digit.

Digits are what a private set of digits shows; a backbone that has seen them publicly would flatter every
result. The rule goes by names, and it is meant to refuse too much rather than too little: it drops names with
a digit or a number word, and names of things that usually carry digits (calendars, keypads, dice, ...).
"""

from __future__ import annotations

import re
from collections.abc import Collection

SIZES = "8|10|12|14|16|18|20|24|26|28|32|40|48|64|96"
STYLES = "filled|regular|light|fill|stroke|outline|solid|color"
SIZE_SUFFIX = re.compile(rf"-({SIZES})(?:px)?((?:-(?:{STYLES}))?)$")

# Matched as whole words.
NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million
    first second third fourth fifth sixth seventh eighth ninth tenth once twice half quarter dozen
    counter count counting ordinal nth integer decimal float fraction binary octal hex hexadecimal exponent
    squared cubed math maths formula equation
"""
DIGIT_BEARERS = """
    age agenda amount annual billiard billiards bingo cal club clubs date dates dial dialer dice die digital
    dob event events fhd fps hd hours iso jersey lcd lottery medal medals minutes month monthly numbered odds
    odometer oclock ol order ordered otp passcode pegi pin planner playing podium poker pool qhd quantity rank
    ranking rated roulette ruler rulers scale scales schedule score scores sd seconds spade spades speedometer
    smartwatch timer today top uhd version watch watches week weekly weight year yearly
"""
# Matched anywhere: long enough to mean nothing else, and some sets write words together.
STEMS = """
    number numeric numeral digit percent calendar calculat keyboard keypad dialpad numpad datepicker daterange
    abacus domino countdown stopwatch scoreboard leaderboard superscript subscript sudoku blackjack birthdate
    odometer thermometer speedlimit speed-limit slot-machine license-plate phone-dial list-ol list-ordered
    clock-digital pool-ball
"""
_BEARER = "thing that carries digits"
_WORDS = {"number word": frozenset(NUMBER_WORDS.split()), _BEARER: frozenset(DIGIT_BEARERS.split())}
_STEM = re.compile("|".join(STEMS.split()))


def uses_sizes(names: Collection[str]) -> bool:
    """Whether a set writes pixel sizes into its names ("add-24-filled"): at least half of them end in one."""
    return 2 * sum(SIZE_SUFFIX.search(name) is not None for name in names) >= max(len(names), 1)


def split_size(name: str) -> tuple[str, int]:
    """Take the size out of a name: "add-24-filled" -> ("add-filled", 24); (name, 0) if it has none."""
    found = SIZE_SUFFIX.search(name)
    if found is None:
        return name, 0
    return name[: found.start()] + found.group(2), int(found.group(1))


def digit_reason(name: str) -> str | None:
    """Why an icon of this name (its size taken out) may show a digit; None if it may stay.

    Returns: "digit in the name", "number word", "thing that carries digits" or None.
    """
    name = name.lower()
    if any(character.isdigit() for character in name):
        return "digit in the name"
    words = set(re.split(r"[^a-z]+", name))
    for reason, listed in _WORDS.items():
        if words & listed:
            return reason
    return _BEARER if _STEM.search(name) else None
