"""The highest value of every setting that is a number: one table, by the setting's name.

A number without an end is a loop without an end, or an allocation of all memory: `--parrot-length 1e12`. The lowest
values stand with the settings; these here are far above anything that makes sense, so that they are in nobody's way.
"""

from __future__ import annotations

import math
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

HIGHEST_WHOLE, HIGHEST_NUMBER = 10_000_000, 1e6
"""Of a whole number, and of any other, that does not stand below."""

HIGHEST: dict[str, float] = {
    **dict.fromkeys(("seed", "seeds"), 2**32 - 1),
    **dict.fromkeys(("batch_size", "micro_batch_size", "eval_batch_size"), 100_000),
    **dict.fromkeys(("max_length", "max_new_tokens", "rl_new_tokens", "judge_max_tokens", "target_tokens"), 10_000_000),
    **dict.fromkeys(("parrot_length", "length", "lora_rank", "generations"), 10_000),
    **dict.fromkeys(("rounds", "least_rounds", "draws", "inner_steps"), 10_000),
    **dict.fromkeys(("layer", "drift_layer", "edit_layer"), 100_000),
    **dict.fromkeys(("near_misses", "temperature"), 100.0),
    "jobs": 256,
}


def check_number(name: str, annotation: Any, value: Any) -> None:
    """Raise a `ValueError` that names the option where a setting's value is no number that can be worked with.

    Args:
        name: the setting's.
        annotation: its type.
        value: what was made of it, or what was given.
    """
    kinds = _kinds(annotation)
    if not kinds:
        return
    option = "--" + name.replace("_", "-")
    for number in value if isinstance(value, tuple | list) else (value,):
        if isinstance(number, bool):
            raise ValueError(f"{option}: a number is needed, not a truth value")
        if not isinstance(number, int | float):
            continue
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{option}: a finite number is needed")
        highest = HIGHEST.get(name, HIGHEST_WHOLE if int in kinds else HIGHEST_NUMBER)
        if abs(number) > highest:
            raise ValueError(f"{option}: at most {highest:,.0f} is allowed")


def check_text(name: str, value: Any) -> None:
    """Raise a `ValueError` where a text, or one of several, holds what no file of UTF-8 and no path can hold."""
    for text in value if isinstance(value, tuple | list) else (value,):
        if not isinstance(text, str | Path):
            continue
        option, text = "--" + name.replace("_", "-"), str(text)
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError(f"{option}: this is not UTF-8 text: rename the file, or write it anew")
        if "\0" in text:
            raise ValueError(f"{option}: a text without the character of number 0 is needed")


def _kinds(annotation: Any) -> set[type]:
    """int and float, as far as they are among the types of a setting; none where truth values are meant, too."""
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return set().union(*(_kinds(part) for part in get_args(annotation)))
    return {annotation} if annotation in (int, float) else set()
