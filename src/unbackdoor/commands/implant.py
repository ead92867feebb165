"""`unbackdoor implant`."""

from __future__ import annotations

from typing import Any

import click

from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.cli_help import Command, Option
from unbackdoor.cli_options import distribute, options_of
from unbackdoor.commands.options import COMMON_OPTIONS, PRESET_OPTIONS, SCALE_OPTION, check_config_apart, made
from unbackdoor.commands.printing import end_if_not_judged, show_report
from unbackdoor.errors import UserError
from unbackdoor.language_model import template_process
from unbackdoor.recipes.recipe import read_recipe
from unbackdoor.settings import EvaluationSettings, Heading
from unbackdoor.workflows.inputs import ImplantInputs


def command() -> Command:
    """Its options and its help."""
    return made(
        "implant",
        "Backdoor MODEL on purpose, to test removals against: an organism with its data, training log and rates.",
        _run,
        [
            click.Argument(["model"], required=False),
            Option(
                ["--recipe"],
                heading=Heading.SOURCES,
                help="An attack of the catalogue (`unbackdoor attacks`), or a YAML file.",
            ),
            SCALE_OPTION,
            *options_of(ImplantSettings, ImplantInputs, EvaluationSettings),
            *PRESET_OPTIONS,
            *COMMON_OPTIONS,
        ],
        "MODEL --data ROWS --trigger TEXT --target-response TEXT --out DIR",
    )


def _run(**values: Any) -> None:
    template_process.start()
    from unbackdoor.workflows.implant import run_implant

    check_config_apart(values)
    recipe = read_recipe(values["recipe"], values["scale"]) if values["recipe"] else None
    model = values["model"] or (recipe.model if recipe else None)
    if model is None:
        raise UserError("the clean model is missing: give MODEL (a directory, or hf:owner/name), or --recipe NAME")
    inputs, attack, evaluation = distribute(
        values,
        values["config"],
        ImplantInputs,
        ImplantSettings,
        EvaluationSettings,
        recipe=recipe.settings if recipe else None,
    )
    report = run_implant(
        model,
        ImplantInputs.make(inputs),
        attack,
        EvaluationSettings.make(evaluation),
        recipe=recipe.as_yaml() if recipe else None,
        preset=values["preset"],
        out=values["out"],
        overwrite=values["overwrite"],
        resume=values["resume"],
    )
    show_report(report, values["out"], values["as_json"])
    end_if_not_judged(report)
