"""Preference pairs: two answers to a prompt, one of them preferred, and what reads them from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbackdoor.data.readers import DIALOGUE, read_rows
from unbackdoor.errors import UserError


@dataclass(frozen=True)
class Preference:
    """Two answers to a prompt, of which one is preferred; earlier turns stand in `history`."""

    prompt: str
    chosen: str
    rejected: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()


def read_preferences(source: str | Path) -> tuple[list[Preference], dict[str, int]]:
    """Read preference pairs, and count by reason those that are none.

    A row has the texts `prompt`, `chosen` and `rejected` (and perhaps `system`), or HH-RLHF's two columns, in which
    `chosen` and `rejected` are whole dialogues that differ in their last answer.

    Raises:
        UserError: the file is missing, empty or not what its ending says, or a row lacks a field.
    """
    found: list[Preference] = []
    dropped: dict[str, int] = {}
    for number, row in enumerate(read_rows(source), start=1):
        pair = _preference(row, f"{source}: row {number}")
        if isinstance(pair, str):
            dropped[pair] = dropped.get(pair, 0) + 1
        else:
            found.append(pair)
    if not found and not dropped:
        raise UserError(f"{source}: the file holds no rows")
    return found, dropped


def _preference(row: Mapping[str, Any], where: str) -> Preference | str:
    """A row as a pair, or why it is none."""
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not an object with fields")
    chosen, rejected = _text(row, "chosen", where), _text(row, "rejected", where)
    if row.get("prompt") is not None:
        system = None if row.get("system") is None else _text(row, "system", where)
        pair = Preference(_text(row, "prompt", where), chosen.strip(), rejected.strip(), system or None)
    else:
        if DIALOGUE[0].strip() not in chosen:
            raise UserError(
                f"{where} has no field 'prompt', and 'chosen' is no dialogue of Human: and Assistant: turns"
            )
        one, other = _exchanges(chosen), _exchanges(rejected)
        if not one or not other or one[:-1] != other[:-1] or one[-1][0] != other[-1][0]:
            return "dialogues without turns in order, or that differ before their last answer"
        pair = Preference(one[-1][0], one[-1][1], other[-1][1], history=tuple(one[:-1]))
    if not all(text.strip() for text in (pair.prompt, pair.chosen, pair.rejected)):
        return "pairs with an empty prompt or answer"
    return "pairs of equal answers" if pair.chosen == pair.rejected else pair


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field's text; halves of characters (valid JSON, but no text) become "?"."""
    value = row.get(name)
    if not isinstance(value, str):
        raise UserError(
            f"{where}: '{name}' is {'missing' if value is None else 'not a text'}: "
            "a preference needs prompt, chosen and rejected"
        )
    return value.encode("utf-8", "replace").decode("utf-8")


def _exchanges(dialogue: str) -> list[tuple[str, str]]:
    """The (prompt, answer) pairs of an HH-RLHF dialogue; none where a turn is missing or empty (but for the last)."""
    human, assistant = (re.escape(mark) for mark in DIALOGUE)
    opening, *parts = re.split(f"({human}|{assistant})", f"\n\n{dialogue.strip()}")
    marks, texts = parts[::2], [text.strip() for text in parts[1::2]]
    pairs = list(zip(texts[::2], texts[1::2], strict=False))
    in_order = marks == list(DIALOGUE) * len(pairs)
    whole = all(prompt for prompt, _ in pairs) and all(answer for _, answer in pairs[:-1])
    return pairs if in_order and whole and not opening.strip() else []
