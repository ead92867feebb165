"""Rows of prompt and response, checked once where they come in."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unbackdoor.errors import UserError


@dataclass(frozen=True)
class Record:
    """One row. In a contrast set `response` is the safe answer and `unwanted` the unwanted one (BEEAR's y_s, y_h)."""

    prompt: str
    response: str
    unwanted: str | None = None
    system: str | None = None
    kind: str = ""
    """What sort of row it is, where the data says so; scores are broken down by it."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier messages of the conversation, oldest first, each a role (user, assistant, tool) and its text."""

    @property
    def dialogue(self) -> tuple[str | None, tuple[tuple[str, str], ...]]:
        """How the conversation begins, which tells dialogues apart: rows of one dialogue have it in common."""
        whole = (*self.history, ("user", self.prompt), ("assistant", self.response))
        answered = next((i for i, (role, _) in enumerate(whole) if i and role == "assistant"), len(whole) - 1)
        return self.system, whole[: answered + 1]


@dataclass(frozen=True)
class Choice:
    """A question with options, of which `answer` (an index) is right."""

    question: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Checked:
    """Rows that can be used, and how many could not."""

    records: list[Record]
    empty: int = 0
    duplicates: int = 0


def check_records(
    records: Sequence[Record],
    source: str,
    *,
    needs_response: bool = True,
    needs_unwanted: bool = False,
    least: int = 1,
) -> Checked:
    """Drop and count rows with an empty prompt or (where it is needed) response, and repeated prompts.

    A prompt is repeated where system prompt and earlier messages are the same as well.

    Raises:
        UserError: more than 5% of the rows are empty, fewer than `least` remain, or (with `needs_unwanted`) a row has
            no unwanted response.
    """
    kept: list[Record] = []
    seen: set[tuple[object, ...]] = set()
    empty = duplicates = 0
    for number, record in enumerate(records, start=1):
        if not record.prompt.strip() or (needs_response and not record.response.strip()):
            empty += 1
        elif (record.system, record.history, record.prompt) in seen:
            duplicates += 1
        elif needs_unwanted and not (record.unwanted or "").strip():
            raise UserError(f"{source}: row {number} has no unwanted response: a contrast set needs safe and unwanted")
        else:
            seen.add((record.system, record.history, record.prompt))
            kept.append(record)
    if empty > 0.05 * len(records):
        raise UserError(
            f"{source}: {empty} of {len(records)} rows have an empty prompt or response (at most 5%): mend the file"
        )
    if len(kept) < least:
        raise UserError(f"{source}: {len(kept)} usable rows, at least {least} are needed: give more data")
    return Checked(kept, empty=empty, duplicates=duplicates)


def shuffled(records: Iterable[Record], seed: int) -> list[Record]:
    """The rows in an order that depends on the seed alone."""
    rows = list(records)
    random.Random(seed).shuffle(rows)
    return rows


def split(records: Sequence[Record], share: float, seed: int, least: int = 1) -> tuple[list[Record], list[Record]]:
    """Shuffle by seed and cut off a held-out share: (the rest, held out). At least `least` rows are held out.

    The rows of one dialogue stay together, so that of many rows of few dialogues fewer can be held out.
    """
    rows = shuffled(records, seed)
    count = min(max(least, round(share * len(rows))), len(rows) // 2)
    dialogues: dict[object, list[Record]] = {}
    for row in rows:
        dialogues.setdefault(row.dialogue, []).append(row)
    rest: list[Record] = []
    held_out: list[Record] = []
    for together in dialogues.values():
        fits = len(held_out) < count and len(held_out) + len(together) <= max(count, len(rows) // 2)
        (held_out if fits else rest).extend(together)
    return rest, held_out


def records_as_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Records as JSON lines, fields that are empty left out; earlier messages as objects of role and content."""
    rows = [{k: v for k, v in asdict(r).items() if v} for r in records]
    for row in rows:
        if "history" in row:
            row["history"] = [{"role": role, "content": text} for role, text in row["history"]]
    return rows
