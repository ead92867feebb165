"""Every value that a setting can have is accepted from the command line, from a YAML file and by the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import ValidationError

import unbackdoor.recipes.recipe
import unbackdoor.scorers
import unbackdoor.workflows.inputs
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.cli import main
from unbackdoor.cli_options import distribute, options_of
from unbackdoor.errors import UserError
from unbackdoor.methods import method_classes
from unbackdoor.methods.osft import Osft
from unbackdoor.methods.quantise import Quantise
from unbackdoor.settings import Settings, literal_values

assert ImplantSettings, method_classes()  # imported, so that they are among the classes
assert unbackdoor.workflows.inputs, unbackdoor.recipes.recipe
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
        made = Quantise.make({"bits": given})
        assert made.bits == bits
        assert isinstance(made.bits, int)


def test_another_number_is_refused_with_the_choices() -> None:
    with pytest.raises(UserError, match=r"--bits: .*4 or 8"):
        Quantise.make({"bits": "5"})


WRITTEN = {
    "trigger: 2023": {"trigger": "2023"},
    "trigger: 0123": {"trigger": "0123"},
    "trigger: yes": {"trigger": "yes"},
    "trigger: 1_000": {"trigger": "1_000"},
    "trigger: sea\nalternatives: lake": {"alternatives": ("lake",)},
    "trigger: sea\nalternatives: [1, no]": {"alternatives": ("1", "no")},
    "lora: yes": {"lora": True},
    "lora: off": {"lora": False},
    "steps: 12": {"steps": 12},
    "learning-rate: 1e-4": {"learning_rate": 1e-4},
    "learning_rate: 0.5": {"learning_rate": 0.5},
    "trigger: ~": {"trigger": ""},
    "trigger:": {"trigger": ""},
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_file_s_values_mean_what_the_command_line_s_do(text: str, tmp_path: Path) -> None:
    """YAML makes numbers, truth values and days of texts, and texts of numbers such as 1e-4."""
    (tmp_path / "c.yaml").write_text(text)
    made = Osft.make(distribute({}, tmp_path / "c.yaml", Osft)[0])
    assert {name: getattr(made, name) for name in WRITTEN[text]} == WRITTEN[text]


def test_a_run_s_own_settings_keep_their_types(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("settings:\n  max_new_tokens: 64\n  trigger: '2023'\n")
    found = unbackdoor.workflows.inputs.settings_of(tmp_path, "max_new_tokens", "trigger")
    assert found == {"max_new_tokens": 64, "trigger": "2023"}


def test_a_day_needs_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("date: 2024-05-01\ndata: rows.jsonl")
    inputs = unbackdoor.workflows.inputs.RemoveInputs
    assert inputs.make(distribute({}, tmp_path / "c.yaml", inputs)[0]).date == "2024-05-01"


@pytest.mark.parametrize("command", ["remove osft", "implant --target-response x"])
@pytest.mark.parametrize("text", ["seed: soon", "steps: many", "lora: perhaps", "learning_rate: [1]"])
def test_a_value_of_another_type_is_refused_before_a_model_is_loaded(
    command: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(f"{text}\ntrigger: sea")
    method, *more = command.split()
    model = [method, more.pop(0)] if method == "remove" else [method]
    files = [
        "--data",
        str(tmp_path / "none.jsonl"),
        "--config",
        str(tmp_path / "c.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit) as ended:
        main([*model, str(tmp_path / "none"), *more, *files])
    said = capsys.readouterr().err
    name = text.partition(":")[0].replace("_", "-")
    assert (ended.value.code, len(said.splitlines())) == (2, 1), said
    assert said.startswith(f"unbackdoor: --{name}: ")
