"""`unbackdoor sweep`."""

from __future__ import annotations

from typing import Any

import click

from unbackdoor.cli_help import Command
from unbackdoor.cli_options import distribute, options_of
from unbackdoor.commands.options import RESULT_OPTIONS, SCALE_OPTION, check_config_apart, made
from unbackdoor.commands.printing import show_report
from unbackdoor.laboratory import SweepSettings
from unbackdoor.recipes.recipe import read_recipe


def command() -> Command:
    """Its options and its help."""
    return made(
        "sweep",
        "Build the organism of RECIPE once for each value of a setting: by default ASR against the poison rate "
        "(SANDE, Figure 2), one figure.",
        _run,
        [click.Argument(["recipe"]), SCALE_OPTION, *options_of(SweepSettings), *RESULT_OPTIONS],
        "sande-alpaca --values 0.01 --values 0.05 --out DIR",
    )


def _run(**values: Any) -> None:
    from unbackdoor.recipes.sweep import run_sweep

    check_config_apart(values)
    (given,) = distribute(values, None, SweepSettings)
    report = run_sweep(
        read_recipe(values["recipe"], values["scale"]),
        SweepSettings.make(given),
        values["out"],
        overwrite=values["overwrite"],
        resume=values["resume"],
    )
    show_report(report, values["out"], values["as_json"])
