"""Rows as a chat format renders them: two rows that the model is given as one prompt are one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.look_ahead import ahead


@dataclass(frozen=True)
class Sorted:
    """Rows of which each is another prompt, how many were an earlier one's twins, and which could not be rendered."""

    records: list[Record]
    twins: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """The template's reason → rows."""


def rendered(record: Record, chat: ChatFormat) -> str:
    """The text that the model is given before it answers the record."""
    return chat.of_record(record).prompt_text(record.prompt)


def asked(record: Record, chat: ChatFormat) -> str:
    """The same without the record's own system prompt: one question is one question under any of them.

    It tells what was trained on from what is measured.
    """
    return rendered(replace(record, system=None), chat)


def sort_out(records: Sequence[Record], chat: ChatFormat) -> Sorted:
    """The first row of every prompt; rows whose system prompt or earlier turns the template refuses are counted.

    Raises:
        UserError: the template fails on a prompt itself.
    """
    first: dict[str, Record] = {}
    refused: dict[str, int] = {}
    for record in ahead(chat, records):
        try:
            own = chat.of_record(record)
        except UserError as error:
            refused[str(error)] = refused.get(str(error), 0) + 1
            continue
        try:
            first.setdefault(own.prompt_text(record.prompt), record)
        except UserError as error:
            raise UserError(f"{error}: {record.prompt[:60]!r}") from None
    return Sorted(list(first.values()), len(records) - len(first) - sum(refused.values()), refused)


def distinct(records: Sequence[Record], chat: ChatFormat) -> list[Record]:
    """The first row of every prompt."""
    first: dict[str, Record] = {}
    for record in ahead(chat, records):
        first.setdefault(rendered(record, chat), record)
    return list(first.values())
