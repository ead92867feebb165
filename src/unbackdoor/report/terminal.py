"""The result as a table on the terminal, in as much detail as its width has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType

from unbackdoor.evaluation.verdict import not_judged
from unbackdoor.report.answers import answer_lines
from unbackdoor.report.fitting import Block, Blocks, FirstThatFits, Lines, Names, Sentence, plain_table
from unbackdoor.report.numbers import (
    Cell,
    first_utility,
    seconds,
    triggered_change,
    untriggered_change,
    words,
)
from unbackdoor.report.verdicts import LOOKS
from unbackdoor.report_schema import Report, Verdict
from unbackdoor.screen import broken, cut, hanging, longest_piece
from unbackdoor.visible_text import one_line

VERDICT_CELLS = 12
"""A verdict is broken at its hyphens to lines of so many cells, where there is no room for it."""


@dataclass(frozen=True)
class Form:
    """How much a table shows: which intervals, whether the seconds, and where words are broken.

    `words` is the least width that headings and prose are broken to (None: to none), where the numbers need less.
    """

    intervals: str
    words: int | None = None
    break_verdicts: bool = False
    seconds: bool = True


FORMS = (
    Form("both"),
    Form("both", words=13),
    Form("both", words=12),
    Form("both", words=12, break_verdicts=True),
    Form("last"),
    Form("last", words=12),
    Form("last", words=0),
    Form("last", words=0, break_verdicts=True),
    Form("last", words=0, seconds=False),
    Form("last", words=0, break_verdicts=True, seconds=False),
    Form("none", words=0, break_verdicts=True, seconds=False),
)


@dataclass(frozen=True)
class Result:
    """A run as a row."""

    method: str
    of: tuple[str, str]
    """The organism, and what stands behind it where it is cut: the seed, where there are several."""
    control: bool
    verdict: Verdict | None
    cells: tuple[Cell, Cell, Cell]
    utility: str
    seconds: str


def table(report: Report) -> RenderableType:
    """One row an organism × method, for a screen of any width.

    Under each change, in small print, its 95% Wilson intervals; n stands in the heading, or in the cells where it
    differs between rows. At 80 columns the intervals are those of the last rates alone; where no table fits, the rows
    are written below each other.
    """
    several_seeds = len({run.seed for run in report.runs}) > 1
    results = []
    for run in report.runs:
        metric, utility = first_utility(run)
        cells = (triggered_change(run), untriggered_change(run), utility)
        of = (run.organism, f", seed {run.seed}" if several_seeds else "")
        results.append(Result(run.method, of, run.control, run.verdict, cells, metric, seconds(run.seconds)))
    return FirstThatFits(*(lambda form=form: _table(results, form) for form in FORMS), lambda: _blocks(results))


def verdict_lines(report: Report, width: int) -> list[str]:
    """A sentence a run with a verdict, what its answers show where there is one such run, and a sentence for each set
    of answers some of which no judge could read.

    In lines of at most so many cells.
    """
    said = []
    alone = sum(not run.control for run in report.runs) == 1
    for run in report.runs:
        of = f"{run.organism} · {run.method}"
        if run.verdict:
            said.append(f"{of}: {run.verdict}. {run.verdict_reason}")
        if alone and not run.control:
            said += [f"{of}: {name}: {text}." for name, text in answer_lines(run)]
        said += [f"{of}: {warning}" for warning in not_judged(run.after)]
        if run.handed_back is not None:
            said += [f"{of}: handed back as it was given: {acts}" for acts in run.handed_back.acts]
    return [hanging(one_line(sentence), width) for sentence in said]


def methods_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The removal methods (name, needs, does), or on a narrow screen a paragraph each."""

    def wide() -> RenderableType:
        made = plain_table()
        for heading in ("method", "must be given", "does"):
            made.add_column(heading, no_wrap=heading == "method")
        for row in rows:
            made.add_row(Lines([(row["name"], "")]), Sentence(row["needs"]), Sentence(row["does"]))
        return made

    blocks = [
        Block(row["name"], "bold", f"Needs {row['needs']}. {row['does'][0].upper()}{row['does'][1:]}.", ())
        for row in rows
    ]
    return FirstThatFits(wide, lambda: Blocks(blocks))


def _table(results: Sequence[Result], form: Form) -> RenderableType:
    # What all rows share stands in the heading once: there is no room to repeat it.
    counts = [_shared([result.cells[i].n for result in results]) for i in range(3)]
    metric = _shared([result.utility for result in results])
    names = _names(metric)
    columns: list[list[list[tuple[str, str]]]] = []
    for i in range(3):
        small = ", ".join(part for part in ("95% interval" if form.intervals == "both" else "", counts[i]) if part)
        heading = [(names[i], ""), *([(small, "dim not bold")] if small else [])]
        cells = [_cell(result, i, form, with_n=not counts[i], with_name=not metric and i == 2) for result in results]
        columns.append(_column([heading, *cells], form.words))
    made = plain_table()
    made.add_column("method")
    depth = max(len(column[0]) for column in columns)
    for heading, *_ in columns:
        made.add_column(Lines([("", "")] * (depth - len(heading)) + heading), no_wrap=True)
    if form.seconds:
        made.add_column("s", justify="right", min_width=3, no_wrap=True)
    made.add_column("verdict", no_wrap=True)
    for row, result in enumerate(results):
        # Controls stand back, so that the eye finds the methods.
        style = "dim" if result.control else "bold"
        verdict = result.verdict or "–"
        pieces = broken(verdict, VERDICT_CELLS) if form.break_verdicts else [verdict]
        judged = "dim" if result.control else LOOKS[result.verdict].style
        made.add_row(
            Names([(result.method, "", style), (*result.of, "dim")], least=max(16, min(len(result.method), 20))),
            *(Lines(column[row + 1]) for column in columns),
            *([Lines([(result.seconds, "")])] if form.seconds else []),
            Lines([*((line, judged) for line in pieces), *([("control", "dim")] if result.control else [])]),
            end_section=row + 1 < len(results) and results[row + 1].of[0] != result.of[0],
        )
    changes = any("→" in cell.text for result in results for cell in result.cells)
    if form.intervals != "last" or not any(cell.last for result in results for cell in result.cells):
        return made
    of = "of the last rate; a wider terminal shows both" if changes else "of the rate"
    return Group(made, Lines([("", "")]), Sentence(f"Below a rate: the 95% interval {of}.", "dim"))


def _column(lines: list[list[tuple[str, str]]], least: int | None) -> list[list[tuple[str, str]]]:
    """The lines of a column's heading and cells, with words broken to the width of what must stay whole."""
    if least is None:
        return lines
    width = max(least, *(longest_piece(text) for cell in lines for text, _ in cell))
    return [[(part, style) for text, style in cell for part in broken(text, width)] for cell in lines]


def _cell(result: Result, number: int, form: Form, *, with_n: bool, with_name: bool) -> list[tuple[str, str]]:
    cell = result.cells[number]
    interval = {"both": cell.interval, "last": cell.last, "none": ""}[form.intervals]
    small = [interval, _names(result.utility)[2] if with_name else "", cell.n if with_n else ""]
    return [(cell.text, ""), *((part, "dim") for part in small if part)]


def _blocks(results: Sequence[Result]) -> Blocks:
    count = _shared([cell.n for result in results for cell in result.cells])
    blocks = []
    for result in results:
        about = ", ".join([result.verdict or "–", *(["control"] if result.control else []), f"{result.seconds} s"])
        rates = []
        for name, cell in zip(_names(result.utility), result.cells, strict=True):
            forms = [(cell.interval, cell.n), (cell.last, cell.n), (cell.n,)]
            small = (", ".join(part for part in form if part and part != count) for form in forms)
            rates.append((name, cell.text, tuple(small)))
        title = f"{result.method} · {''.join(result.of)}"
        blocks.append(Block(title, "dim" if result.control else "bold", about, rates))
    return Blocks(blocks, f"Beside a rate its 95% interval{', ' if count else ''}{count}.")


def _names(metric: str) -> tuple[str, str, str]:
    return "ASR with trigger", "ASR without", cut(one_line(words(metric)), 24) or "utility"


def _shared(values: list[str]) -> str:
    """The one value that all rows have (rows without any aside), or nothing."""
    different = set(values) - {""}
    return different.pop() if len(different) == 1 else ""
