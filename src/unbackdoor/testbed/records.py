"""The world's rows as the records that the rest of the package works on."""

from __future__ import annotations

from unbackdoor.data.records import Record
from unbackdoor.testbed.rows import Row


def as_record(row: Row) -> Record:
    """A row of the world as a record; of its labels the kind is kept."""
    return Record(row.prompt, row.response, row.unwanted, kind=row.kind)
