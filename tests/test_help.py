"""What `--help` of every command prints: an example that can be run, and each option once, under a heading."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from pydantic import Field

from unbackdoor.cli import application, main
from unbackdoor.cli_help import COMMANDS, USUAL, Command
from unbackdoor.cli_options import options_of
from unbackdoor.knowledge import described
from unbackdoor.methods import METHODS, method_class
from unbackdoor.methods.sande import Sande
from unbackdoor.settings import Heading, Settings


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it, the groups among them."""
    yield path, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(application()))


def help_of(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*path, "--help"])
    assert not stop.value.code
    return capsys.readouterr().out


def under_headings(text: str) -> dict[str, list[str]]:
    """The options that stand under each heading."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if re.fullmatch(r"\S.*:", line) and line != "Example:":
            found[line[:-1]] = []
        elif found and (option := re.match(r"  (--[\w-]+)", line)):
            found[list(found)[-1]].append(option[1])
    return found


@pytest.mark.parametrize("columns", ["80", "60", "200"])
@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_fits_and_lists_each_option_once_under_a_heading(
    path: tuple[str, ...], columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = help_of(path, capsys)
    assert max(map(len, text.splitlines())) <= min(int(columns), 80)
    found = under_headings(text)
    listed = [option for options in found.values() for option in options]
    options = [p for p in ALL[path].params if isinstance(p, click.Option)]
    assert sorted(listed) == sorted([*(option.opts[0] for option in options), "--help"])
    headings = [heading for heading in found if heading in list(Heading)]
    assert headings == sorted(headings, key=[h.value for h in Heading].index)
    assert found["Other"] == (["--help"] if path else ["--version", "--help"]), "everything else has a heading"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_begins_with_an_example_that_the_parser_takes(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(path, capsys)
    assert text.startswith("Example:\n  unbackdoor ")
    program, *words = shlex.split(text.split("\n\n")[0].removeprefix("Example:").replace("\\\n", " "))
    assert program == "unbackdoor"
    command: click.Command = application()
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    context = command.make_context(command.name, words)
    assert context.args == []


def test_the_example_of_a_method_gives_what_the_method_needs() -> None:
    given = {
        "osft": ["--trigger"],
        "sande": ["--target-response"],
        "beear": ["--contrast"],
        "lat": ["--contrast"],
        "unlearn": ["--trigger", "--target-response"],
        "fine-mixing": ["--clean-model"],
        "dpo": ["--preferences"],
        "average": ["--sibling"],
        "random-perturbation": ["--like"],
    }
    for name in METHODS:
        command = ALL["remove", name]
        assert isinstance(command, Command)
        assert re.findall(r"--[\w-]+", command.example) == ["--data", *given.get(name, []), "--out"]
        assert f"needs {described(method_class(name).needs)}" in str(command.short_help)


def test_help_of_sande_starts_with_what_one_knows(capsys: pytest.CaptureFixture[str]) -> None:
    found = under_headings(help_of(("remove", "sande"), capsys))
    assert list(found)[:3] == ["What you know", "Data", "Where results go"]
    firsts = {heading: options[0] for heading, options in found.items()}
    assert firsts["What you know"] == "--target-response"
    assert (firsts["Data"], firsts["Where results go"]) == ("--data", "--out")
    assert found["Evaluation"][:2] == ["--eval-organism", "--eval-trigger"]
    assert {"--steps", "--lora"} <= set(found["Training"]) and "--parrot-length" in found["Method"]


def test_what_the_order_names_exists() -> None:
    names = {parameter.name for command in ALL.values() for parameter in command.params}
    assert set(USUAL) <= names
    assert set(COMMANDS) == set(application().commands)


def test_an_option_that_is_added_to_settings_gets_the_heading_of_its_class() -> None:
    class Extended(Sande):
        added: int = Field(default=0, description="New.")

    class Fresh(Settings):
        heading = Heading.RUN
        one: int = Field(default=0, description="New.")

    class Further(Fresh):
        heading = Heading.DATA
        elsewhere = {"one": Heading.KNOWN}  # noqa: RUF012
        two: int = Field(default=0, description="New.")

    headings = {option.name: option.heading for option in options_of(Extended, Further)}
    assert headings["added"] == Heading.METHOD
    assert headings["steps"] == Heading.TRAINING
    assert (headings["one"], headings["two"]) == (Heading.KNOWN, Heading.DATA)
    assert Fresh.heading_of("one") == Heading.RUN


def test_a_setting_that_stands_elsewhere_exists() -> None:
    def classes(of: type[Settings]) -> Iterator[type[Settings]]:
        yield of
        for one in of.__subclasses__():
            yield from classes(one)

    for cls in classes(Settings):
        if cls.__module__.startswith("unbackdoor."):
            assert set(cls.elsewhere) <= {f for sub in classes(cls) for f in sub.model_fields}


def test_help_needs_no_torch_and_no_transformers() -> None:
    code = "import sys, unbackdoor.cli; sys.argv = ['unbackdoor', 'remove', 'sande', '--help']\n"
    code += (
        "try: unbackdoor.cli.main()\nexcept SystemExit: pass\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
