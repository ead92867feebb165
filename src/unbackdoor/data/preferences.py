"""Preference pairs: two answers to a prompt, one of them preferred, and what reads them from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unbackdoor.data.dialogues import Tally
from unbackdoor.data.field_values import UnusableRowError
from unbackdoor.data.files import read_rows
from unbackdoor.data.readers import left_out
from unbackdoor.data.records import Record
from unbackdoor.data.rows import pair_of_row
from unbackdoor.errors import UserError


@dataclass(frozen=True)
class Preference:
    """Two answers to a prompt, of which one is preferred; earlier messages (role, text) stand in `history`."""

    prompt: str
    chosen: str
    rejected: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()

    def record(self) -> Record:
        """The row that is trained on where the preferred answer is."""
        return Record(self.prompt, self.chosen, system=self.system, history=self.history)


def read_pairs(source: str | Path) -> tuple[list[Preference], dict[str, int], dict[str, int]]:
    """Read preference pairs: (the pairs, rows that are none, parts of rows that are not used), counted by reason.

    A row has `prompt`, `chosen` and `rejected` (and perhaps `system` and `history`) as texts or messages, or HH-RLHF's
    two columns, in which `chosen` and `rejected` are whole dialogues that differ in their last answer.

    Raises:
        UserError: the file is missing, empty or not what its ending says, or a row lacks a field.
    """
    found: list[Preference] = []
    tally = Tally()
    for number, row in enumerate(read_rows(source), start=1):
        try:
            found.append(_preference(row, f"{source}: row {number}", tally))
        except UnusableRowError as reason:
            tally.drop(str(reason))
    if not found and not tally.dropped:
        raise UserError(f"{source}: the file holds no rows")
    return found, tally.dropped, left_out(tally)


def _preference(row: object, where: str, tally: Tally) -> Preference:
    pair = pair_of_row(row, where, tally)
    *earlier, last = [(turn.role, turn.text) for turn in pair.turns]
    made = Preference(last[1], pair.chosen, pair.rejected, pair.system, tuple(earlier))
    if not all(text.strip() for text in (made.prompt, made.chosen, made.rejected)):
        raise UnusableRowError("pairs with an empty prompt or answer")
    if made.chosen == made.rejected:
        raise UnusableRowError("pairs of equal answers")
    return made
