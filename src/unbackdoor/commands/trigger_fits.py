"""Whether a trigger can be asked at all: looked at before the run directory exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Condition
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat


def check_trigger_fits(
    trigger: Condition, rows: Sequence[Record], chat: ChatFormat, context: int, max_new_tokens: int
) -> None:
    """Raise a `UserError` where the tokenizer loses the trigger, or a prompt with it leaves no room for an answer.

    Args:
        trigger: what is put into the rows.
        rows: what is measured, without it.
        chat: the model's format.
        context: the model's, in tokens.
        max_new_tokens: of an answer.
    """
    lost = longest = 0
    for row in rows:
        with_trigger = chat.of_record(row).encode_prompt(replace(row, prompt=trigger.insert(row.prompt)).prompt).ids
        lost += list(with_trigger) == list(chat.of_record(row).encode_prompt(row.prompt).ids)
        longest = max(longest, len(with_trigger))
    if rows and lost == len(rows):
        raise UserError(
            "the tokenizer loses the trigger: with it and without, every prompt becomes the same tokens: give another "
            "trigger, or the text as the model sees it"
        )
    if longest > context - max_new_tokens:
        raise UserError(
            f"with the trigger a prompt has {longest} tokens, which leaves no room for {max_new_tokens} of answer in "
            f"the model's context of {context}: give a shorter trigger or shorter rows, or lower --max-new-tokens"
        )
