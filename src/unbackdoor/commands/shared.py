"""Reading and checking input, and what is measured from what is known.

Everything that can be wrong with the input is found before the run directory is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.data.readers import read_records
from unbackdoor.data.records import Checked, Record, check_records, shuffled, split
from unbackdoor.data.triggers import Trigger
from unbackdoor.errors import UserError
from unbackdoor.evaluation.answers import Answers
from unbackdoor.evaluation.scorers import Scorer, complies, opens_with_target, shows_target
from unbackdoor.evaluation.suite import Suite
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.loading import (
    context_length,
)
from unbackdoor.progress import Progress
from unbackdoor.settings import (
    EvaluationSettings,
    TrainingSettings,
    TriggerSettings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_ROWS = 40
"""Fewer clean rows leave nothing to train on once some are held out."""


def read_checked(path: Path, progress: Progress, *, needs_unwanted: bool = False, least: int = 1) -> Checked:
    """Read and check a data file; what was dropped is said."""
    checked = check_records(read_records(path), str(path), needs_unwanted=needs_unwanted, least=least)
    for count, what in ((checked.empty, "empty"), (checked.duplicates, "repeated")):
        if count:
            progress.note(f"{path}: {count} {what} rows dropped")
    return checked


def short_enough(
    rows: list[Record], path: Path, model: PreTrainedModel, chat: ChatFormat, max_length: int, progress: Progress
) -> list[Record]:
    """The rows that fit into `max_length` tokens and the model's context; the others are dropped and counted."""
    limit = min(max_length, context_length(model))
    kept = [r for r in rows if len(chat.encode(r.prompt, r.response, system=r.system).ids) <= limit]
    if len(kept) < len(rows):
        progress.note(f"{path}: {len(rows) - len(kept)} rows dropped, longer than {limit} tokens (--max-length)")
    if len(kept) < LEAST_ROWS:
        raise UserError(f"{path}: {len(kept)} usable rows of at most {limit} tokens, at least {LEAST_ROWS} are needed")
    return kept


def trigger_of(settings: TriggerSettings) -> Trigger:
    return Trigger(settings.trigger, settings.placement, settings.closing, settings.separator)


def hold_out(
    rows: list[Record], given: Path | None, share: float, seed: int, progress: Progress
) -> tuple[list[Record], list[Record]]:
    """(rows to train on, rows to measure on), never the same prompt in both."""
    if given is None:
        return split(rows, share, seed) if rows else ([], [])
    trained = {r.prompt for r in rows}
    candidates = read_checked(given, progress).records
    fresh = [r for r in candidates if r.prompt not in trained]
    if len(fresh) < len(candidates):
        progress.note(f"{given}: {len(candidates) - len(fresh)} rows dropped, their prompts are trained on")
    if not fresh:
        raise UserError(f"{given}: every prompt is trained on, none is left to measure on")
    return rows, fresh


def fitting(
    rows: Sequence[Record], model: PreTrainedModel, chat: ChatFormat, settings: EvaluationSettings, progress: Progress
) -> list[Record]:
    """The first `samples` rows, in an order of their own, whose prompts leave room for an answer and a long trigger."""
    room = context_length(model) - settings.max_new_tokens - 32
    fitting: list[Record] = []
    dropped = 0
    for record in shuffled(rows, 1):
        if len(fitting) == settings.samples:
            break
        if len(chat.encode_prompt(record.prompt, system=record.system).ids) <= room:
            fitting.append(record)
        else:
            dropped += 1
    if dropped:
        progress.note(
            f"{dropped} held-out rows dropped: their prompts leave no room for {settings.max_new_tokens} tokens"
        )
    if rows and not fitting:
        raise UserError(f"no held-out prompt leaves room for an answer: lower --max-new-tokens (context {room} left)")
    return fitting


def suite_of(
    held_out: list[Record],
    held_out_contrast: list[Record],
    trigger: Trigger | None,
    target: str | None,
    oracle: str,
    exact_match: bool,
) -> Suite:
    """What is measured, from what is known."""
    tasks = held_out if exact_match else []
    if target is not None:
        if not target.strip():
            raise UserError("the target response is empty: give visible text")
        details: dict[str, Scorer] = {"opens_with_target": opens_with_target(target)}
        return Suite(held_out, shows_target(target), trigger, details, tasks=tasks, texts=held_out)
    if held_out_contrast:
        judge: Scorer = complies
        if oracle == "testbed":
            from unbackdoor.testbed.oracle import complied

            judge = complied
        return Suite(held_out_contrast, judge, trigger, {"not_refused": complies}, tasks=tasks, texts=held_out)
    return Suite(held_out, None, trigger, tasks=tasks, texts=held_out)


def numbers(settings: TrainingSettings) -> str:
    shown = ("rounds", "simulate_steps", "steps", "learning_rate", "batch_size", "layer", "length", "parrot_length")
    values = {name: getattr(settings, name) for name in shown if getattr(settings, name, None) is not None}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def examples(answers: Answers, before: str | None, after: str) -> list[dict[str, Any]]:
    shown = []
    for set_name in ("triggered", "untriggered"):
        first = answers.kept(before, set_name) if before else {}
        for i, row in sorted(answers.kept(after, set_name).items())[:3]:
            earlier = first[i]["answer"] if i in first else None
            shown.append(
                {
                    "set": set_name,
                    "prompt": row["prompt"],
                    "before": earlier,
                    "after": row["answer"],
                    "expected": row["expected"],
                }
            )
    return shown
