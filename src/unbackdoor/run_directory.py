"""The one place that writes results: atomic files, append-only metrics, checkpoints, provenance and resume.

A run directory holds `settings.yaml`, `provenance.json`, `metrics.jsonl`, `generations.jsonl`, `report.json`,
`report.html`, `figures/` and, where there is one, `model/`. While the run goes on it also holds `journal.jsonl` and
`checkpoints/`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from unbackdoor.errors import UserError

T = TypeVar("T")


class Journal:
    """What a deterministic program needs in order to be resumed. This one keeps nothing: the library's default.

    `remember` answers from the journal when the step was finished before; `log` appends one line of metrics; the
    checkpoint methods serve `training.train`.
    """

    def remember(self, key: str, compute: Callable[[], T]) -> T:
        """The JSON value of a finished step, computed once a run."""
        return compute()

    def log(self, **metrics: Any) -> None:
        """Append one line to the metrics."""

    def finished(self, phase: str, slot: str) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        """Result and tensors of a finished training phase. Tensors are None where a later phase has replaced them."""
        return None

    def checkpoint(self, phase: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """State and tensors of an interrupted training phase."""
        return None

    def save_checkpoint(self, phase: str, state: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        """Keep the state of a training phase that goes on."""

    def finish(self, phase: str, slot: str, result: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        """Keep the outcome of a training phase; `slot` holds the newest tensors of one set of parameters."""

    @property
    def keeps(self) -> bool:
        """Whether checkpoints are worth making."""
        return False


class RunDirectory(Journal):
    """One run's results. Open it with `create`, after everything that can be wrong with the input has been checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._remembered: dict[str, Any] = {line["key"]: line["value"] for line in self.read_lines("journal.jsonl")}

    @classmethod
    def check(cls, path: Path, *, overwrite: bool, resume: bool) -> None:
        """Raise a `UserError` where the directory cannot be used, before any work is done.

        An existing directory needs `overwrite` or `resume`, and must be a run directory.
        """
        if overwrite and resume:
            raise UserError("--overwrite and --resume exclude each other: give one of them")
        if path.exists() and not path.is_dir():
            raise UserError(f"--out '{path}' is a file: give a directory")
        if not path.exists() or not any(path.iterdir()):
            return
        if not (overwrite or resume):
            raise UserError(f"--out '{path}' exists and is not empty: use --overwrite, --resume or another directory")
        if _written_settings(path) is None:
            raise UserError(f"--out '{path}' is not a run directory of ours: it will not be touched, give another")

    @classmethod
    def create(
        cls, path: Path, command: str, settings: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False
    ) -> RunDirectory:
        """Make the directory, or open it again to resume, and write down the settings.

        Raises a `UserError` as `check` does, where a run is resumed with other settings, and where overwriting would
        delete what a setting names: the model that is read again, or a file of rows.
        """
        cls.check(path, overwrite=overwrite, resume=resume)
        if overwrite and (read := next(_within(path, settings), None)) is not None:
            raise UserError(
                f"--overwrite would delete '{read}', which this run reads: give another --out than '{path}'"
            )
        now = json.loads(json.dumps({"command": command, "settings": dict(settings)}, default=str))
        before = _written_settings(path) if resume else None
        if before is not None:
            changed = sorted("--" + n.replace("_", "-") for n in differences(before["settings"], now["settings"]))
            if changed or before["command"] != command:
                raise UserError(
                    f"--resume: the run in '{path}' was started with other values of "
                    f"{', '.join(changed) or 'the command'}: give the same, or --overwrite"
                )
        try:
            if overwrite and path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out '{path}' cannot be made: {error.strerror or error}") from None
        run = cls(path)
        run.write_text("settings.yaml", yaml.safe_dump(now, sort_keys=False, allow_unicode=True))
        return run

    @staticmethod
    def setting(path: Path, name: str) -> Any:
        """A setting of the run in that directory; None where there is no such run or setting."""
        written = _written_settings(path)
        return None if written is None else written["settings"].get(name)

    # Files -----------------------------------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> Path:
        """Write a file that appears whole or not at all."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.partial")
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
        return target

    def write_json(self, name: str, value: object) -> Path:
        """Write a JSON file that appears whole or not at all. NaN and infinity are refused: they are not JSON."""
        return self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def write_lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write a JSONL file that appears whole or not at all."""
        return self.write_text(name, "".join(_json_line(row) for row in rows))

    def append_lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append JSON lines and see them on disk."""
        _end_last_line(self.path / name)
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines([_json_line(row) for row in rows])
            file.flush()
            os.fsync(file.fileno())

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSONL file; one cut short by a kill is left out."""
        path = self.path / name
        rows = []
        if path.exists():
            # Bytes, cut at "\n" alone: a kill may cut inside a character, and texts may hold other line separators.
            for line in path.read_bytes().split(b"\n"):
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    continue
        return rows

    # Journal ---------------------------------------------------------------------------------------------------------

    def remember(self, key: str, compute: Callable[[], T]) -> T:
        if key not in self._remembered:
            value = json.loads(json.dumps(compute()))
            self.append_lines("journal.jsonl", [{"key": key, "value": value}])
            self._remembered[key] = value
        remembered: T = self._remembered[key]
        return remembered

    def log(self, **metrics: Any) -> None:
        _end_last_line(self.path / "metrics.jsonl")
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(_json_line(metrics))

    @property
    def keeps(self) -> bool:
        return True

    def finished(self, phase: str, slot: str) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        state, tensors = _load_tensors(self._checkpoint_path(slot))
        if state.get("phase") == phase:
            return state["result"], tensors
        if f"phase/{phase}" in self._remembered:
            return self._remembered[f"phase/{phase}"], None
        return None

    def finish(self, phase: str, slot: str, result: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        # The tensors come first and carry the result: a kill between the two writes loses nothing.
        _save_tensors(self._checkpoint_path(slot), {"phase": phase, "result": result}, tensors)
        self.remember(f"phase/{phase}", lambda: dict(result))
        self._checkpoint_path("partial").unlink(missing_ok=True)

    def checkpoint(self, phase: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        state, tensors = _load_tensors(self._checkpoint_path("partial"))
        return (state, tensors) if state.get("phase") == phase else None

    def save_checkpoint(self, phase: str, state: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        _save_tensors(self._checkpoint_path("partial"), {**state, "phase": phase}, tensors)

    def _checkpoint_path(self, slot: str) -> Path:
        return self.path / "checkpoints" / f"{slot.replace('/', '.')}.safetensors"

    def scoped(self, prefix: str) -> Journal:
        """A journal for one part of the run, whose names do not meet those of other parts."""
        return _Scoped(self, prefix)

    def drop_checkpoints(self, prefix: str = "") -> None:
        """Drop what only a resume of that part would need."""
        for path in (self.path / "checkpoints").glob(f"{prefix.replace('/', '.')}*.safetensors"):
            path.unlink()

    def complete(self) -> None:
        """Drop what only a resume would need. The journal stays: a finished run answers at once."""
        self.remember("complete", lambda: True)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

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
        path = self.path / "provenance.json"
        if path.is_file():
            first: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if changed := _changed_sources(first.get("sources", {}), origin.get("sources", {})):
                raise UserError(f"--resume: {changed} is not what the run began with: start again with --overwrite")
            if not self.is_complete:
                again = {"started": origin["started"], "commit": origin["versions"]["commit"]}
                first["resumed"] = [*first.get("resumed", []), again]
            origin = first
        self.write_json("provenance.json", origin)
        return origin


class _Scoped(Journal):
    def __init__(self, run: RunDirectory, prefix: str) -> None:
        self.run = run
        self.prefix = prefix

    def remember(self, key: str, compute: Callable[[], T]) -> T:
        return self.run.remember(f"{self.prefix}/{key}", compute)

    def log(self, **metrics: Any) -> None:
        self.run.log(**{**metrics, "phase": f"{self.prefix}/{metrics.get('phase', '')}"})

    @property
    def keeps(self) -> bool:
        return True

    def finished(self, phase: str, slot: str) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        return self.run.finished(f"{self.prefix}/{phase}", f"{self.prefix}/{slot}")

    def checkpoint(self, phase: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return self.run.checkpoint(f"{self.prefix}/{phase}")

    def save_checkpoint(self, phase: str, state: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.run.save_checkpoint(f"{self.prefix}/{phase}", state, tensors)

    def finish(self, phase: str, slot: str, result: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.run.finish(f"{self.prefix}/{phase}", f"{self.prefix}/{slot}", result, tensors)


def _written_settings(path: Path) -> dict[str, Any] | None:
    """The command and settings of the run in that directory; None where it is no run directory of ours."""
    try:
        written = yaml.safe_load((path / "settings.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    ours = isinstance(written, dict) and "command" in written and isinstance(written.get("settings"), dict)
    return written if ours else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The settings whose values differ, by name; settings may hold settings."""
    for key in {*before, *now}:
        one, other = before.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differences(one, other)
        elif one != other:
            yield key


def _within(path: Path, settings: object) -> Iterator[str]:
    """What of the settings names a file or directory that lies in `path`, or is it."""
    if isinstance(settings, Mapping):
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        for value in settings:
            yield from _within(path, value)
    elif isinstance(settings, str | Path) and str(settings).strip():
        with contextlib.suppress(OSError, ValueError):  # a text may be too long for a name
            named, out = Path(settings).resolve(), path.resolve()
            if (named == out or out in named.parents) and named.exists():
                yield str(settings)


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n"


def _end_last_line(path: Path) -> None:
    """Close a line that a kill cut short, so that the next one is not lost with it."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _save_tensors(path: Path, state: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, beside, {"state": json.dumps(state)})
    beside.replace(path)


def _load_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import safe_open

    if not path.exists():
        return {}, {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        return json.loads(metadata["state"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def provenance(command_line: list[str], seed: int, sources: Mapping[str, str | Path | None]) -> dict[str, Any]:
    """Where the numbers of a run come from: versions, seed, hashes of model and data, command line, host."""
    import torch
    import transformers

    import unbackdoor

    return {
        "command_line": command_line,
        "seed": seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "unbackdoor": unbackdoor.__version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "host": {
            "system": platform.system(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "sources": {name: hashes(Path(source)) for name, source in sources.items() if source is not None},
    }


def _changed_sources(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> str | None:
    """The first file of model or data whose content is another one, or that came or went; texts about them may."""
    for name in before.keys() & now.keys():
        files = {file for file in before[name].keys() | now[name].keys() if not file.endswith(".md")}
        different = sorted(file for file in files if before[name].get(file) != now[name].get(file))
        if different:
            return f"{different[0]} (--{name.replace('_', '-')})" if name != "model" else f"the model's {different[0]}"
    return None


def hashes(source: Path) -> dict[str, str]:
    """sha256 of a file, or of every file of a directory; empty for what is not on disk (a hub id)."""
    files = [source] if source.is_file() else sorted(p for p in source.glob("*") if p.is_file())
    return {file.name: _sha256(file) for file in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit() -> str | None:
    """The commit of the source tree that runs, where it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def command_line() -> list[str]:
    """The command as it was typed."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
