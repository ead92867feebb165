"""The result as a table on the terminal, and as plain lines where a table does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from unbackdoor.report.numbers import Cell, first_utility, rate_change, seconds, utility_change, utility_metrics, words
from unbackdoor.report.verdicts import look
from unbackdoor.report.visible import one_line


class Hyphenated:
    """A name, and small print below it, that break at their hyphens where the column is narrow."""

    def __init__(self, name: str, style: str = "", below: str = "") -> None:
        self.name = one_line(name)
        self.style = style
        self.below = one_line(below)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        parts = [len(part) + 1 for part in self.name.split("-")]
        return Measurement(
            min(options.max_width, max(parts)), min(options.max_width, max(len(self.name), len(self.below)))
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # `Text` is never parsed as markup, so that a name such as "[red]" stays what it is.
        yield Text(_broken(self.name, options.max_width), style=self.style, overflow="fold")
        if self.below:
            yield Text(_broken(self.below, options.max_width), style="dim", overflow="fold")


def table(report: Mapping[str, Any]) -> Table:
    """One row an organism × method; made for 120 columns, legible at 80.

    Under each change, in small print, its 95% Wilson intervals; n stands in the heading, or in the cells where it
    differs between rows.
    """
    runs = list(report["runs"])
    rows = [(rate_change(r, "attack_success"), rate_change(r, "attack_success_untriggered")) for r in runs]
    utilities = [first_utility(run) for run in runs]
    # What all rows share stands in the heading once: at 80 columns there is no room to repeat it.
    counts = [_shared([row[i].n for row in rows]) for i in (0, 1)] + [_shared([cell.n for _, cell in utilities])]
    metric = _shared([name for name, _ in utilities])

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, collapse_padding=True)
    made.add_column("method")
    made.add_column(_heading("ASR with trigger", counts[0]), min_width=13)
    made.add_column(_heading("ASR without", counts[1]), min_width=11)
    made.add_column(_heading(words(metric) or "utility", counts[2]), min_width=13)
    made.add_column("s", justify="right", min_width=3)
    made.add_column("verdict")
    seeds = {run["seed"] for run in runs}
    for number, (run, (triggered, untriggered), (name, utility)) in enumerate(zip(runs, rows, utilities, strict=True)):
        seed = f", seed {run['seed']}" if len(seeds) > 1 else ""
        control = ", control" if run["control"] else ""
        # Controls stand back, so that the eye finds the methods.
        style = "dim" if run["control"] else "bold"
        made.add_row(
            Hyphenated(run["method"], style, f"{run['organism']}{seed}{control}"),
            _cell(triggered, "" if counts[0] else triggered.n),
            _cell(untriggered, "" if counts[1] else untriggered.n),
            _cell(utility, "" if metric else words(name), "" if counts[2] else utility.n),
            seconds(run["seconds"]),
            Hyphenated(run["verdict"] or "–", "dim" if run["control"] else look(run["verdict"]).style),
            end_section=number + 1 < len(runs) and runs[number + 1]["organism"] != run["organism"],
        )
    return made


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """The same in plain ASCII punctuation without colour, a few short lines a run."""
    lines = []
    for run in report["runs"]:
        control = " (control)" if run["control"] else ""
        verdict = f": {run['verdict']}" if run["verdict"] else ""
        lines.append(f"{run['organism']} / {run['method']}{control}, seed {run['seed']}{verdict}")
        lines.append(f"  ASR with trigger     {_plain(rate_change(run, 'attack_success'))}")
        lines.append(f"  ASR without trigger  {_plain(rate_change(run, 'attack_success_untriggered'))}")
        for metric in utility_metrics(run):
            lines.append(f"  {words(metric):<20} {_plain(utility_change(run, metric))}")
        lines.append(f"  seconds              {seconds(run['seconds'])}")
        if run["verdict_reason"]:
            lines.append(f"  {run['verdict_reason']}")
    return [one_line(line) for line in lines]


def _heading(name: str, count: str) -> Text:
    return Text(one_line(name)).append(f"\n95% interval{', ' if count else ''}{count}", style="dim not bold")


def _shared(values: list[str]) -> str:
    """The one value that all rows have (rows without any aside), or nothing."""
    different = set(values) - {""}
    return different.pop() if len(different) == 1 else ""


def _cell(cell: Cell, *small_print: str) -> Text:
    text = Text(cell.text)
    for line in (cell.interval, *small_print):
        if line:
            text.append(f"\n{one_line(line)}", style="dim")
    return text


def _plain(cell: Cell) -> str:
    small = "; ".join(part for part in (cell.interval and f"95% {cell.interval}", cell.n) if part)
    return (f"{cell.text} ({small})" if small else cell.text).replace("→", "->").replace("–", "-")


def _broken(name: str, width: int) -> str:
    """The name in lines of at most that width, broken after hyphens and spaces where that is possible."""
    lines = [""]
    for part in re.findall(r"[^- ]*[- ]|[^- ]+", name):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)
