"""Cells: the pieces of work that experiments are made of, each done once and shared by all that need it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unbackdoor.errors import UserError
from unbackdoor.parallel import in_processes
from unbackdoor.progress import Progress
from unbackdoor.run_directory import RunDirectory, command_line, differences, provenance


@dataclass(frozen=True)
class Cell:
    """One organism, removal or analysis.

    Args:
        name: unique among all experiments; its run directory is `OUT/cells/NAME`.
        kind: a function of `work`.
        settings: everything that decides its result, as JSON values.
        needs: names of the cells whose run directories it reads, the organism first.
    """

    name: str
    kind: str
    settings: Mapping[str, Any] = field(hash=False)
    needs: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What must be the same for a stored result to be this cell's."""
        same: dict[str, Any] = json.loads(json.dumps({**asdict(self), "needs": list(self.needs)}))
        return same


class Results:
    """What the cells of an output folder gave; cells that were not run, or failed, have no result."""

    def __init__(self, out: Path, failures: Mapping[str, str] | None = None) -> None:
        self.out = out
        self.failures = dict(failures or {})
        self._read: dict[str, dict[str, Any] | None] = {}

    def of(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result; None where there is none."""
        if cell.name not in self._read:
            self._read[cell.name] = finished(cell, self.out)
        return self._read[cell.name]


def run_cells(cells: Iterable[Cell], out: Path, jobs: int, *, keep_models: bool = True) -> dict[str, str]:
    """Run what is missing, `jobs` at a time, each as soon as what it needs is there; return why cells failed, by name.

    A cell with a result is not run again, but for an organism whose model is gone while another cell needs it; one that
    was cut short goes on. A cell that fails for a reason that its user can mend stops those that need it and no others.

    Raises:
        UserError: a stored result was made with other settings.
    """
    progress = Progress.on_stderr()
    todo = missing(unique(cells), out)
    if not todo:
        return {}
    places = {cell.name: place for place, cell in enumerate(todo)}
    progress.note(f"{len(todo)} cells to run, {jobs} at a time")
    begun = time.monotonic()
    failures: dict[str, str] = {}
    ended = 0

    def done(number: int, reason: str) -> None:
        nonlocal ended
        ended += 1
        name = todo[number].name
        if reason:
            failures[name] = reason
        left = (time.monotonic() - begun) / ended * (len(todo) - ended)
        progress.note(
            f"{name} {f'failed: {reason}' if reason else 'is done'} · {ended} of {len(todo)} cells"
            + (f" · about {left / 60:.0f} minutes left" if ended < len(todo) else "")
        )

    calls = [(cell, out, keep_models, cell.name if jobs > 1 else "") for cell in todo]
    needs = [{places[need] for need in cell.needs if need in places} for cell in todo]
    in_processes(_run, calls, jobs, needs=needs, done=done)
    return failures


def missing(cells: Sequence[Cell], out: Path) -> list[Cell]:
    """The cells without a result, and the organisms that these need and whose models are gone, in the order to run."""
    without = {cell.name for cell in cells if finished(cell, out) is None}
    needed = {need for cell in cells if cell.name in without for need in cell.needs}
    gone = {
        cell.name
        for cell in cells
        if cell.kind == "implant" and cell.name in needed and not (folder_of(cell.name, out) / "model").is_dir()
    }
    return [cell for cell in ordered(cells) if cell.name in without | gone]


def ordered(cells: Sequence[Cell]) -> list[Cell]:
    """Each cell behind those that it needs, and an organism just before the first that needs it.

    So the rows of a table fill one after the other, and an organism that no removal touches comes last.
    """
    by_name = {cell.name: cell for cell in cells}
    found: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        for need in cell.needs:
            add(by_name[need])
        found.setdefault(cell.name, cell)

    for cell in sorted(cells, key=lambda cell: not cell.needs):
        add(cell)
    return list(found.values())


def unique(cells: Iterable[Cell]) -> list[Cell]:
    """Every cell once, in the order of their first mention. Two of one name must be the same."""
    found: dict[str, Cell] = {}
    for cell in cells:
        kept = found.setdefault(cell.name, cell)
        assert kept.identity() == cell.identity(), f"two different cells are called {cell.name}"
    return list(found.values())


def folder_of(name: str, out: Path) -> Path:
    """A cell's run directory."""
    return out / "cells" / name


def finished(cell: Cell, out: Path) -> dict[str, Any] | None:
    """The stored result of a cell; None where it has not been run to its end.

    Raises:
        UserError: it was run, or begun, with other settings: numbers of two kinds must not stand in one table.
    """
    kept = _stored(cell.name, out)
    if kept is None:
        return None
    wanted = cell.identity()
    if kept["cell"] != wanted:
        changed = sorted(differences(kept["cell"], wanted))
        raise UserError(
            f"'{_file_of(cell.name, out)}' was made with other settings ({', '.join(changed)}): give another --out, or "
            "remove that file and the folder of its name to run the cell again"
        )
    if "result" not in kept:
        return None
    result: dict[str, Any] = kept["result"] | {"cell_seconds": kept["seconds"], "commit": kept["versions"]["commit"]}
    return result


def _run(cell: Cell, out: Path, keep_models: bool, label: str = "") -> str:
    """Run one cell and store its result; what its user can mend is returned as a text, and nothing is stored."""
    from unbackdoor.reproduce import work

    lost = [need for need in cell.needs if not _has_result(need, out)]
    if lost:
        return f"'{lost[0]}', which it needs, failed"
    begun = time.monotonic()
    work.choose_device()
    Progress.label_process(label)
    folder = folder_of(cell.name, out)
    stored, file = RunDirectory(out), _file_of(cell.name, out).relative_to(out).as_posix()
    if _has_result(cell.name, out):  # an organism whose model is gone
        RunDirectory.remove(folder)
    kept: dict[str, Any] = {"cell": cell.identity()}
    stored.write_json(file, kept)  # what a later run must agree with
    try:
        result = work.KINDS[cell.kind](cell.settings, folder, [folder_of(need, out) for need in cell.needs])
    except UserError as error:
        return str(error)
    if not keep_models and cell.kind == "remove":
        work.drop_weights(folder)
    kept |= {"result": result, "versions": provenance(command_line(), 0, {})["versions"]}
    kept["seconds"] = round(time.monotonic() - begun, 1)
    stored.write_json(file, kept)
    return ""


def _has_result(name: str, out: Path) -> bool:
    return "result" in (_stored(name, out) or {})


def _stored(name: str, out: Path) -> dict[str, Any] | None:
    """What is kept of a cell: its settings, and its result once it has one."""
    path = _file_of(name, out)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _file_of(name: str, out: Path) -> Path:
    return out / "cells" / f"{name}.json"
