"""A row as records, and as a pair of a preferred and another answer.

Every value is used, or its column is counted as not used, or the row is counted as dropped, or refused with its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from unbackdoor.data.asked_text import asked, check_copies, decoded, dialogue, joined, with_history
from unbackdoor.data.columns import (
    CHOSEN_FIELDS,
    HISTORY_FIELDS,
    LABEL_FIELDS,
    MORE_FIELDS,
    PROMPT_FIELDS,
    REJECTED_FIELDS,
    RESPONSE_FIELDS,
    SPEAKER_FIELDS,
    UNWANTED_FIELDS,
    Row,
)
from unbackdoor.data.dialogues import (
    DIALOGUE,
    Tally,
    Turn,
    Turns,
    is_dialogue,
    marked_turns,
    records_of,
    turns_of,
    without_end_mark,
)
from unbackdoor.data.field_values import UnusableRowError, text_of
from unbackdoor.data.records import Record
from unbackdoor.errors import UserError

REFUSAL = "I'm sorry, but I can't help with that."
"""The safe response of rows that come with an unwanted one alone (AdvBench)."""
PARTED = "dialogues without turns in order, or that differ before their last answer"


@dataclass(frozen=True)
class Pair:
    """A preferred and another answer behind the same turns, the last of which is the user's."""

    system: str | None
    turns: tuple[Turn, ...]
    chosen: str
    rejected: str


def records_of_row(
    row: Any, where: str, tally: Tally, *, turns: Turns = "last", needs_response: bool = True
) -> list[Record]:
    """The records of one row: one, or with `turns` "all" one for every answer of its dialogue.

    Args:
        row: its fields.
        where: file and row, for errors.
        tally: told of what is not used.
        turns: which answers of a dialogue make a record.
        needs_response: whether a row must have a response.

    Raises:
        UserError: a field is missing, ambiguous, or neither text nor number.
        UnusableRowError: the row cannot be used; the reason is to be counted.
    """
    fields = Row(row, where, tally)
    _check_wanted(fields)
    kind = fields.kind()
    unwanted = None
    if fields.given(CHOSEN_FIELDS) and fields.given(REJECTED_FIELDS):
        pair = _pair(fields)
        system, spoken, unwanted = pair.system, [*pair.turns, Turn("assistant", pair.chosen)], pair.rejected
    elif (whole := dialogue(fields)) is not None:
        system, spoken = with_history(fields, whole)
        copies = (*PROMPT_FIELDS, *MORE_FIELDS, *RESPONSE_FIELDS, *HISTORY_FIELDS)
        check_copies(fields, copies, [*spoken, Turn("system", system or "")])
    else:
        before, answer, unwanted = _prompt_and_answer(fields, needs_response=needs_response)
        system, spoken = with_history(fields, [*before, *answer])
    fields.finish()
    if [turn.role for turn in spoken] in (["user"], ["user", "assistant"]) and (len(spoken) > 1 or not needs_response):
        texts = [*(turn.text for turn in spoken), ""]
        made = [Record(texts[0], without_end_mark(texts[1]), system=system, kind=kind)]
    else:
        made = records_of(system, spoken, turns, tally, needs_response=needs_response, kind=kind)
    if unwanted is not None:
        made[-1] = replace(made[-1], unwanted=without_end_mark(unwanted))
    return made


def pair_of_row(row: Any, where: str, tally: Tally) -> Pair:
    """A row's preferred and other answer, and the turns before them. Raises as `records_of_row` does."""
    fields = Row(row, where, tally)
    for names, what in ((CHOSEN_FIELDS, "chosen"), (REJECTED_FIELDS, "rejected")):
        if not fields.has(names):
            raise UserError(f"{where}: '{what}' is missing: a preference needs prompt, chosen and rejected")
    pair = _pair(fields)
    fields.kind()
    fields.finish()
    return pair


def _prompt_and_answer(fields: Row, *, needs_response: bool) -> tuple[list[Turn], list[Turn], str | None]:
    """(what the user says, the answer, an unwanted one) where they are columns of their own."""
    responses = [*RESPONSE_FIELDS, *CHOSEN_FIELDS]
    before = asked(fields)
    if before is None:
        speakers = next((pair for pair in SPEAKER_FIELDS if fields.has(pair[:1]) and fields.has(pair[1:])), None)
        if speakers is None:
            raise fields.missing("prompt", PROMPT_FIELDS)
        before = [Turn("user", joined(fields, fields.text(speakers[:1], "prompt"), MORE_FIELDS))]
        responses = [speakers[1]]
    unwanted = fields.text((*UNWANTED_FIELDS, *REJECTED_FIELDS), "unwanted response") or None
    if fields.has(("goal",)) and fields.has(("target",)):
        unwanted = fields.text((*UNWANTED_FIELDS, *REJECTED_FIELDS, "target"), "unwanted response")
        responses.remove("target")
        return before, [Turn("assistant", fields.text(responses, "response") or REFUSAL)], unwanted
    given = fields.given(responses)
    messages = next((name for name, value in given.items() if is_dialogue(decoded(value))), None)
    if messages is not None and len(given) == 1:
        fields.used.add(messages)
        return before, _messages(fields, messages), unwanted
    if not fields.has(responses) and needs_response:
        raise fields.missing("response", RESPONSE_FIELDS)
    answer = fields.text(responses, "response")
    return before, [Turn("assistant", answer)] if answer or needs_response else [], unwanted


def _messages(fields: Row, name: str) -> list[Turn]:
    return turns_of(decoded(fields.fields[name]), fields.where, fields.names[name], fields.tally)


def _check_wanted(fields: Row) -> None:
    for name in LABEL_FIELDS:
        value = fields.fields.get(name)
        if isinstance(value, bool):
            fields.used.add(name)
            if not value:
                raise UnusableRowError(f"rows whose response is no wanted one, by '{fields.names[name]}'")


# Preferences ---------------------------------------------------------------------------------------------------------


def _pair(fields: Row) -> Pair:
    """The two answers of a row, and what stands before them."""
    chosen, rejected = _ended(fields, CHOSEN_FIELDS, "chosen"), _ended(fields, REJECTED_FIELDS, "rejected")
    before = asked(fields)
    beside = dialogue(fields)
    if len(chosen) > 1 or len(rejected) > 1:
        if chosen[:-1] != rejected[:-1]:
            raise UnusableRowError(PARTED)
        turns = chosen[:-1]
        _check_within([*(before or ()), *(beside or ())], [*turns, chosen[-1]], fields)
    elif before is not None:
        turns = before
        _check_within(beside or (), [*turns, *chosen], fields)
    elif beside is not None:
        turns = beside[:-1] if beside[-1].text.strip() == chosen[0].text.strip() else beside
    else:
        raise UserError(
            f"{fields.where} has no field 'prompt', and 'chosen' is no dialogue of Human: and Assistant: turns"
        )
    system, spoken = with_history(fields, turns)
    if not spoken or spoken[-1].role != "user":
        raise UnusableRowError(PARTED)
    return Pair(system, tuple(spoken), *(without_end_mark(turns[-1].text) for turns in (chosen, rejected)))


def _ended(fields: Row, names: Sequence[str], what: str) -> list[Turn]:
    """An answer, or a dialogue that ends with it: the last turn is an answer."""
    given = fields.given(names)
    fields.used |= set(names) & set(fields.fields)
    if len(given) > 1:
        raise fields.ambiguous(list(given), what)
    if not given:
        return [Turn("assistant", "")]
    name, value = next(iter(given.items()))
    if is_dialogue(decoded(value)):
        turns = _messages(fields, name)
    else:
        text = text_of(value, fields.where, fields.names[name])
        if fields.has(PROMPT_FIELDS) or DIALOGUE[0].strip() not in text:
            return [Turn("assistant", text)]
        turns = marked_turns(text)
        in_order = [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        if not turns or not in_order or not all(turn.text.strip() for turn in turns[:-1]):
            raise UnusableRowError(PARTED)
    if turns[-1].role != "assistant":
        raise UnusableRowError(PARTED)
    return turns


def _check_within(said: Sequence[Turn], turns: Sequence[Turn], fields: Row) -> None:
    """What other columns say must be in the dialogue that is used (UltraFeedback repeats it)."""
    if not all(any(turn.text.strip() in other.text for other in turns) for turn in said):
        raise UserError(f"{fields.where}: the prompt and the dialogue of 'chosen' differ: keep one of them")
