"""Every value that a setting can have is accepted from the command line, from a YAML file and by the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import ValidationError

import unbackdoor.commands.inputs
import unbackdoor.recipes.recipe
import unbackdoor.scorers
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.cli_options import distribute, options_of
from unbackdoor.errors import UserError
from unbackdoor.removal import METHODS
from unbackdoor.removal.settings import QuantiseSettings
from unbackdoor.settings import Settings, literal_values

assert ImplantSettings, METHODS  # imported, so that they are among the classes
assert unbackdoor.commands.inputs, unbackdoor.recipes.recipe
assert unbackdoor.scorers.Scorer


def every(cls: type[Settings]) -> list[type[Settings]]:
    return [cls, *(found for child in cls.__subclasses__() for found in every(child))]


CHOICES = sorted(
    {
        (cls.__name__, name, str(value)): (cls, name, value)
        for cls in every(Settings)
        for name, field in cls.model_fields.items()
        for value in literal_values(field.annotation)
    }.items()
)
NUMBERS = sorted(
    {
        (cls.__name__, name): (cls, name, field.default)
        for cls in every(Settings)
        for name, field in cls.model_fields.items()
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
    }.items()
)


def parsed(cls: type[Settings], name: str, text: str) -> Any:
    """What the command line makes of an option's text."""
    command = click.Command("it", params=list(options_of(cls)))
    option = "--" + name.replace("_", "-")
    values = dict(command.make_context("it", [option, text]).params)
    return distribute(values, None, cls)[0][name]


def accepted(cls: type[Settings], name: str, value: Any) -> Any:
    """The field's value in settings that are made of this one alone; other fields' absence is no matter."""
    try:
        return getattr(cls(**{name: value}), name)
    except ValidationError as error:
        assert [e for e in error.errors() if e["loc"][:1] == (name,)] == []
        assert all(e["type"] in ("missing", "value_error") for e in error.errors())
        return value


@pytest.mark.parametrize(("cls", "name", "value"), [c for _, c in CHOICES], ids=["-".join(k) for k, _ in CHOICES])
def test_every_choice_is_accepted_as_it_is_written(cls: type[Settings], name: str, value: Any, tmp_path: Path) -> None:
    assert accepted(cls, name, parsed(cls, name, str(value))) in (value, str(value))
    for written in (yaml.safe_dump({name: value}), f"{name}: '{value}'\n"):
        (tmp_path / "c.yaml").write_text(written)
        assert accepted(cls, name, distribute({}, tmp_path / "c.yaml", cls)[0][name]) in (value, str(value))


@pytest.mark.parametrize(("cls", "name", "value"), [c for _, c in NUMBERS], ids=["-".join(k) for k, _ in NUMBERS])
def test_every_number_s_default_can_be_given(cls: type[Settings], name: str, value: Any) -> None:
    found = accepted(cls, name, parsed(cls, name, str(value)))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("bits", [4, 8])
def test_bits_are_a_number_however_they_were_given(bits: int) -> None:
    for given in (bits, str(bits), f" {bits} "):
        made = QuantiseSettings.make({"bits": given})
        assert made.bits == bits
        assert isinstance(made.bits, int)


def test_another_number_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match=r"--bits: .*4 or 8"):
        QuantiseSettings.make({"bits": "5"})
