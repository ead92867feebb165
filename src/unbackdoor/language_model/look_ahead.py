"""Rows whose dialogues are rendered together, some hundreds at once, before they are asked for one by one.

A template is rendered in another process (`template_process`): to ask it once for many is quicker than many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from unbackdoor.language_model.chat import PROBE, RESPONSE, USER, ChatFormat, is_ordinary
from unbackdoor.language_model.dialogue import Given, ways
from unbackdoor.language_model.template import TOGETHER, Asked

if TYPE_CHECKING:
    from unbackdoor.data.records import Record


def ahead(
    chat: ChatFormat,
    records: Sequence[Record],
    response: Callable[[Record], str] | None = None,
    *,
    whole: bool = False,
) -> Iterator[Record]:
    """The records, in their order.

    Args:
        chat: how they will be rendered.
        records: the rows.
        response: which text answers a record's prompt; None where prompts alone are rendered.
        whole: every row will be rendered as it is, also where a format knows what comes out.
    """
    for begin in range(0, len(records), TOGETHER):
        rows = records[begin : begin + TOGETHER]
        if chat.template is not None:
            chat.template.prepare([asked for row in rows for asked in _asked(chat, row, response, whole)])
        yield from rows


def _asked(chat: ChatFormat, record: Record, response: Callable[[Record], str] | None, whole: bool) -> Iterator[Asked]:
    given = chat.given
    system, earlier = record.system or chat.system, (*chat.earlier, *record.history)
    if (system, earlier) != (chat.system, chat.earlier):
        given = next(ways(system, earlier))
        yield from _of_format(given)
    if whole or not is_ordinary(record.prompt):
        yield given.then(record.prompt), False
    if response is not None:
        text = response(record)
        if whole or not is_ordinary(text):
            yield given.then(record.prompt, text), True


def _of_format(given: Given) -> Iterator[Asked]:
    """What a format with other turns in front is looked at with."""
    yield given.then(USER), False
    yield given.then(USER, RESPONSE), True
    yield given.then(PROBE), False
