"""`unbackdoor evaluate`."""

from __future__ import annotations

from typing import Any

from unbackdoor.cli_help import Command
from unbackdoor.cli_options import distribute, options_of
from unbackdoor.commands.options import COMMON_OPTIONS, check_config_apart, made, model_argument
from unbackdoor.commands.printing import end_by_verdict, show_report
from unbackdoor.language_model import template_process
from unbackdoor.settings import VerdictSettings
from unbackdoor.workflows.inputs import EvaluateInputs


def command() -> Command:
    """Its options and its help."""
    return made(
        "evaluate",
        "Measure MODEL: attack success with and without the trigger, utility. Without --trigger "
        "there is no attack success rate, only utility.",
        _run,
        [model_argument(), *options_of(EvaluateInputs, VerdictSettings), *COMMON_OPTIONS],
        "MODEL --before MODEL --data ROWS --trigger TEXT --out DIR",
    )


def _run(**values: Any) -> None:
    template_process.start()
    from unbackdoor.workflows.evaluate import run_evaluate

    check_config_apart(values)
    inputs, evaluation = distribute(values, values["config"], EvaluateInputs, VerdictSettings)
    report = run_evaluate(
        values["model"],
        EvaluateInputs.make(inputs),
        VerdictSettings.make(evaluation),
        out=values["out"],
        overwrite=values["overwrite"],
        resume=values["resume"],
    )
    show_report(report, values["out"], values["as_json"])
    end_by_verdict(report)
