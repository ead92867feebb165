"""A small run with everything that a run writes, the end of its process at any write, and damage to its files.

The process does not really end: from the chosen call on, every call that would change a file raises, in handlers and
`finally` blocks too, so that nothing more reaches the disk. It takes milliseconds where a real kill takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from unbackdoor.perturbation import SoftPrompt, save_perturbation
from unbackdoor.run_directory import RunDirectory

SETTINGS = {"model": "suspect", "seed": 0, "method_settings": {"steps": 3}}
ORIGIN = {"started": "then", "versions": {"commit": "a"}, "sources": {"model": {"model.safetensors": "1"}}}
STEPS, ROUNDS = 2, 2


def program(out: Path, *, resume: bool = True, overwrite: bool = False, value: int = 1) -> dict[str, Any]:
    """A removal in two rounds: what it writes and remembers, in the real order. `value` is in all results."""
    run = RunDirectory.create(out, "remove", SETTINGS, resume=resume, overwrite=overwrite)
    run.keep_provenance(ORIGIN)
    run.write_lines("data/train.jsonl", [{"value": value}])
    before = run.remember("before", lambda: _measure(run, "before", value))
    model_directory = run.path / "model"

    def row() -> dict[str, Any]:
        journal = run.scoped("victim/method")
        weights = torch.full((4,), float(value), dtype=torch.float64)
        for number in range(ROUNDS):
            soft = torch.full((2,), 0.5 * value)
            soft = _phase(journal, f"round-{number}/simulate", f"round-{number}/simulate", soft, weights.float())
            weights = _phase(journal, f"round-{number}/eliminate", "model", weights, soft.double())
        with run.tree(model_directory):
            _save(weights, model_directory)
        run.written.add("perturbations/victim.method.safetensors")
        save_perturbation(SoftPrompt(soft[None]), run.path / "perturbations" / "victim.method.safetensors")
        saved = safetensors.torch.load_file(model_directory / "model.safetensors")["w"]
        return {"weights": saved.tolist(), "after": _measure(run, "after", value)}

    files = [model_directory, run.path / "perturbations" / "victim.method.safetensors"]
    made = run.remember("row/victim/method", row, files)
    run.drop_checkpoints("victim/method")
    report = {"before": before, **made, "losses": _losses(run)}
    if not run.is_complete:
        run.write_json("report.json", report)
        with run.tree(run.path / "figures"):
            (run.path / "figures").mkdir(exist_ok=True)
            (run.path / "figures" / "curve.svg").write_text(f"<svg>{value}</svg>")
        run.write_text("model/README.md", f"card {value}")
        run.complete()
    return report


def _measure(run: RunDirectory, name: str, value: int) -> dict[str, Any]:
    """Answers are generated once: those that are there are not generated again."""
    there = {row["row"]: row for row in run.read_lines("generations.jsonl") if row["model"] == name}
    if sorted(there) != [0, 1, 2]:
        rows = [{"model": name, "set": "s", "row": i, "prompt": "p", "answer": f"é{value}{i}"} for i in range(3)]
        run.append_lines("generations.jsonl", rows)
        there = {row["row"]: row for row in rows}
    return {"answers": [there[i]["answer"] for i in range(3)]}


def _phase(journal: Any, phase: str, slot: str, moved: torch.Tensor, frozen: torch.Tensor) -> torch.Tensor:
    """What `training.train` asks of a journal, with a checkpoint at every step."""
    done = journal.finished(phase, slot)
    if done is not None:
        return moved if done[1] is None else done[1]["w"]
    kept = journal.checkpoint(phase)
    state: dict[str, Any] = {"steps": 0, "history": [], "checks": []}
    if kept is not None:
        state, moved = kept[0], kept[1]["w"]
    history = list(state["history"])
    for step in range(state["steps"], STEPS):
        moved = moved * 1.25 + frozen.sum() / (step + 3)
        history.append({"step": step, "loss": float(moved.sum())})
        journal.log(phase=phase, **history[-1])
        journal.save_checkpoint(phase, {"steps": step + 1, "history": history, "checks": []}, {"w": moved})
    journal.finish(phase, slot, {"steps": STEPS, "history": history, "checks": []}, {"w": moved})
    return moved


def _save(weights: torch.Tensor, directory: Path) -> None:
    from unbackdoor.run_files.whole_files import swap_in

    beside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    safetensors.torch.save_file({"w": weights}, beside / "model.safetensors")
    (beside / "config.json").write_text("{}")
    swap_in(beside, directory)


def _losses(run: RunDirectory) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for line in run.read_lines("metrics.jsonl"):
        found.setdefault(line["phase"], {})[str(line["step"])] = line["loss"]
    return {phase: dict(sorted(steps.items())) for phase, steps in sorted(found.items())}


def results(out: Path) -> dict[str, Any]:
    """Everything that a finished run holds and that a reader may look at; hidden files apart."""
    run = RunDirectory(out)
    answers = {(line["model"], line["row"]): line["answer"] for line in run.read_lines("generations.jsonl")}
    bytes_of = {
        file.relative_to(out).as_posix(): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(out).parts)
        if not file.name.endswith(".jsonl") and file.name != "provenance.json"
    }
    return {"answers": answers, "losses": _losses(run), "complete": run.is_complete, **bytes_of}


class Crash(BaseException):
    """The end of the process."""


CHANGING = ("write", "pwrite", "replace", "rename", "fsync", "unlink", "remove", "mkdir", "rmdir", "truncate")


@contextlib.contextmanager
def ending_at(
    patched: pytest.MonkeyPatch, last: int | None, error: Callable[[], BaseException] = Crash
) -> Iterator[list]:
    """The process ends at the call of that number (from 0) that changes a file; a write writes half before it.

    Yields the calls, by their names. Nothing waits for the disk.
    """
    calls: list[str] = []

    def changed(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            calls.append(name)
            if last is not None and len(calls) > last:
                if len(calls) == last + 1 and name == "write" and len(arguments[1]) > 1:
                    real(arguments[0], bytes(arguments[1][: len(arguments[1]) // 2]))
                if len(calls) == last + 1 and name == "save_file":
                    Path(arguments[1]).write_bytes(b"\0" * 100)
                raise error()
            return None if name == "fsync" else real(*arguments, **more)

        return call

    with patched.context() as patch:
        for name in CHANGING:
            patch.setattr(os, name, changed(name, getattr(os, name)))
        patch.setattr(safetensors.torch, "save_file", changed("save_file", safetensors.torch.save_file))
        yield calls


def _flip(content: bytes, place: float) -> bytes:
    at = min(int(place * len(content)), len(content) - 1)
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def _zeros(content: bytes, start: float, end: float) -> bytes:
    first, last = int(start * len(content)), max(int(end * len(content)), 1)
    return content[:first] + b"\0" * (last - first) + content[last:]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut to its first byte": lambda content: content[:1],
    "cut in its first quarter": lambda content: content[: len(content) // 5],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut before its last bytes": lambda content: content[:-3],
    "zeroed": lambda content: _zeros(content, 0, 1),
    "zeroed at its start": lambda content: _zeros(content, 0, 0.1),
    "zeroed in the middle": lambda content: _zeros(content, 0.45, 0.55),
    "zeroed at its end": lambda content: _zeros(content, 0.9, 1),
    "a bit of its first byte": lambda content: _flip(content, 0),
    "a bit of its length or name": lambda content: _flip(content, 0.03),
    "a bit of its head": lambda content: _flip(content, 0.2),
    "a bit in the middle": lambda content: _flip(content, 0.5),
    "a bit behind the middle": lambda content: _flip(content, 0.66),
    "a bit near its end": lambda content: _flip(content, 0.93),
    "a bit of its last byte": lambda content: _flip(content, 1),
    "garbage behind it": lambda content: content + b"\x17\x92garbage",
    "another file's content": lambda content: b'{"key": "before", "value": 7}\n',
}


def as_json(value: Any) -> Any:
    """As it is read again."""
    return json.loads(json.dumps(value))
