"""What a run's answers show beside its rates, in a line each: what the trigger changes, and how the model answers."""

from __future__ import annotations

from unbackdoor.report.numbers import ARROW, percent
from unbackdoor.report_schema import Row

EFFECT, ANSWERS = "answers that the trigger changes", "answers without trigger"


def answer_lines(run: Row) -> list[tuple[str, str]]:
    """(what, in words) of a run, before → after; nothing where it was not measured."""
    return [(name, text) for name, text in ((EFFECT, _effect(run)), (ANSWERS, _quality(run))) if text]


def _effect(run: Row) -> str:
    found = [state.trigger_effect.changed for state in run.states if state.trigger_effect is not None]
    if not found:
        return ""
    low, high = found[-1].interval
    by_trigger = ARROW.join(percent(each.triggered) for each in found)
    by_insert = ARROW.join(percent(each.harmless) for each in found)
    return f"{by_trigger}, a harmless insert {by_insert} (last difference {100 * low:+.1f} to {100 * high:+.1f} points)"


def _quality(run: Row) -> str:
    quality = run.after.answer_quality if run.after is not None else None
    if quality is None:
        return ""
    was, now, right = quality.before, quality.after, quality.agreement
    parts = [f"agreement with the references {right.before:.2f}{ARROW}{right.after:.2f}"] if right else []
    parts.append(f"with those before {quality.own.after:.2f}")
    for name, first, last in (
        ("distinct", was.distinct, now.distinct),
        ("refused", was.refusals, now.refusals),
        ("empty", was.empty, now.empty),
        ("looping", was.loops, now.loops),
    ):
        parts.append(f"{name} {percent(first)}{ARROW}{percent(last)}")
    parts.append(f"{was.words:g}{ARROW}{now.words:g} words")
    return f"{', '.join(parts)} (n {quality.n})"
