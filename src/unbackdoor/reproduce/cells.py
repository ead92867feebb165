"""Cells: the pieces of work that experiments are made of, each done once and shared by all that need it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import JsonValue, ValidationError

from unbackdoor.errors import UserError
from unbackdoor.parallel import in_processes
from unbackdoor.progress import Progress
from unbackdoor.reproduce.cell_kinds import CellSettings, ImplantCell, ModelResult, Result
from unbackdoor.run_directory import RunDirectory, command_line, differences, provenance
from unbackdoor.run_files.earlier_versions import settings_of_now
from unbackdoor.run_files.lines import as_json

S = TypeVar("S", bound=CellSettings)
R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class CellOf(Generic[S]):
    """One organism, removal or analysis.

    Args:
        name: unique among all experiments; its run directory is `OUT/cells/NAME`.
        settings: everything that decides its result.
        needs: names of the cells whose run directories it reads, the organism first.
    """

    name: str
    settings: S = field(hash=False)
    needs: tuple[str, ...] = ()

    def identity(self) -> dict[str, JsonValue]:
        """What must be the same for a stored result to be this cell's."""
        settings = as_json(self.settings)
        return {"name": self.name, "kind": self.settings.kind, "settings": settings, "needs": list(self.needs)}


Cell = CellOf[Any]
Organism = CellOf[ImplantCell]


class Results:
    """What the cells of an output folder gave; cells that were not run, or failed, have no result."""

    def __init__(self, out: Path, failures: Mapping[str, str] | None = None) -> None:
        self.out = out
        self.failures = dict(failures or {})
        self._read: dict[str, Result | None] = {}

    def of(self, cell: Cell, kind: type[R]) -> R | None:
        """The cell's result, which is of that kind; None where there is none."""
        if cell.name not in self._read:
            self._read[cell.name] = finished(cell, self.out)
        found = self._read[cell.name]
        assert found is None or isinstance(found, kind)
        return found

    def model(self, cell: Cell) -> ModelResult | None:
        """The result of a cell that gives a model before and after."""
        return self.of(cell, ModelResult)


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
    organisms = {cell.name for cell in cells if cell.settings.kind == "implant"}
    gone = {name for name in organisms & needed if not (folder_of(name, out) / "model").is_dir()}
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


def finished(cell: Cell, out: Path) -> Result | None:
    """The stored result of a cell; None where it has not been run to its end.

    Raises:
        UserError: it was run, or begun, with other settings: numbers of two kinds must not stand in one table; or its
            file is damaged.
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
    try:
        found: Result = cell.settings.gives.model_validate({**kept["result"], "commit": kept["versions"]["commit"]})
    except (ValidationError, LookupError, TypeError):
        raise UserError(f"'{_file_of(cell.name, out)}' is damaged: remove it and the folder of its name") from None
    return found


def _run(cell: Cell, out: Path, keep_models: bool, label: str = "") -> str:
    """Run one cell and store its result; what its user can mend is returned as a text, and nothing is stored."""
    from unbackdoor.reproduce import cell_work

    lost = [need for need in cell.needs if not _has_result(need, out)]
    if lost:
        return f"'{lost[0]}', which it needs, failed"
    begun = time.monotonic()
    cell_work.choose_device()
    Progress.label_process(label)
    folder = folder_of(cell.name, out)
    stored, file = RunDirectory(out), _file_of(cell.name, out).relative_to(out).as_posix()
    if _has_result(cell.name, out):  # an organism whose model is gone
        RunDirectory.remove(folder)
    kept: dict[str, object] = {"cell": cell.identity()}
    stored.write_json(file, kept)  # what a later run must agree with
    try:
        needs = [folder_of(need, out) for need in cell.needs]
        result = cell_work.KINDS[cell.settings.kind](cell.settings, folder, needs)
    except UserError as error:
        return str(error)
    if not keep_models and cell.settings.kind == "remove":
        cell_work.drop_weights(folder)
    kept |= {"result": result, "versions": provenance(command_line(), 0, {})["versions"]}
    kept["seconds"] = round(time.monotonic() - begun, 1)
    stored.write_json(file, kept)
    return ""


def _has_result(name: str, out: Path) -> bool:
    return "result" in (_stored(name, out) or {})


def _stored(name: str, out: Path) -> dict[str, Any] | None:
    """What is kept of a cell: its settings, and its result once it has one."""
    path = _file_of(name, out)
    kept: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if kept is not None and "values" in (settings := kept["cell"]["settings"]):
        settings["values"] = settings_of_now(settings["values"])
    return kept


def _file_of(name: str, out: Path) -> Path:
    return out / "cells" / f"{name}.json"
