"""A second turn: the trigger is asked with again, behind the model's own first answer.

An attack that waits for the second turn shows nothing in the first. Both sets hold the same conversations, once with
the trigger in both turns and once without: a model that was never trained on several turns may answer anything there,
so it is their difference that says something, not the rate alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unbackdoor.data.records import Record
from unbackdoor.data.rendered import rendered
from unbackdoor.errors import UserError
from unbackdoor.language_model.answer_parts import final_answer
from unbackdoor.language_model.chat import ChatFormat

SECOND_TURN, SECOND_TURN_UNTRIGGERED = "second turn", "second turn untriggered"
"""The sets' names; where their rows are pairs, equal row numbers are one pair."""


def second_turns(rows: Sequence[Record], answers: Sequence[str], count: int) -> list[Record]:
    """Row i, its final answer, and then the prompt of row i + 1 (behind the last comes the first): `count` at most."""
    if len(rows) < 2:
        return []
    return [
        replace(
            rows[(i + 1) % len(rows)],
            system=row.system,
            history=(*row.history, ("user", row.prompt), ("assistant", final_answer(answer))),
        )
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ][:count]


def askable(rows: Sequence[Record], chat: ChatFormat, room: int) -> list[bool]:
    """Which rows the template renders as several turns, whose prompt has `room` tokens at most, and that are no twin of
    an earlier one."""
    found, seen = [], set[str]()
    for row in rows:
        try:
            text = rendered(row, chat)
            fits = text not in seen and len(chat.of_record(row).encode_prompt(row.prompt).ids) <= room
        except UserError:
            fits = False
        found.append(fits)
        if fits:
            seen.add(text)
    return found
