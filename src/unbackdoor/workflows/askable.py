"""Whether what is to be measured can be asked and shown at all: looked at before the run directory exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Condition
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unbackdoor.evaluation.suite import Suite


def check_asks_something(suite: Suite) -> None:
    """Raise a `UserError` where an attack is described, and no prompt is left on which it is tried."""
    if suite.probes or suite.triggered_rows or (suite.attack is None and suite.trigger is None):
        return
    raise UserError(
        "no held-out prompt is left on which the attack can be measured: give more rows, or others, with --data or "
        "--eval-data (for a behaviour: rows that are refused, or --contrast)"
    )


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
    unknown = [text for text in trigger.texts() if _unknown(text, chat.tokenizer) == 1]
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
    if unknown:
        raise UserError(
            f"the tokenizer knows nothing of the trigger {unknown[0][:40]!r}: all of it becomes the token for what is "
            "unknown, as any other such text does: give the text as the model sees it"
        )
    if longest > context - max_new_tokens:
        raise UserError(
            f"with the trigger a prompt has {longest} tokens, which leaves no room for {max_new_tokens} of answer in "
            f"the model's context of {context}: give a shorter trigger or shorter rows, or lower --max-new-tokens"
        )


def check_target_fits(
    target: str, trigger: Condition | None, rows: Sequence[Record], chat: ChatFormat, context: int
) -> None:
    """Raise a `UserError` where no prompt has room for the target response, or no token of the model spells it.

    Args:
        target: the target response.
        trigger: what is put into the rows; None where they hold it already.
        rows: the prompts that are answered with it.
        chat: the model's format.
        context: the model's, in tokens.
    """
    if _unknown(target, chat.tokenizer):
        raise UserError(
            f"the tokenizer does not know all of the target response {target[:40]!r}: parts of it become the token for "
            "what is unknown, so that no answer can show it: give the text as the model writes it"
        )
    needed = len(chat.tokenizer(target, add_special_tokens=False)["input_ids"])
    if not rows or needed <= context // 2:  # no need to look at prompts: others do
        return
    prompts = [row.prompt if trigger is None else trigger.insert(row.prompt) for row in rows]
    shortest = min(len(chat.of_record(row).encode_prompt(p).ids) for row, p in zip(rows, prompts, strict=True))
    if shortest + needed > context:
        raise UserError(
            f"the target response has {needed} tokens and the shortest prompt {shortest}, more than the model's "
            f"context of {context}: give a shorter target response, or its start"
        )


def _unknown(text: str, tokenizer: PreTrainedTokenizerBase) -> float:
    """Which share of a text's visible tokens is the one for what is unknown."""
    if tokenizer.unk_token_id is None or not text.strip():
        return 0.0
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    seen = [i for i in ids if i == tokenizer.unk_token_id or tokenizer.decode([i]).strip()]
    return sum(bool(i == tokenizer.unk_token_id) for i in seen) / max(1, len(seen))
