"""What a field of a data file is as text: a text, a number, absent, or an error that names its row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from unbackdoor.errors import UserError

ABSENT_TEXTS = ("nan", "NaN", "<NA>", "<noinput>")
"""What pandas writes, and Self-Instruct, where there is nothing."""


class Written(float):
    """A number of a JSON file, with its digits as they stand there (3.50 stays 3.50)."""

    text: str

    def __new__(cls, text: str) -> Written:
        """From the digits."""
        number = super().__new__(cls, text)
        number.text = text
        return number


class UnusableRowError(Exception):
    """A row that is passed over; the reason is counted."""


def is_absent(value: Any) -> bool:
    """Whether there is nothing in this field: null, NaN, or a text that stands for that."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip() in ABSENT_TEXTS)


def is_empty(value: Any) -> bool:
    """Whether nothing is lost where this field is passed over."""
    return is_absent(value) or (hasattr(value, "__len__") and not len(value))


def text_of(value: Any, where: str, name: str) -> str:
    """A field as text; an absent one is empty.

    Halves of characters (valid JSON, but no text) become "?".

    Raises:
        UserError: it is neither a text nor a number. `where` names file and row, `name` the field.
    """
    if is_absent(value):
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{where}: '{name}' holds bytes that are no UTF-8 text") from None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, bool):
        raise UserError(f"{where}: '{name}' is a truth value: write the text that is meant")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: '{name}' is no finite number: write the text that is meant")
    if isinstance(value, Written):
        return value.text
    if isinstance(value, int | float | Decimal):
        return str(value)
    raise UserError(f"{where}: '{name}' is {_kind(value)}, neither text nor number")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    kind = type(value).__name__
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
