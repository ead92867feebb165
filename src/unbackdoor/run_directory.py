"""The one place that writes results: atomic files, append-only metrics, checkpoints, provenance and resume.

A run directory holds `settings.yaml`, `provenance.json`, `metrics.jsonl`, `generations.jsonl`, `report.json`,
`report.html`, `figures/` and, where there is one, `model/`. While the run goes on it also holds `journal.jsonl` and
`checkpoints/`. Hidden files say what was written (`.written`), who writes (`.lock`) and what the run began with
(`.begun.jsonl`, a second copy); docs/run-directory.md describes all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from unbackdoor.errors import UserError
from unbackdoor.journal import Journal
from unbackdoor.run_files import beginning, lines, lock, overwriting, tensors
from unbackdoor.run_files.checksums import checksums, first_damaged
from unbackdoor.run_files.inputs_apart import check_apart
from unbackdoor.run_files.provenance import changed_sources, command_line, hashes, provenance
from unbackdoor.run_files.whole_files import PARTIAL, append, own_copy, write_whole, writing
from unbackdoor.run_files.written_files import (
    ASIDE,
    LIST,
    Written,
    check_no_links,
    delete_ours,
    is_half_made,
    remove_empty,
)

__all__ = ["Journal", "RunDirectory", "command_line", "differences", "hashes", "provenance"]

T = TypeVar("T")
ANSWERS, JOURNAL, METRICS = "generations.jsonl", "journal.jsonl", "metrics.jsonl"


class RunDirectory(Journal):
    """One run's results. Open it with `create`, after everything that can be wrong with the input has been checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = Written(path)
        self._remembered: dict[str, Any] = {}
        self._entries: list[dict[str, Any]] = []
        """The journal, in the program's order: a step rests on those before it."""
        for row in self._lines(JOURNAL).until_damaged:
            if isinstance(row.get("key"), str) and "value" in row:
                self._take(row)
        self._answers = len(self._lines(ANSWERS).rows)
        self._settled: set[str] = set()

    @classmethod
    def check(cls, path: Path, *, overwrite: bool, resume: bool) -> None:
        """Raise a `UserError` where the directory cannot be used, before any work is done.

        An existing directory needs `overwrite` or `resume`, and must be a run directory that no other process writes
        to. To be overwritten it must hold nothing that no run wrote.
        """
        if overwrite and resume:
            raise UserError("--overwrite and --resume exclude each other: give one of them")
        try:
            if not path.exists():
                _check_can_be_made(path)
                return
            if not path.is_dir():
                raise UserError(f"--out '{path}' is a file: give a directory")
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                raise UserError(f"--out '{path}' may not be read and written: give another")
            lock.check_free(path)
            if resume or (path / ASIDE).is_symlink():
                check_no_links(path)
            if is_half_made(path):
                return
            if not (overwrite or resume):
                raise UserError(
                    f"--out '{path}' exists and is not empty: use --overwrite, --resume or another directory"
                )
            if (path / ASIDE).is_dir() and Written(path / ASIDE).is_there and overwriting.is_unfinished(path):
                return  # a kill: `create` puts it right
            kept = beginning.settings(path)
            if kept is None and not Written(path).is_there:
                raise UserError(f"--out '{path}' is not a run directory of ours: it will not be touched, give another")
            if overwrite:
                overwriting.check_all_ours(path)
            elif kept is None:
                raise UserError(f"--resume: settings.yaml in '{path}' is damaged: start again with --overwrite")
        except (OSError, ValueError) as error:
            raise UserError(f"--out '{str(path)[:200]}' cannot be used: {_reason(error)}") from None

    @classmethod
    def create(
        cls, path: Path, command: str, settings: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False
    ) -> RunDirectory:
        """Make the directory, or open it again to resume, take it for this process, and write down the settings.

        With `overwrite`, the run that is there is set aside within the directory until this one is complete.

        Raises a `UserError` as `check` does, where a run is resumed with other settings, and where a setting names
        what lies in the directory: the model that is read again, or a file of rows.
        """
        cls.check(path, overwrite=overwrite, resume=resume)
        check_apart(path, _texts(settings), only_within=True)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise UserError(f"--out '{str(path)[:200]}' cannot be made: {_reason(error)}") from None
        lock.hold(path)
        overwriting.roll_back(path)
        cls.check(path, overwrite=overwrite, resume=resume)  # another process may have been there in between
        now = json.loads(json.dumps({"command": command, "settings": dict(settings)}, default=str))
        before = beginning.settings(path) if resume else None
        if before is not None:
            changed = sorted("--" + n.replace("_", "-") for n in differences(before["settings"], now["settings"]))
            if changed or before["command"] != command:
                raise UserError(
                    f"--resume: the run in '{path}' was started with other values of "
                    f"{', '.join(changed) or 'the command'}: give the same, or --overwrite"
                )
        if overwrite and not is_half_made(path):
            overwriting.set_aside(path)
        for name in (JOURNAL, METRICS, ANSWERS, LIST):
            own_copy(path / name)
        run = cls(path)
        run.written.begin()
        if before is not None and not beginning.is_whole(path) and run.written.sealed:
            run.note(f"'{path}': settings.yaml or its copy is damaged or gone: it is written again from the other")
        beginning.write_settings(path, now)
        run._repair()
        return run

    @staticmethod
    def remove(path: Path) -> None:
        """Delete a run directory. Raises a `UserError` where it holds what no run wrote, or another process has it."""
        if path.is_dir():
            lock.hold(path)
            overwriting.check_all_ours(path)
            with writing(path):
                delete_ours(path)

    @staticmethod
    def setting(path: Path, name: str) -> Any:
        """A setting of the run in that directory; None where there is no such run or setting."""
        written = beginning.settings(path)
        return None if written is None else written["settings"].get(name)

    @staticmethod
    def note(text: str) -> None:
        """Say something of the files on standard error."""
        from unbackdoor.progress import Progress

        Progress.on_stderr().note(text)

    # Files -----------------------------------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> Path:
        """Write a file that appears whole or not at all."""
        content = text.encode()
        if name.endswith(".csv") and "/" not in name:
            self.written.add_sheet(name, content)
        else:
            self.written.add(name)
        write_whole(self.path / name, content)
        return self.path / name

    def write_json(self, name: str, value: object) -> Path:
        """Write a JSON file that appears whole or not at all. NaN and infinity are refused: they are not JSON."""
        return self.write_text(
            name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=lines.as_json) + "\n"
        )

    def write_lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write a JSONL file that appears whole or not at all; others read it, so its lines have no checksums."""
        made = [json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        return self.write_text(name, "".join(made))

    def append_lines(self, name: str, rows: Sequence[Mapping[str, Any]], *, sync: bool = True) -> None:
        """Append JSON lines with checksums and see them on disk."""
        content = b"".join(map(lines.with_checksum, rows))
        self.written.add(name)
        _end_last_line(self.path / name)
        append(self.path / name, content, sync=sync)
        self._answers += len(rows) if name == ANSWERS else 0

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSONL file; one cut short by a kill is left out."""
        return self._lines(name).good

    def _lines(self, name: str) -> lines.Lines:
        path = self.path / name
        try:
            content = path.read_bytes() if path.is_file() else b""
        except OSError as error:
            raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from None
        return lines.read(content, sealed=self.written.sealed and name in (JOURNAL, ANSWERS, METRICS))

    @contextlib.contextmanager
    def tree(self, directory: Path) -> Iterator[None]:
        """A directory of this run is written whole in here; what anyone puts into it afterwards is never deleted.

        Raises:
            UserError: it holds such a file already, or cannot be written.
        """
        name = directory.relative_to(self.path).as_posix()
        self.written.begin_tree(name)
        with writing(directory):
            yield
        self.written.end_tree(name)

    def drop_tree(self, directory: Path) -> None:
        """Delete what this run wrote into one of its directories."""
        with writing(directory):
            self.written.delete_tree(directory.relative_to(self.path).as_posix())

    # Journal ---------------------------------------------------------------------------------------------------------

    def remember(self, key: str, compute: Callable[[], T], files: Iterable[Path] = ()) -> T:
        if key not in self._remembered:
            value = json.loads(json.dumps(compute(), default=lines.as_json))
            self._keep({"key": key, "value": value}, files)
        remembered: T = self._remembered[key]
        return remembered

    def _keep(self, entry: dict[str, Any], files: Iterable[Path] = ()) -> None:
        if self._answers:
            entry["answers"] = self._answers
        if rests_on := checksums(self.path, files):
            entry["files"] = rests_on
        self.append_lines(JOURNAL, [entry])
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        self._entries.append(entry)
        self._remembered[entry["key"]] = entry["value"]

    def _repair(self) -> None:
        """Find what is damaged, name it, and forget every step that may rest on it: they are done again."""
        for name in (JOURNAL, ANSWERS, METRICS):
            with writing(self.path / name):
                _end_last_line(self.path / name)
        journal, answers, metrics = (self._lines(name) for name in (JOURNAL, ANSWERS, METRICS))
        if journal.first_damaged is not None:
            self._forget(len(self._entries), f"line {journal.first_damaged + 1} of {JOURNAL} is damaged")
        there = len(answers.rows) if answers.first_damaged is None else answers.first_damaged
        lacking = next((i for i, e in enumerate(self._entries) if e.get("answers", 0) > there), None)
        if answers.first_damaged is not None:
            self.note(f"'{self.path / ANSWERS}': line {there + 1} is damaged and left out")
        if lacking is not None:
            self._forget(lacking, f"{ANSWERS} lacks answers from line {there + 1} on")
        for name, found in ((ANSWERS, answers), (METRICS, metrics)):
            if found.first_damaged is not None:
                write_whole(self.path / name, b"".join(map(lines.with_checksum, found.good)))
        self._answers = len(answers.good)
        for i, entry in enumerate(self._entries):
            if damaged := first_damaged(self.path, entry.get("files", {}), may_be_gone=self.is_complete):
                self._forget(i, f"{damaged} is damaged or gone")
                break
        self._logged = {(line.get("phase"), line.get("step"), "check" in line) for line in metrics.good}
        for entry in self._entries:
            if entry["key"].startswith("phase/"):
                self._log_again(entry["key"].removeprefix("phase/"), entry["value"])
        if self.is_complete:
            self._clean_up()

    def _forget(self, first: int, reason: str) -> None:
        """Cut the journal before this entry."""
        again = f": {len(self._entries) - first} finished steps are done again" if first < len(self._entries) else ""
        self.note(f"'{self.path}': {reason}{again}")
        self._entries = self._entries[:first]
        self._remembered = {entry["key"]: entry["value"] for entry in self._entries}
        write_whole(self.path / JOURNAL, b"".join(map(lines.with_checksum, self._entries)))

    def log(self, **metrics: Any) -> None:
        self.append_lines(METRICS, [metrics], sync=False)

    def _log_again(self, phase: str, state: Any) -> None:
        """Append those lines of a phase's metrics that a kill or damage took."""
        history, checks = (state.get(name, []) if isinstance(state, dict) else [] for name in ("history", "checks"))
        rows = [{"phase": phase, **entry} for entry in history if isinstance(entry, dict)]
        rows += [{"phase": phase, "step": step, "check": value} for step, value in checks]
        missing = [row for row in rows if (phase, row.get("step"), "check" in row) not in self._logged]
        if missing:
            self.append_lines(METRICS, missing)
            self._logged |= {(phase, row.get("step"), "check" in row) for row in missing}

    @property
    def keeps(self) -> bool:
        return True

    def finished(self, phase: str, slot: str) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        return self.finished_in("", phase, slot)

    def finished_in(self, scope: str, phase: str, slot: str) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        """`finished`, of a phase of that scope."""
        self._settle(scope)
        if f"phase/{phase}" in self._remembered:
            later = next((e["key"] for e in reversed(self._entries) if e.get("slot") == slot), f"phase/{phase}")
            found = self._kept(slot, phase) if later == f"phase/{phase}" else None
            return self._remembered[f"phase/{phase}"], found[1] if found is not None else None
        found = self._kept(slot, phase)
        # The tensors are saved before the journal says so: a kill in between loses nothing.
        if found is None or found[0].get("at", len(self._entries)) != len(self._entries):
            return None
        self._keep(_phase_entry(scope, phase, slot, found[0]["result"]))
        return found[0]["result"], found[1]

    def finish(self, phase: str, slot: str, result: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.finish_in("", phase, slot, result, tensors)

    def finish_in(
        self, scope: str, phase: str, slot: str, result: Mapping[str, Any], values: Mapping[str, Any]
    ) -> None:
        """`finish`, of a phase of that scope."""
        # The tensors come first and carry the result: a kill between the two writes loses nothing.
        state = {"phase": phase, "result": result, "at": len(self._entries)}
        self._save(slot, state, values)
        if f"phase/{phase}" not in self._remembered:
            self._keep(_phase_entry(scope, phase, slot, json.loads(json.dumps(dict(result)))))
        for path in self._both("partial"):
            with writing(path):
                path.unlink(missing_ok=True)

    def _settle(self, scope: str) -> None:
        """Forget finished phases whose outcome is lost, and what came after them.

        A finished phase answers without its tensors where a later one has replaced them. So of every set of parameters
        the newest ones must be there; where they are damaged, those of the phase before are taken, and the rest is done
        again.
        """
        if scope in self._settled:
            return
        self._settled.add(scope)
        inside = f"phase/{scope}/" if scope else "phase/"
        order = [
            i for i, e in enumerate(self._entries) if e["key"].startswith(inside) and e.get("scope", scope) == scope
        ]
        whole = len(order)
        while whole:
            newest = {
                self._entries[i].get("slot"): self._entries[i]["key"].removeprefix("phase/") for i in order[:whole]
            }
            if all(self._is_kept(slot, phase, scope) for slot, phase in newest.items()):
                break
            whole -= 1
        if whole < len(order):
            self._forget(order[whole], f"the checkpoint of {self._entries[order[whole]]['key'][6:]} is damaged or gone")

    def _is_kept(self, slot: str | None, phase: str, scope: str) -> bool:
        if slot is None:  # of an earlier version, which did not say
            return any((self.path / "checkpoints").glob(f"{scope.replace('/', '.')}*.safetensors"))
        return self._kept(slot, phase) is not None

    def checkpoint(self, phase: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = self._kept("partial", phase)
        if found is not None:
            self._log_again(phase, found[0])
        return found

    def save_checkpoint(self, phase: str, state: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self._save("partial", {**state, "phase": phase}, tensors)

    def _save(self, slot: str, state: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        for path in self._both(slot):
            self.written.add(path.relative_to(self.path).as_posix())
        tensors.save(self._both(slot)[0], state, values, previous=True)

    def _kept(self, slot: str, phase: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """State and tensors of a phase, from the newest checkpoint or the one before; a damaged one is deleted."""
        for path in self._both(slot):
            if not path.exists():
                continue
            try:
                state, values = tensors.load(path)
            except tensors.DamagedTensorsError as error:
                self.note(f"'{path}' is damaged ({error}): it is discarded, and the one before is used")
                with writing(path):
                    path.unlink()
                continue
            if state.get("phase") == phase:
                return state, values
        return None

    def _both(self, slot: str) -> tuple[Path, Path]:
        """Where the newest checkpoint of a set of parameters stands, and the one before."""
        path = self.path / "checkpoints" / f"{slot.replace('/', '.')}.safetensors"
        return path, tensors.previous_of(path)

    def scoped(self, prefix: str) -> Journal:
        """A journal for one part of the run, whose names do not meet those of other parts."""
        return _Scoped(self, prefix)

    def drop_checkpoints(self, prefix: str = "") -> None:
        """Drop what only a resume of that part would need."""
        start = f"{prefix.replace('/', '.')}." if prefix else ""
        for path in (self.path / "checkpoints").glob("*.safetensors"):
            if path.name.startswith(start):
                with writing(path):
                    path.unlink()
        for path in (self.path / "checkpoints").glob(f".{start}*.{PARTIAL}"):  # a kill left it
            with writing(path):
                tensors.delete_partial(path)

    def complete(self) -> None:
        """Drop what only a resume would need. The journal stays: a finished run answers at once."""
        self.remember("complete", lambda: True, [self.path / "report.json"])
        self._clean_up()

    def _clean_up(self) -> None:
        self.drop_checkpoints()
        for name in ("checkpoints", "scratch"):
            if (self.path / name).is_dir():
                with writing(self.path / name):
                    remove_empty(self.path / name)
        overwriting.forget_aside(self.path)

    @property
    def is_complete(self) -> bool:
        """Whether this run was finished."""
        return "complete" in self._remembered

    def keep_provenance(self, origin: dict[str, Any]) -> dict[str, Any]:
        """Write down where the numbers come from, and return it.

        A resumed run keeps what it began with and lists its resumptions: another commit may have made their part.

        Raises:
            UserError: model or data are not what the run began with, so that its two parts would not belong together.
        """
        first = beginning.provenance(self.path)
        if first is not None:
            if changed := changed_sources(first.get("sources", {}), origin.get("sources", {})):
                raise UserError(f"--resume: {changed} is not what the run began with: start again with --overwrite")
            if not self.is_complete:
                again = {"started": origin["started"], "commit": origin["versions"]["commit"]}
                first["resumed"] = [*first.get("resumed", []), again]
            origin = first
        elif self._entries:
            raise UserError(
                f"--resume: '{self.path / beginning.PROVENANCE}' is damaged or gone, so nothing says whether model and "
                "data are the same: start again with --overwrite"
            )
        beginning.write_provenance(self.path, origin)
        return origin


class _Scoped(Journal):
    def __init__(self, run: RunDirectory, prefix: str) -> None:
        self.run = run
        self.prefix = prefix

    def remember(self, key: str, compute: Callable[[], T], files: Iterable[Path] = ()) -> T:
        return self.run.remember(f"{self.prefix}/{key}", compute, files)

    def log(self, **metrics: Any) -> None:
        self.run.log(**{**metrics, "phase": f"{self.prefix}/{metrics.get('phase', '')}"})

    @property
    def keeps(self) -> bool:
        return True

    def finished(self, phase: str, slot: str) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        return self.run.finished_in(self.prefix, f"{self.prefix}/{phase}", f"{self.prefix}/{slot}")

    def checkpoint(self, phase: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return self.run.checkpoint(f"{self.prefix}/{phase}")

    def save_checkpoint(self, phase: str, state: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.run.save_checkpoint(f"{self.prefix}/{phase}", state, tensors)

    def finish(self, phase: str, slot: str, result: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.run.finish_in(self.prefix, f"{self.prefix}/{phase}", f"{self.prefix}/{slot}", result, tensors)


def _phase_entry(scope: str, phase: str, slot: str, result: Any) -> dict[str, Any]:
    return {"key": f"phase/{phase}", "value": result, "scope": scope, "slot": slot}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The settings whose values differ, by name; settings may hold settings, and an empty list may be missing."""
    for key in {*before, *now}:
        one, other = before.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differences(one, other)
        elif one != other and (one or other or not isinstance(other, list)):
            yield key


def _texts(told: object, name: str = "") -> Iterator[tuple[str, str | Path]]:
    """Every text of settings with its option: it may name a file."""
    if isinstance(told, Mapping):
        for key, value in told.items():
            yield from _texts(value, "--" + str(key).replace("_", "-"))
    elif isinstance(told, list | tuple):
        for value in told:
            yield from _texts(value, name)
    elif isinstance(told, str | Path):
        yield name, told


def _end_last_line(path: Path) -> None:
    """Cut off a line that a kill cut short, so that the next one is not lost with it; close one that lacks its end."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        content = file.read()
        end = lines.end_of_whole_lines(content)
        file.seek(end)
        if end == len(content):
            file.write(b"\n")
        else:
            file.truncate()


def _check_can_be_made(path: Path) -> None:
    around = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if around is not None and not (around.is_dir() and os.access(around, os.W_OK | os.X_OK)):
        why = "may not be written to" if around.is_dir() else "is a file"
        raise UserError(f"--out '{path}' cannot be made: '{around}' {why}")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
