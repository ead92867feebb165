"""Read the rows of a data file in any usual shape: see docs/data.md, which has an example of each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unbackdoor.data.dialogues import Tally, Turns
from unbackdoor.data.field_values import UnusableRowError
from unbackdoor.data.files import json_lines, read_rows
from unbackdoor.data.records import Record
from unbackdoor.data.rows import REFUSAL, records_of_row
from unbackdoor.errors import UserError

__all__ = [
    "REFUSAL",
    "Read",
    "json_lines",
    "read_conversations",
    "read_data",
    "read_prompts",
    "read_records",
    "read_rows",
]
SHOWN_COLUMNS = 12


@dataclass(frozen=True)
class Read:
    """The records of a file, and what of it was not used: rows that were dropped and parts left out, by reason."""

    records: list[Record]
    dropped: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def said(self) -> list[str]:
        """What was not used, in words."""
        return [
            *(f"dropped {count}: {what}" for what, count in self.dropped.items()),
            *(f"not used in {count} rows: {what}" for what, count in self.left_out.items()),
        ]


def read_data(
    source: str | Path, *, turns: Turns = "last", needs_response: bool = True, safe_only: bool = False
) -> Read:
    """Read every row of a file (or of the train split of a hub data set, `hf:owner/name`).

    Args:
        source: the file.
        turns: whether the last answer of a dialogue makes a record, or each.
        needs_response: whether a row must have a response.
        safe_only: leave out prompts that are labelled unsafe (XSTest).

    Raises:
        UserError: the file is missing, empty or not what its ending says, no row can be used, or a row lacks a field,
            has two that could be the same, or a value that is neither text nor number (with the row's number).
    """
    rows = read_rows(source)
    if not rows:
        raise UserError(f"{source}: the file holds no rows")
    tally = Tally()
    records: list[Record] = []
    for number, row in enumerate(rows, start=1):
        if safe_only and isinstance(row, Mapping) and row.get("label") == "unsafe" and "prompt" in row:
            tally.drop("prompts that are labelled unsafe")
            continue
        try:
            records += records_of_row(row, f"{source}: row {number}", tally, turns=turns, needs_response=needs_response)
        except UnusableRowError as reason:
            tally.drop(str(reason))
    if not records:
        reasons = "; ".join(f"{count} {what}" for what, count in tally.dropped.items())
        raise UserError(f"{source}: no row can be used: {reasons}")
    return Read(records, tally.dropped, left_out(tally))


def left_out(tally: Tally) -> dict[str, int]:
    """What was left out of rows that are kept, the columns in one line."""
    found = dict(tally.left_out)
    if tally.columns:
        names = [" ".join(name.split())[:40] or "without a name" for name in tally.columns]
        more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
        found[f"columns {', '.join(names[:SHOWN_COLUMNS])}{more}"] = max(tally.columns.values())
    return found


def read_records(source: str | Path, turns: Turns = "last") -> list[Record]:
    """The records of a file, as of `read_data`; what of it is not used is a warning."""
    return _warned(source, read_data(source, turns=turns))


def read_prompts(source: str | Path, any_label: bool = False) -> list[Record]:
    """Records of which the prompt alone is needed; of XSTest's prompts those that are labelled safe, or all."""
    return _warned(source, read_data(source, needs_response=False, safe_only=not any_label))


def _warned(source: str | Path, read: Read) -> list[Record]:
    for said in read.said():
        text = f"{source}: {said}".encode(
            "utf-8", "backslashreplace"
        ).decode()  # halves of characters cannot be printed
        warnings.warn(text, stacklevel=3)
    return read.records


def read_conversations(source: str | Path) -> list[tuple[str, str]]:
    """What a user says in two turns, a conversation a row: the field `turns` of MT-Bench's questions.

    Raises:
        UserError: as of `read_data`, or a row has not just two turns of text.
    """
    found = []
    for number, row in enumerate(read_rows(source), start=1):
        turns = row.get("turns") if isinstance(row, Mapping) else None
        texts = [t for t in turns if isinstance(t, str) and t.strip()] if isinstance(turns, list) else []
        if len(texts) != 2 or len(texts) != len(turns or ()):
            raise UserError(f"{source}: row {number} has no field 'turns' with two texts, as MT-Bench's questions have")
        found.append((texts[0], texts[1]))
    if not found:
        raise UserError(f"{source}: the file holds no rows")
    return found
