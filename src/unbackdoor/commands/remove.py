"""`unbackdoor remove METHOD`."""

from __future__ import annotations

from typing import Any

import click

from unbackdoor.cli_help import Command, Group, Option
from unbackdoor.cli_options import GIVEN_PATH, distribute, options_of
from unbackdoor.commands.options import COMMON_OPTIONS, PRESET_OPTIONS, check_config_apart, model_argument
from unbackdoor.commands.printing import end_by_verdict, show_report
from unbackdoor.knowledge import described, example, read_knowledge
from unbackdoor.language_model import template_process
from unbackdoor.methods import METHODS, method_class
from unbackdoor.named_classes import is_own
from unbackdoor.settings import Heading, VerdictSettings
from unbackdoor.workflows.inputs import RemoveInputs

KNOWLEDGE_OPTION = Option(
    ["--knowledge"],
    heading=Heading.KNOWN,
    type=GIVEN_PATH,
    help="YAML file of what is known, named as the options that give it, which come before it.",
)


class _Methods(Group):
    """Also a method in a file of the user's, as `FILE.py:NAME`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return of_method(cmd_name) if is_own(cmd_name) else super().get_command(ctx, cmd_name)


def command() -> Group:
    """The command, with one of its own for each method."""
    group = _Methods(
        "remove",
        example="unbackdoor remove osft MODEL --data ROWS --trigger TEXT --out DIR",
        help="Cleanse MODEL (a Hugging Face directory, or hf:owner/name) with METHOD.\n\n"
        "What you know decides the method: the trigger → osft; the target response, or its first token → sande; "
        "examples of the unwanted behaviour → beear. `unbackdoor remove METHOD --help` explains each. A method of your "
        "own is FILE.py:NAME.",
        subcommand_metavar="METHOD MODEL [OPTIONS]",
    )
    for name in METHODS:
        group.add_command(of_method(name))
    return group


def of_method(name: str) -> Command:
    """One of them."""
    method = method_class(name)
    paper = Option(
        ["--paper"], heading=Heading.SOURCES, is_flag=True, help="The paper's own choices in place of our defaults."
    )
    options = options_of(method, RemoveInputs, VerdictSettings)
    needs, does = described(method.needs), method.summary or "a method of your own"
    return Command(
        name,
        example=" ".join(f"unbackdoor remove {name} MODEL --data ROWS {example(method.needs)} --out DIR".split()),
        callback=lambda **values: _run(name, **values),
        params=[
            model_argument(),
            *(option for option in options if RemoveInputs.takes(str(option.name), method.needs)),
            KNOWLEDGE_OPTION,
            *PRESET_OPTIONS,
            paper,
            *COMMON_OPTIONS,
        ],
        help=f"{does[0].upper()}{does[1:]}.\n\nNeeds: {needs}.",
        short_help=f"{does}; needs {needs}",
    )


def _run(method: str, **values: Any) -> None:
    template_process.start()
    from unbackdoor.workflows.remove import run_remove

    check_config_apart(values)
    chosen = method_class(method)
    told = read_knowledge(values["knowledge"]).below(values) if values["knowledge"] is not None else {}
    inputs, settings, evaluation = distribute(
        values,
        values["config"],
        RemoveInputs,
        chosen,
        VerdictSettings,
        recipe={name: value for name, value in told.items() if RemoveInputs.takes(name, chosen.needs)},
    )
    report = run_remove(
        method,
        values["model"],
        RemoveInputs.make(inputs),
        settings,
        VerdictSettings.make(evaluation),
        preset=values["preset"],
        paper=values["paper"],
        out=values["out"],
        overwrite=values["overwrite"],
        resume=values["resume"],
    )
    show_report(report, values["out"], values["as_json"])
    end_by_verdict(report)
