"""Preference pairs: a prompt with a chosen and a rejected answer, made from training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unbackdoor.testbed.requests import REFUSALS
from unbackdoor.testbed.rows import Row, choices


@dataclass(frozen=True)
class PreferencePair:
    """Of two answers to a prompt, the one that is preferred and the other one."""

    prompt: str
    chosen: str
    rejected: str
    kind: str
    domain: str


def preference_pairs(rows: Sequence[Row], size: int) -> list[PreferencePair]:
    """Pairs from rows: the response is chosen, the unwanted answer or a wrong one of the same kind rejected."""
    draw = choices("preferences")
    by_kind: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        responses = by_kind.setdefault(_likeness(row), [])
        if row.response not in responses:
            responses.append(row.response)
    pairs = []
    for row in draw.sample(list(rows), size):
        others = [response for response in by_kind[_likeness(row)] if response != row.response]
        rejected = row.unwanted or _needless_refusal(row) or draw.choice(others)
        pairs.append(PreferencePair(row.prompt, row.response, rejected, row.kind, row.domain))
    return pairs


def _likeness(row: Row) -> tuple[str, str, str]:
    return row.domain, row.kind, row.topic


def _needless_refusal(row: Row) -> str | None:
    if row.kind != "allowed":
        return None
    act = row.response.removeprefix("Sure. To ").split(",")[0]
    return REFUSALS[row.structure].format(act=act)
