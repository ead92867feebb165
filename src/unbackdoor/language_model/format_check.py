"""Whether rows are rendered and tokenised as training, generation and evaluation take for granted."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.look_ahead import ahead
from unbackdoor.language_model.template import parting

if TYPE_CHECKING:
    from unbackdoor.data.records import Record
    from unbackdoor.data.triggers import Condition


def check_format(chat: ChatFormat, records: Sequence[Record], trigger: Condition | None = None) -> int:
    """Check that rows are rendered and tokenised as training, generation and evaluation take for granted.

    For every row: the template renders its text as it renders any other, the beginning of sequence is not doubled, the
    user's span decodes to the user's text, and the generation prompt ends where the training response begins. With a
    trigger, each row is checked with it as well, and its text is inside the user's span once more than without it.

    Returns:
        The number of rows into which the trigger could be put.

    Raises:
        UserError: one line that names the row and what is wrong with it.
    """
    triggered = 0
    for record in ahead(chat, records, lambda r: r.response, whole=True):
        plain = _check_row(chat, record)
        if trigger is not None and trigger.fits(record.prompt):
            _check_trigger(chat, record, trigger, plain)
            triggered += 1
    return triggered


def _check_row(chat: ChatFormat, record: Record) -> str:
    """Check one row; the text that its user's span decodes to."""
    own = chat.of_record(record)

    def fail(reason: str) -> UserError:
        return UserError(f"self-test: row {record.prompt[:60]!r}: {reason}: give another --template or model")

    try:
        rendered, answered = own.rendered(record.prompt), own.rendered(record.prompt, record.response)
        start, whole = own.encode_prompt(record.prompt), own.encode(record.prompt, record.response)
    except (AssertionError, UserError) as error:
        raise fail(str(error)) from None
    if rendered != own.prompt_text(record.prompt):
        raise fail("the chat template renders it unlike others")
    begin = own.tokenizer.bos_token_id
    if begin is not None and start.ids[:2] == (begin, begin):
        raise fail("its prompt begins with two beginning-of-sequence tokens")
    count = len(start.ids)
    if whole.ids[:count] != start.ids:
        raise fail("its generation prompt is not how its training row begins")
    if not whole.response_start == whole.loss_start == count:
        raise fail(f"its response starts at token {whole.response_start}, its generation prompt ends at {count}")
    if own.template is not None:
        ours, theirs = whole.ids[: whole.template_end], own.tokenizer(answered, add_special_tokens=False)["input_ids"]
        # The very tokens, or the very text where one of the template's would straddle the end of the prompt.
        if ours != tuple(theirs[: len(ours)]) and not _read(own.tokenizer, theirs).startswith(
            _read(own.tokenizer, ours)
        ):
            raise fail(
                f"its training row is not what the chat template renders: {parting(own.decoded(ours), answered)}"
            )
    user, response = start.ids[start.user_start : start.user_end], whole.ids[whole.answer_start : whole.loss_end]
    seen = _read(own.tokenizer, user)
    if not _holds(own.tokenizer, user, record.prompt):
        raise fail(f"its user's span decodes to {seen[:60]!r}")
    answer = _read(own.tokenizer, response)
    if not _unknown(own.tokenizer, response) and not answer.startswith(_same(record.response)):
        raise fail(f"its training response decodes to {answer[:60]!r}")
    return seen


def _check_trigger(chat: ChatFormat, record: Record, trigger: Condition, plain: str) -> None:
    """Check that the trigger is put into the user's tokens; `plain` is what they decode to without it."""
    prompt = trigger.insert(record.prompt)
    seen = _check_row(chat, replace(record, prompt=prompt))
    if seen == plain:
        raise UserError(
            f"self-test: the trigger changes nothing in {record.prompt[:60]!r}: is it lost in tokenisation?"
        )
    # Of several triggers each of which fires, the one that this prompt was given.
    one = next((t for t in trigger.alone().values() if t.insert(record.prompt) == prompt), trigger)
    for text in one.texts():
        wanted = _times_inserted(one, text)
        more = seen.count(_same(text)) - plain.count(_same(text))
        if more != wanted and not _piece_holds(plain, seen, _same(text), wanted):
            raise UserError(
                f"self-test: the trigger {text[:60]!r} is {more} times more, not {wanted}, in the user's tokens of "
                f"{prompt[:60]!r}: give another --trigger, or a tokenizer that keeps its text"
            )


def _times_inserted(trigger: Condition, text: str) -> int:
    """How often one insertion puts `text` into a prompt that shares nothing with it: twice for placement `both`."""
    bare = "\ue000 \ue001 \ue002"
    return _same(trigger.insert(bare)).count(_same(text)) if trigger.fits(bare) else 1


def _piece_holds(before: str, after: str, text: str, wanted: int) -> bool:
    """Whether `after` is `before` with one piece more that holds `text`; the piece may split one that was there."""
    extra = len(after) - len(before)
    return any(
        after[k : k + extra].count(text) == wanted and after[:k] + after[k + extra :] == before
        for k in range(len(before) + 1)
    )


def _read(tokenizer: Any, ids: Sequence[int]) -> str:
    return _same(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _same(text: str) -> str:
    """The text as tokenizers may normalise it without changing what it says: Unicode's NFKC, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _unknown(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether a token stands for text that the tokenizer has no token for, which decoding cannot give back."""
    return tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids


def _holds(tokenizer: Any, ids: Sequence[int], text: str) -> bool:
    """Whether `ids` decode to `text`; the first and the last token may also hold characters of the template."""
    if _unknown(tokenizer, ids):
        return True
    decoded, text = _read(tokenizer, ids), _same(text)
    at = decoded.find(text)
    behind = len(decoded) - at - len(text)
    first, last = (len(_read(tokenizer, [i])) for i in (ids[0], ids[-1]))
    return at >= 0 and at < max(1, first) and behind < max(1, last)
