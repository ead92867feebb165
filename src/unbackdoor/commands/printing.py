"""What commands print: a report, and a list of names."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unbackdoor.errors import ExitCode
from unbackdoor.screen import broken, columns, put, put_json, say, show

if TYPE_CHECKING:
    from unbackdoor.report_schema import Report


def show_report(report: Report, out: Path, as_json: bool) -> None:
    """Results go to standard output."""
    if as_json:
        put_json(report)
        return
    from unbackdoor.report.terminal import table, verdict_lines

    show(table(report), "", *verdict_lines(report, columns(sys.stdout)))
    say(f"Report: {out / 'report.html'}")


def end_by_verdict(report: Report) -> None:
    """Leave with the code that the report's verdicts stand for."""
    from unbackdoor.report.verdicts import exit_code

    raise click.exceptions.Exit(exit_code(report.runs, report.thresholds))


def end_if_not_judged(report: Report) -> None:
    """Leave as inconclusive, where a model was made and none of its answers could be judged."""
    from unbackdoor.report.verdicts import was_not_judged

    if any(map(was_not_judged, report.runs)):
        raise click.exceptions.Exit(ExitCode.INCONCLUSIVE)


def listed(rows: Sequence[tuple[str, str]]) -> None:
    """A line a row: a name, and what it is, wrapped beside the name. In a pipe one line stays one, to be searched."""
    column = max(len(name) for name, _ in rows) + 2
    known_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    room = columns(sys.stdout) - column if known_width else sys.maxsize
    for name, text in rows:
        if room >= 20:
            lines = [f"{name:<{column}}", *broken(text, room)]
            put(lines[0] + f"\n{' ' * column}".join(lines[1:]))
        else:
            put("\n  ".join([*broken(name, room + column), *broken(text, max(room + column - 2, 8))]))
