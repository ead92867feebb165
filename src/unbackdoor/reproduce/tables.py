"""A table of ours, beside the paper's where it has one, on the terminal and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from unbackdoor.evaluation.statistics import wilson
from unbackdoor.report.numbers import bounds, percent
from unbackdoor.report_schema import Rate, Value
from unbackdoor.reproduce.cell_kinds import ModelResult
from unbackdoor.reproduce.cells import Cell, Results
from unbackdoor.run_files.spreadsheet import guarded
from unbackdoor.visible_text import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

NOT_RUN, FAILED, STOPPED = "not run", "failed", "stopped by the gate"
NOT_AVAILABLE = "not available"
DOES_NOT_APPLY = "–"
Pick = Callable[[ModelResult], Rate | Value | None]
"""The number that a table asks of a result."""
MOST_COLUMNS = 8
"""More do not fit on a terminal side by side."""


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Args:
        ours: our value as a text, or why there is none.
        interval: the bounds of its 95% interval in percent; empty where there is none.
        paper: the paper's printed value.
        facts: the numbers behind it (hits, n, value, low, high, seeds) and the cells that they come from.
    """

    ours: str
    interval: str = ""
    paper: str = NOT_AVAILABLE
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Ours with its interval."""
        return f"{self.ours} ({self.interval})" if self.interval else self.ours


@dataclass(frozen=True)
class Column:
    """A column: what it is called here and in the paper."""

    ours: str
    paper: str = ""


@dataclass(frozen=True)
class Row:
    """A row: its labels, and one entry a column."""

    labels: tuple[str, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Table:
    """Entries in the paper's layout.

    Args:
        name: of the experiment.
        title: what it shows, and where it stands in the paper.
        labels: headings of the rows' labels.
        columns: headings of the entries.
        rows: labels and entries.
        notes: sentences under the table, without the counts of prompts and seeds, which are added.
        paper: whether the paper's values stand beside ours; off for what no paper has.
        on_terminal: whether it is printed as well as written; off for what is too long for a screen.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    paper: bool = True
    on_terminal: bool = True

    def caption(self) -> list[str]:
        """The notes, after the counts that the entries rest on."""
        facts = [entry.facts for row in self.rows for entry in row.entries]
        counts = [f"n {_span({f['n'] for f in facts if 'n' in f})}"] if any("n" in f for f in facts) else []
        seeds = {f["seeds"] for f in facts if "seeds" in f}
        if seeds:
            counts.append(f"{_span(seeds)} seed{'' if seeds == {1} else 's'}")
        has_intervals = any(entry.interval for row in self.rows for entry in row.entries)
        intervals = "In brackets: 95% Wilson intervals. " if has_intervals else ""
        first = [f"{intervals}{'Ours' if self.paper else 'Measured'}: {', '.join(counts)}."] if counts else []
        stopped = any(STOPPED in entry.ours for row in self.rows for entry in row.entries)
        why = ["Stopped by the gate: the first simulation failed, and the method left the model as it came."]
        return [*first, *(why if stopped else []), *dict.fromkeys(self.notes)]

    def as_json(self) -> dict[str, Any]:
        """Everything, for `reproduce.json`."""
        return {
            "title": self.title,
            "labels": list(self.labels),
            "columns": [asdict(column) for column in self.columns],
            "rows": [
                {"labels": list(row.labels), "entries": [_entry_as_json(entry) for entry in row.entries]}
                for row in self.rows
            ],
            "caption": self.caption(),
        }


def entry_of(
    results: Results,
    cells: Sequence[Cell],
    pick: Pick,
    paper: str | None = None,
    *,
    unit: str = "%",
) -> Entry:
    """One entry from the results of a cell's seeds, pooled.

    Args:
        results: what there is.
        cells: the same cell at every seed.
        pick: the rate or value in a result; None where it was not measured there.
        paper: what the paper prints.
        unit: stands behind the paper's number.
    """
    printed_value = NOT_AVAILABLE if paper is None else f"{paper}{unit}"
    found = [(cell, results.model(cell)) for cell in cells]
    done = [(cell, result) for cell, result in found if result is not None]
    if not done:
        failed = any(cell.name in results.failures for cell in cells)
        return Entry(FAILED if failed else NOT_RUN, paper=printed_value, facts={"cells": [c.name for c in cells]})
    stopped = [cell for cell, result in done if result.stopped]
    picked = [(cell, pick(result)) for cell, result in done if not result.stopped]
    rates = [(cell, rate) for cell, rate in picked if rate is not None]
    facts: dict[str, Any] = {"cells": [cell.name for cell, _ in done]}
    if not rates:
        return Entry(STOPPED if stopped else "not measured", paper=printed_value, facts=facts)
    hits = sum(rate.hits for _, rate in rates)
    n = sum(rate.n for _, rate in rates)
    low, high = wilson(hits, n)
    facts |= {"hits": hits, "n": n, "value": hits / n if n else None, "low": low, "high": high, "seeds": len(rates)}
    ours = percent(hits / n) if n else "not measured"
    if stopped:
        ours += f" [{len(stopped)} of {len(done)} stopped by the gate]"
    return Entry(ours, bounds([low, high]), printed_value, facts)


# Forms ---------------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """GitHub's Markdown; texts of models are escaped. Columns of which nothing was run are only named."""
    table = _of_what_was_run(table)
    heads = [*table.labels]
    for column in table.columns:
        heads += _beside(table, column.ours, f"paper: {column.paper or column.ours}")
    lines = [f"### {_markdown_text(table.title)}", "", _markdown_row(heads), "|" + "---|" * len(heads)]
    for row in table.rows:
        cells = [*row.labels]
        for entry in row.entries:
            cells += _beside(table, entry.text, entry.paper)
        lines.append(_markdown_row(cells))
    lines += ["", *[_markdown_text(line) + "\n" for line in table.caption()]]
    return "\n".join(lines).rstrip() + "\n"


def csv_text(table: Table) -> str:
    """The same layout with the interval, hits, n and seeds in columns of their own."""
    parts = ("ours", "low", "high", "hits", "n", "seeds")
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    heads = _beside(table, *parts, "paper")
    names = [*table.labels, *(f"{c.ours}: {part}" for c in table.columns for part in heads)]
    writer.writerow([_disarmed(name) for name in names])
    for row in table.rows:
        cells: list[Any] = [_disarmed(label) for label in row.labels]
        for entry in row.entries:
            facts = entry.facts
            ours = facts["value"] if "value" in facts else _disarmed(entry.ours)
            cells += _beside(table, ours, *(facts.get(part, "") for part in parts[1:]), _disarmed(entry.paper))
        writer.writerow(cells)
    return written.getvalue()


def latex(table: Table) -> str:
    """A `table` environment without packages; every text is escaped."""
    wide = any(len(entry.text) > 60 for row in table.rows for entry in row.entries)
    count = (2 if table.paper else 1) * len(table.columns)
    share = 0.8 / max(1, count)
    kind = f"p{{{share:.2f}\\linewidth}}" if wide else "l"
    spec = "l" * len(table.labels) + kind * count
    heads = [_latex(label) for label in table.labels]
    for column in table.columns:
        heads += _beside(table, _latex(column.ours), _latex(f"paper: {column.paper or column.ours}"))
    size = "\\small" if len(heads) < 6 else "\\scriptsize\\setlength{\\tabcolsep}{3pt}"
    lines = ["\\begin{table}", "\\centering", size, f"\\begin{{tabular}}{{{spec}}}", "\\hline"]
    lines += [" & ".join(heads) + r" \\", "\\hline"]
    for row in table.rows:
        cells = [_latex(label) for label in row.labels]
        for entry in row.entries:
            cells += _beside(table, _latex(entry.text), _latex(entry.paper))
        lines.append(" & ".join(cells) + r" \\")
    caption = " ".join([f"{table.title}.", *table.caption()])
    lines += ["\\hline", "\\end{tabular}", f"\\caption{{{_latex(caption)}}}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def terminal(table: Table) -> RenderableType:
    """For the terminal: under each of our values its interval, and the paper's value; a wide table becomes lines."""
    from rich.console import Group
    from rich.text import Text

    from unbackdoor.report.fitting import FirstThatFits

    lines = _in_lines(table)
    forms = [table] if len(table.columns) <= MOST_COLUMNS else []
    return Group(
        Text(one_line(table.title), style="bold"),
        Text(""),
        FirstThatFits(
            *(lambda form=form: _side_by_side(form, None) for form in forms),
            *(lambda form=form: _side_by_side(form, 16) for form in forms),
            *(lambda form=form: _side_by_side(form, 12) for form in forms),
            *(lambda cells=cells: _side_by_side(lines, cells) for cells in (None, 30, 20)),
            lambda: _below_each_other(lines),
        ),
    )


def _side_by_side(table: Table, cells: int | None) -> RenderableType:
    """A table whose words are broken to lines of so many cells; None breaks nothing, and no number is broken ever."""
    from unbackdoor.report.fitting import Lines, plain_table
    from unbackdoor.screen import broken, longest_piece

    def lines(text: str, width: int | None = cells) -> list[str]:
        return (
            broken(one_line(text), width if width is None else max(width, longest_piece(one_line(text))))
            if width
            else [one_line(text)]
        )

    made = plain_table()
    for label in table.labels:
        made.add_column(Lines((line, "") for line in lines(label)))
    for column in table.columns:
        paper = lines(f"paper: {column.paper}") if column.paper else []
        made.add_column(
            Lines([*((line, "") for line in lines(column.ours)), *((line, "dim not bold") for line in paper)])
        )
    for row in table.rows:
        shown = [Lines((line, "") for line in lines(label)) for label in row.labels]
        for entry in row.entries:
            small = [entry.interval, *(lines(f"paper {entry.paper}") if table.paper else [])]
            ours = [(line, "bold") for line in lines(entry.ours)]
            shown.append(Lines([*ours, *((line, "dim not bold") for line in small if line)]))
        made.add_row(*shown)
    return made


def _below_each_other(table: Table) -> RenderableType:
    from unbackdoor.report.fitting import Block, Blocks

    blocks = []
    for row in table.rows:
        (entry,) = row.entries
        paper = [("", f"paper {entry.paper}", ())] if table.paper else []
        title = " · ".join(label for label in row.labels if label)
        blocks.append(Block(title, "", "", [("", entry.ours, (entry.interval,)), *paper]))
    return Blocks(blocks)


def cost_table(plan: Mapping[str, Any]) -> RenderableType:
    """The cells of a dry run and what each would cost."""
    from unbackdoor.report.fitting import Block, Blocks, FirstThatFits, Lines, Sentence, plain_table

    paper = plan["scale"] == "paper"
    heads = ["GB mem", "GB disk", "GPU h"] if paper else ["core min"]
    rows = []
    for row in plan["cells"]:
        costs = [f"{row['memory']:.0f}", f"{row['disk']:.1f}", f"{row['minutes'] / 60:.2f}"]
        state = row["problem"] or ("finished" if row["finished"] else "")
        rows.append(
            (row["name"], row["model"].rpartition("/")[2], costs if paper else [f"{row['minutes']:.1f}"], state)
        )

    def wide(with_model: bool) -> RenderableType:
        made = plain_table()
        for head in ("cell", *(["model"] if with_model else [])):
            made.add_column(head, no_wrap=True)
        for head in heads:
            made.add_column(head, justify="right", no_wrap=True)
        made.add_column("")
        for name, model, costs, state in rows:
            whole = [name, *([model] if with_model else []), *costs]
            made.add_row(*(Lines([(text, "")]) for text in whole), Sentence(state))
        return made

    def blocks() -> RenderableType:
        costed = (
            (name, f"{model}: {', '.join(map(' '.join, zip(costs, heads, strict=True)))}", state)
            for name, model, costs, state in rows
        )
        return Blocks([Block(name, "", text + (f"; {state}" if state else ""), ()) for name, text, state in costed])

    return FirstThatFits(lambda: wide(True), lambda: wide(False), blocks)


def cost_lines(plan: Mapping[str, Any]) -> list[str]:
    """The sums of a dry run."""
    count, minutes = len(plan["cells"]), plan["minutes"]
    lines = [f"{count} cells, {count - plan['to_run']} of them finished."]
    if plan["scale"] == "micro":
        lines.append(
            f"To run: about {minutes:.0f} core-minutes, {plan['minutes_at_jobs']:.0f} minutes at these --jobs."
        )
    else:
        lines.append(
            f"To run: about {minutes / 60:.0f} GPU hours, up to {plan['memory']:.0f} GB of memory a cell, "
            f"{plan['disk']:.0f} GB of disk. Assumed: all weights trained, Adam and masters in float32, 256 tokens a "
            "row, 250 TFLOP/s sustained. --json prints every cell's settings."
        )
    if plan["missing_files"]:
        lines.append(f"Files to bring (--files): {', '.join(plan['missing_files'])}.")
    return lines


def _span(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}–{high}"


def _beside(table: Table, *parts: Any) -> list[Any]:
    """What stands in a table's row for one column, of which the last is the paper's."""
    return list(parts if table.paper else parts[:-1])


def _of_what_was_run(table: Table) -> Table:
    """Without the columns of which nothing was run, where no paper's values stand in them; a note names them."""
    run = [
        any(row.entries[i].ours not in (NOT_RUN, DOES_NOT_APPLY) for row in table.rows)
        for i in range(len(table.columns))
    ]
    if table.paper or not table.rows or all(run):
        return table
    left_out = [column.ours for column, kept in zip(table.columns, run, strict=True) if not kept]
    rows = tuple(replace(row, entries=tuple(itertools.compress(row.entries, run))) for row in table.rows)
    notes = (*table.notes, f"Not run: {', '.join(left_out)}.")
    return replace(table, columns=tuple(itertools.compress(table.columns, run)), rows=rows, notes=notes)


def _in_lines(table: Table) -> Table:
    """A line for every entry that says something, with its column's name before it."""
    rows = tuple(
        Row((*row.labels, column.ours), (entry,))
        for row in table.rows
        for column, entry in zip(table.columns, row.entries, strict=True)
        if entry.ours not in (NOT_RUN, DOES_NOT_APPLY)
    )
    return replace(table, labels=(*table.labels, ""), columns=(Column(""),), rows=rows)


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    return {"ours": entry.ours, "paper": entry.paper, **entry.facts}


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_markdown_text(cell) for cell in cells) + " |"


def _markdown_text(text: str) -> str:
    text = one_line(text).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    for mark in "*_`[":
        text = text.replace(mark, f"\\{mark}")
    return text


_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"–": "--", "—": "---", "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$"},
    **{"≥": r"$\geq$", "≤": r"$\leq$", "−": "$-$", "α": r"$\alpha$", "δ": r"$\delta$", "…": r"\ldots{}"},
    **{"✓": r"$\surd$", "†": r"$\dagger$"},
    **{"<": r"\textless{}", ">": r"\textgreater{}"},
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def _disarmed(cell: str) -> str:
    """A text that no spreadsheet runs."""
    return guarded(one_line(cell))
