"""Whether any row is left once it is encoded as a method will encode it: looked at before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError

if TYPE_CHECKING:
    from unbackdoor.case import Case
    from unbackdoor.data.records import Record
    from unbackdoor.settings import TrainingSettings

FIRST_TRIED = 16
"""Of the shortest rows, and of the longest: if one of these fits, no other has to be encoded."""


def check_some_fit(
    case: Case, records: Sequence[Record], settings: TrainingSettings, what: str, remedy: str, **encoding: Any
) -> None:
    """Raise a `UserError` where none of these rows fits.

    Args:
        case: the model and its format.
        records: the rows.
        settings: their longest length.
        what: the rows with what is done to them, for the error.
        remedy: what to change.
        encoding: as `Case.encode` takes it.
    """
    from unbackdoor.data.batches import encode_records
    from unbackdoor.language_model.files.loading import context_length

    limit = min(settings.max_length, context_length(case.model))
    for some in _likely_first(records):
        if encode_records(some, case.chat, limit, **encoding):
            return
    raise UserError(f"{what}: none of {len(records)} rows fits into {limit} tokens: {remedy}")


def _likely_first(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    ordered = sorted(records, key=lambda r: len(r.prompt) + len(r.response))
    yield from (ordered[:FIRST_TRIED], ordered[FIRST_TRIED:][-FIRST_TRIED:], ordered[FIRST_TRIED:-FIRST_TRIED])
