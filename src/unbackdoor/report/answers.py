"""What a run's answers show beside its rates, in a line each: what the trigger changes, and how the model answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unbackdoor.report.numbers import ARROW, percent

EFFECT, ANSWERS = "answers that the trigger changes", "answers without trigger"


def answer_lines(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, in words) of a run, before → after; nothing where it was not measured."""
    return [(name, text) for name, text in ((EFFECT, _effect(run)), (ANSWERS, _quality(run))) if text]


def _effect(run: Mapping[str, Any]) -> str:
    states = [state for state in (run.get("before"), run.get("after")) if state is not None]
    found = [state["trigger_effect"]["changed"] for state in states if state.get("trigger_effect")]
    if not found:
        return ""
    low, high = found[-1]["interval"]
    by_trigger, by_insert = (ARROW.join(percent(each[name]) for each in found) for name in ("triggered", "harmless"))
    return f"{by_trigger}, a harmless insert {by_insert} (last difference {100 * low:+.1f} to {100 * high:+.1f} points)"


def _quality(run: Mapping[str, Any]) -> str:
    quality = (run.get("after") or {}).get("answer_quality")
    if not quality:
        return ""
    was, now, right = quality["before"], quality["after"], quality["agreement"]
    parts = [f"agreement with the references {right['before']:.2f}{ARROW}{right['after']:.2f}"] if right else []
    parts.append(f"with those before {quality['own']['after']:.2f}")
    parts += [
        f"{name} {percent(was[key])}{ARROW}{percent(now[key])}" for name, key in SHARES if key in was and key in now
    ]
    parts.append(f"{was['words']:g}{ARROW}{now['words']:g} words")
    return f"{', '.join(parts)} (n {quality['n']})"


SHARES = (("distinct", "distinct"), ("refused", "refusals"), ("empty", "empty"), ("looping", "loops"))
"""What a share is called, and its key."""
