"""Every number of every setting has a range: infinity, 10^12, forty digits and truth values are refused."""

from __future__ import annotations

import importlib
import pkgutil
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import pytest

import unbackdoor
from unbackdoor.errors import UserError
from unbackdoor.settings import Settings, option_name


def parts(annotation: Any) -> set[Any]:
    """The types that a setting may have."""
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return set().union(*(parts(part) for part in get_args(annotation)))
    return {annotation}


def below(cls: type[Settings]) -> Iterator[type[Settings]]:
    for found in cls.__subclasses__():
        yield found
        yield from below(found)


def numbers() -> list[tuple[type[Settings], str]]:
    """Every setting of the package that is a number, once for each class that declares or inherits it."""
    for module in pkgutil.walk_packages(unbackdoor.__path__, "unbackdoor."):
        if not module.name.endswith(("__main__", "template_child", "testbed.train")):
            importlib.import_module(module.name)
    return [
        (cls, name)
        for cls in dict.fromkeys(below(Settings))
        if cls.__module__.startswith("unbackdoor.")
        for name, field in cls.model_fields.items()
        if {int, float} & parts(field.annotation)
    ]


HOSTILE: dict[str, Any] = {
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "no number": float("nan"),
    "infinity as text": "inf",
    "infinity in words": "-Infinity",
    "no number as text": "nan",
    "10^12": 10**12,
    "10^12 as text": "1e12",
    "-10^12": -(10**12),
    "forty digits": int("9" * 40),
    "forty digits as text": "9" * 40,
    "5,000 digits as text": "9" * 5000,
    "10^400": 10**400,
    "true": True,
    "false": False,
    "true as text": "true",
    "nothing in it": "",
    "a blank": " ",
    "a word": "many",
    "hexadecimal": "0x10",
    "another script's digit": "²",
    "a list": [[1]],
    "a mapping": {"a": 1},
    "bytes": b"\xff",
    "a complex number": 1j,
    "NUL": "1\0",
    "half a character": "\ud800",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_setting_takes_such_a_number(name: str) -> None:
    taken = []
    for cls, field in numbers():
        try:
            cls.make({field: HOSTILE[name]})
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
        else:
            taken.append(f"{cls.__name__}.{field}")
    assert taken == []


def test_an_error_names_the_option_and_what_is_allowed() -> None:
    for cls, field in numbers():
        required = [n for n, f in cls.model_fields.items() if f.is_required() and n != field]
        if required:
            continue
        with pytest.raises(UserError, match=f"^{option_name(field)}"):
            cls.make({field: 10**12})


def test_there_are_numbers() -> None:
    assert len({name for _, name in numbers()}) > 60
