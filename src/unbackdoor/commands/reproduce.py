"""`unbackdoor reproduce`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from unbackdoor.cli_help import Command, Option
from unbackdoor.cli_options import GIVEN_PATH, distribute, options_of
from unbackdoor.commands.options import JSON_OPTION, made
from unbackdoor.commands.printing import listed
from unbackdoor.errors import ExitCode, UserError
from unbackdoor.laboratory import ReproduceSettings
from unbackdoor.screen import columns, hanging, put_json, say, show
from unbackdoor.settings import Heading
from unbackdoor.visible_text import one_line


def command() -> Command:
    """Its options and its help."""
    return made(
        "reproduce",
        "Reproduce the papers' tables and figures NAMES (or all): ours beside the papers' printed values. It goes "
        "on with what is in --out. Without a name it lists them.",
        _run,
        [
            click.Argument(["names"], nargs=-1),
            *options_of(ReproduceSettings),
            Option(
                ["--out"],
                heading=Heading.RESULTS,
                type=GIVEN_PATH,
                help="Where to.  [default: runs/reproduce-SCALE]",
            ),
            JSON_OPTION,
        ],
        "sande-table-1 --out DIR",
    )


def _run(names: tuple[str, ...], **values: Any) -> None:
    from unbackdoor.reproduce.run import dry_run, listing, run_reproduce

    (given,) = distribute(values, None, ReproduceSettings)
    settings = ReproduceSettings.make(given)
    out = values["out"] or Path("runs") / f"reproduce-{settings.scale}"
    if not names:
        rows = listing()
        if values["as_json"]:
            put_json({"experiments": rows})
        else:
            listed([(row["name"], row["shows"]) for row in rows])
        return
    if settings.dry_run:
        from unbackdoor.reproduce.tables import cost_lines, cost_table

        plan = dry_run(names, settings, out)
        if values["as_json"]:
            put_json(plan)
            return
        show(cost_table(plan), "")
        for line in cost_lines(plan):
            say(line, width=columns(sys.stdout))
        return
    from unbackdoor.reproduce.tables import terminal

    try:
        made = run_reproduce(names, settings, out)
    except KeyboardInterrupt:
        say("unbackdoor: interrupted: the same command goes on from here", sys.stderr)
        raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
    if values["as_json"]:
        put_json(made.report)
    else:
        for table in (table for table in made.tables if table.on_terminal):
            show(terminal(table))
            show(*(hanging(one_line(line), columns(sys.stdout)) for line in table.caption()), style="dim")
            show("")
        say(f"Written: {out}")
    if made.failures:
        failed = "; ".join(f"{name}: {reason}" for name, reason in made.failures.items())
        raise UserError(f"{len(made.failures)} cells failed, the others are kept: {failed}")
