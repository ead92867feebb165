"""`unbackdoor rejudge`."""

from __future__ import annotations

import sys
from typing import Any

import click

from unbackdoor.cli_help import Command, Option
from unbackdoor.cli_options import GIVEN_PATH
from unbackdoor.commands.options import JSON_OPTION, made
from unbackdoor.errors import UserError
from unbackdoor.scorers import SCORERS
from unbackdoor.screen import columns, put_json, say, show
from unbackdoor.settings import Heading

REJUDGE_OPTIONS = [
    Option(
        ["--scorer"],
        heading=Heading.RUN,
        multiple=True,
        help="A scorer; give it again for each. LABEL=SCORER, to have one twice with other options. Without any, the "
        "run's verdicts are judged again by the rules of this version.",
    ),
    Option(
        ["--option"],
        heading=Heading.RUN,
        multiple=True,
        help="A scorer's option, as SCORER.FIELD=VALUE; give it again for each.",
    ),
    Option(
        ["--set"],
        heading=Heading.RUN,
        multiple=True,
        help="A set of answers; give it again for each.  [default: triggered, untriggered]",
    ),
    Option(
        ["--model"],
        heading=Heading.RUN,
        multiple=True,
        help="A model's answers; give it again for each.  [default: all]",
    ),
    Option(
        ["--labels"],
        heading=Heading.RUN,
        type=GIVEN_PATH,
        help="The sheet of disagreements, with its labels filled in.",
    ),
    Option(
        ["--out"],
        heading=Heading.RESULTS,
        type=GIVEN_PATH,
        help="Where to write.  [default: RUN/rejudge]",
    ),
    Option(
        ["--overwrite"],
        heading=Heading.RESULTS,
        is_flag=True,
        help="Replace the report and the sheet there; labels are kept.",
    ),
]


def command() -> Command:
    """Its options and its help."""
    return made(
        "rejudge",
        "Judge the run directory RUN again by its stored answers: by the verdicts' rules of this version, or with "
        "other scorers. Nothing is generated. "
        "With two judges or more: their agreement, and a sheet of disagreements to label.\n\n"
        f"Scorers: {', '.join(SCORERS)}, or your own as FILE.py:NAME.",
        _run,
        [
            click.Argument(["run"], type=GIVEN_PATH),
            *REJUDGE_OPTIONS,
            JSON_OPTION,
        ],
        "RUN --scorer complies --scorer keyword",
    )


def _run(**values: Any) -> None:
    from unbackdoor.report.verdicts import exit_code
    from unbackdoor.workflows import rejudge, rejudge_verdicts

    if not values["scorer"]:
        given = [f"--{name}" for name in ("option", "set", "model", "labels") if values[name]]
        if given:
            raise UserError(f"{given[0]} is for scorers: give a --scorer too, or leave it out")
        again = rejudge_verdicts.run_rejudge_verdicts(values["run"], out=values["out"], overwrite=values["overwrite"])
        _show_rejudged(again, rejudge_verdicts, values["as_json"])
        raise click.exceptions.Exit(exit_code(again.runs, again.thresholds))
    report = rejudge.run_rejudge(
        values["run"],
        values["scorer"],
        values["option"],
        sets=values["set"],
        models=values["model"],
        labels=values["labels"],
        out=values["out"],
        overwrite=values["overwrite"],
    )
    _show_rejudged(report, rejudge, values["as_json"])
    raise click.exceptions.Exit(rejudge.outcome(report))


def _show_rejudged(report: Any, command: Any, as_json: bool) -> None:
    if as_json:
        put_json(report)
        return
    show(command.table(report), "")
    for line in command.lines(report):
        say(line, width=columns(sys.stdout))
