"""Declared settings of a release: those of a config and no other, as numbers and the few words to choose from.

A closed table by hand, so that `verify` needs no pydantic; a test holds it to the config's own.
"""

from collections.abc import Callable, Mapping
from typing import Any


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _switch(value: Any) -> bool:
    return type(value) is bool


def _numbers(value: Any) -> bool:
    return type(value) is list and all(map(_number, value))


def _texts(value: Any) -> bool:
    return type(value) is list and all(type(text) is str for text in value)


def _parts(value: Any) -> bool:
    """[[from, to, share], ...]."""
    return type(value) is list and all(_numbers(part) and len(part) == 3 for part in value)


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: value in words


def _or_none(plain: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or plain(value)


OPTIMIZER: dict[str, Callable[[Any], bool]] = {
    "learning_rate": _number,
    "warmup_steps": _number,
    "decay": _one_of("constant", "linear", "cosine"),
    "adam_beta1": _number,
    "adam_beta2": _number,
    "noise_correction": _switch,
    "warm_start_steps": _number,
    "average": _one_of("ema", "uniform"),
    "ema_decay": _number,
    "label_dropout": _number,
    "timesteps": _parts,
    "mirror": _switch,
    "min_snr": _or_none(_number),
}
SAMPLING: dict[str, Callable[[Any], bool]] = {
    "count": _number,
    "sampler": _one_of("ddim", "dpmsolver++"),
    "steps": _number,
    "eta": _number,
    "guidance": _number,
    "keep": _number,
    "label_counts": _or_none(_numbers),
    "seed": _number,
    "batch_size": _number,
}
EVOLUTION: dict[str, Callable[[Any], bool]] = {
    "rounds": _number,
    "candidates": _number,
    "threshold": _number,
    "degrees": _numbers,
    "features": _one_of("efficientnet-lite0", "encoder"),
}
TABLES = {"optimizer": OPTIMIZER, "sampling": SAMPLING, "evolution": EVOLUTION}
"""What is declared of these sections; an older release may lack one of a section's settings."""
BESIDE: dict[str, Callable[[Any], bool]] = {
    "crop": _one_of("center", "none"),
    "window": _or_none(_numbers),
    "labels": _texts,
    "prompts": _texts,
    "caption_template": lambda template: type(template) is str and "{label}" in template,
    "tune_embedder": _switch,
    "learning_rates": _numbers,
}
"""What is declared beside them, and could hold something else than what it says."""


def settings_are_plain(declared: Mapping[str, Any]) -> bool:
    """Whether the settings hold nothing of one's own.

    Args:
        declared: the statement's declared constants.

    Raises:
        AttributeError: a section is none.
    """
    sections = [(values, TABLES[name]) for name, values in declared.items() if name in TABLES]
    beside = {name: value for name, value in declared.items() if name in BESIDE}
    return all(
        set(values) <= set(table) and all(table[name](value) for name, value in values.items())
        for values, table in (*sections, (beside, BESIDE))
    )
