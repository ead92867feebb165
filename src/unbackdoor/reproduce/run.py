"""`unbackdoor reproduce NAME...`: the papers' tables and figures, ours beside theirs, and those of the catalogue."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbackdoor.errors import UserError
from unbackdoor.laboratory import ReproduceSettings
from unbackdoor.reproduce import EXPERIMENTS, chosen
from unbackdoor.reproduce.cell_kinds import Result
from unbackdoor.reproduce.cells import Cell, R, Results, finished, run_cells, unique
from unbackdoor.reproduce.estimate import cost, needed_files
from unbackdoor.reproduce.experiment import Experiment
from unbackdoor.reproduce.tables import Table, csv_text, latex, markdown
from unbackdoor.run_directory import RunDirectory, command_line, provenance
from unbackdoor.run_files import lock
from unbackdoor.run_files.lines import as_json

FILE = "reproduce.json"


@dataclass(frozen=True)
class Reproduced:
    """The tables of a call, why cells failed, and the files that were written."""

    tables: list[Table]
    failures: dict[str, str]
    report: dict[str, Any]
    files: list[Path]


def listing() -> list[dict[str, str]]:
    """Every experiment with a line on what it shows."""
    apart = " (not part of all: it has no limit of time)"
    return [{"name": e.name, "shows": e.title + ("" if e.in_all else apart)} for e in EXPERIMENTS.values()]


def run_reproduce(
    names: Sequence[str],
    settings: ReproduceSettings,
    out: Path,
    *,
    adapt: Callable[[Cell], Cell | None] = lambda cell: cell,
) -> Reproduced:
    """Run what is missing of these experiments and write their tables and figures into `out`.

    It always goes on with what is there: a cell that has a result is not run again. Tables stand in `out/tables`,
    figures in `out/figures`, every value with its counts and cells in `out/reproduce.json`.

    Args:
        names: experiments, or `all`.
        settings: scale, seeds, sizes.
        out: the output folder.
        adapt: for tests: makes a cell smaller, or leaves it out (None).

    Raises:
        UserError: an unknown name, a cell of other settings in `out`, missing files, or no matplotlib for a figure.
    """
    experiments = chosen(names)
    cells = adapted(cells_of(experiments, settings), adapt)
    to_run = selected(list(cells.values()), settings.only)
    missing = needed_files([cell for cell in to_run if finished(cell, out) is None])
    if missing:
        raise UserError(f"--files: {', '.join(missing)} missing: `--dry-run` says what each cell needs")
    if any(experiment.figure for experiment in experiments):
        from unbackdoor.reproduce.figures import check_installed

        check_installed()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out '{out}' is a file: give a directory")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out '{out}' cannot be made: {error.strerror or error}") from None
    lock.hold(out)
    failures = run_cells(to_run, out, settings.jobs, keep_models=settings.keep_models)
    return _written(experiments, settings, out, failures, cells)


def cells_of(experiments: Iterable[Experiment], settings: ReproduceSettings) -> list[Cell]:
    """Every cell that they need, once."""
    return unique(cell for experiment in experiments for cell in experiment.cells(settings))


def adapted(cells: Sequence[Cell], adapt: Callable[[Cell], Cell | None]) -> dict[str, Cell]:
    """Cells by name, as `adapt` makes them."""
    made = ((cell.name, adapt(cell)) for cell in cells)
    return {name: cell for name, cell in made if cell is not None}


def selected(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells of the organisms and methods that are named, and those that they need; all where none is named.

    An organism goes by its recipe's name or its cell's, with the seed or without; a method by what its cell's name has
    after the organism's. With organisms and methods, these methods on these organisms.

    Raises:
        UserError: a name of neither.
    """
    if not only:
        return list(cells)
    by_name = {cell.name: cell for cell in cells}
    organisms = {cell.name: _organism_names(cell, by_name) for cell in cells}
    methods = {cell.name: set(_after_organism(cell).split(".")) - {""} for cell in cells}
    known_organisms, known_methods = (set().union(*known.values()) for known in (organisms, methods))
    for name in only:
        if name not in known_organisms | known_methods:
            there_are = sorted({by_name[c].name.rpartition("-")[0] for c in by_name if not by_name[c].needs})
            raise UserError(
                f"--only '{name}' is no organism and no method of these experiments: choose of "
                f"{', '.join(there_are)}; {', '.join(sorted(known_methods)) or 'no methods'}"
            )
    asked = [set(only) & known for known in (known_organisms, known_methods)]
    wanted = [
        cell.name
        for cell in cells
        if (not asked[0] or asked[0] & organisms[cell.name]) and (not asked[1] or asked[1] & methods[cell.name])
    ]
    for name in wanted:  # grows: what they need comes behind them
        wanted += [need for need in by_name[name].needs if need not in wanted]
    return [cell for cell in cells if cell.name in set(wanted)]


def _organism_names(cell: Cell, by_name: Mapping[str, Cell]) -> set[str]:
    origin = by_name.get(cell.needs[0], cell) if cell.needs else cell
    return {origin.name, origin.name.rpartition("-")[0], getattr(origin.settings, "recipe", origin.name)}


def _after_organism(cell: Cell) -> str:
    return cell.name.removeprefix(cell.needs[0]) if cell.needs else ""


def dry_run(names: Sequence[str], settings: ReproduceSettings, out: Path) -> dict[str, Any]:
    """What a call would do: every cell with its resolved settings and its cost, and the sums of what is missing.

    Nothing is loaded, run or downloaded.
    """
    experiments = chosen(names)
    cells = selected(cells_of(experiments, settings), settings.only)
    by_name = {cell.name: cell for cell in cells}
    rows: list[dict[str, Any]] = []
    for cell in cells:
        row: dict[str, Any] = {"name": cell.name, "kind": cell.settings.kind, "needs": list(cell.needs)}
        row["model"] = (by_name[cell.needs[0]] if cell.needs else cell).settings.model
        row |= {"finished": finished(cell, out) is not None, "settings": as_json(cell.settings), "problem": ""}
        try:
            found = cost(cell, by_name)
            row |= {"minutes": found.minutes, "memory": found.memory, "disk": found.disk}
            row["settings"]["resolved"] = dict(found.settings)
        except UserError as error:
            row |= {"minutes": 0.0, "memory": 0.0, "disk": 0.0, "problem": str(error)}
        rows.append(row)
    todo = [row for row in rows if not row["finished"]]
    kept = [r for r in todo if settings.keep_models or r["kind"] == "implant" or settings.scale == "micro"]
    return {
        "scale": settings.scale,
        "experiments": [experiment.name for experiment in experiments],
        "cells": rows,
        "to_run": len(todo),
        "minutes": sum(row["minutes"] for row in todo),
        "minutes_at_jobs": sum(row["minutes"] for row in todo) / settings.jobs,
        "memory": max((row["memory"] for row in todo), default=0.0),
        "disk": sum(row["disk"] for row in kept),
        "missing_files": needed_files([cell for cell in cells if finished(cell, out) is None]),
    }


def _written(
    experiments: Sequence[Experiment],
    settings: ReproduceSettings,
    out: Path,
    failures: Mapping[str, str],
    cells: Mapping[str, Cell],
) -> Reproduced:
    results = _Adapted(out, failures, cells)
    folder = RunDirectory(out)
    tables, files, drawn = [], [], {}
    for experiment in experiments:
        outcome = experiment.outcome(settings, results)
        if outcome.draw is not None:
            from unbackdoor.reproduce.figures import save

            files += save(outcome.draw, outcome.size, out / "figures" / outcome.table.name)
        commits = sorted({str(r.commit) for cell in experiment.cells(settings) if (r := results.of(cell, Result))})
        for table in (outcome.table, *outcome.more):
            tables.append(table)
            for suffix, form in ((".md", markdown), (".csv", csv_text), (".tex", latex)):
                files.append(folder.write_text(f"tables/{table.name}{suffix}", form(table)))
            made = {"seeds": settings.seeds, "scale": settings.scale, "commits": commits}
            drawn[table.name] = {**table.as_json(), **made}
    path = out / FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    report = {
        "command_line": command_line(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": provenance([], 0, {})["versions"],
        "settings": settings.model_dump(mode="json", exclude={"dry_run"}),
        "experiments": {**before.get("experiments", {}), **drawn},
        "failures": dict(failures),
    }
    files.append(folder.write_json(FILE, report))
    return Reproduced(tables, dict(failures), report, files)


class _Adapted(Results):
    """Results of cells that may have been made smaller, asked for by the experiment's own cells."""

    def __init__(self, out: Path, failures: Mapping[str, str], cells: Mapping[str, Cell]) -> None:
        super().__init__(out, failures)
        self._cells = cells

    def of(self, cell: Cell, kind: type[R]) -> R | None:
        """The result of the cell of that name; None where it was left out."""
        made = self._cells.get(cell.name)
        return super().of(made, kind) if made is not None else None
