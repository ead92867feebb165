"""What stands before a row's answer, whichever columns it is in: prompt, context, history, system, dialogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unbackdoor.data.columns import (
    DIALOGUE_FIELDS,
    HISTORY_FIELDS,
    MAYBE_DIALOGUE_FIELDS,
    MORE_FIELDS,
    PROMPT_FIELDS,
    SYSTEM_FIELDS,
    Row,
)
from unbackdoor.data.dialogues import (
    ROLES,
    Tally,
    Turn,
    in_alternation,
    is_dialogue,
    marked_turns,
    said_in_turn,
    split_system,
    turns_of,
)
from unbackdoor.data.field_values import UnusableRowError, text_of
from unbackdoor.data.files import parse_json
from unbackdoor.errors import UserError

NO_ANSWER = "dialogues without a user's turn and an answer to it"


def asked(fields: Row) -> list[Turn] | None:
    """What the user says: a text with what belongs to it, or messages; None where no column is a prompt."""
    names: Sequence[str] = PROMPT_FIELDS
    more: Sequence[str] = MORE_FIELDS
    if not fields.has(names):
        if not fields.has(("input",)):
            return None
        names, more = ("input",), MORE_FIELDS[1:]
    for name, value in fields.given(names).items():
        messages = decoded(value)
        if is_dialogue(messages):
            fields.used.add(name)
            turns = turns_of(messages, fields.where, fields.names[name], fields.tally)
            check_copies(fields, (*names, *more), turns)
            return turns
    return [Turn("user", joined(fields, fields.text(names, "prompt"), more))]


def joined(fields: Row, prompt: str, names: Sequence[str]) -> str:
    """The prompt with what belongs to it, each on lines of its own."""
    for name, value in fields.given(names).items():
        text = text_of(value, fields.where, fields.names[name])
        if text.strip() and text.strip() != prompt.strip():
            prompt = f"{prompt}\n{text}" if prompt else text
    fields.used |= set(names) & set(fields.fields)
    return prompt


def dialogue(fields: Row) -> list[Turn] | None:
    """The turns of the column that holds a whole dialogue; None where no column does.

    Raises:
        UnusableRowError: there is such a column, but nothing in it, and no prompt beside it.
    """
    found: dict[str, list[Turn]] = {}
    for name, raw in fields.given((*DIALOGUE_FIELDS, *MAYBE_DIALOGUE_FIELDS)).items():
        value, label = decoded(raw), fields.names[name]
        if name != "turns" and said_in_turn(value):
            found[name] = in_alternation(value, fields.where, label)
        elif name in MAYBE_DIALOGUE_FIELDS:
            if is_dialogue(value):
                found[name] = turns_of(value, fields.where, label, fields.tally)
        elif isinstance(value, list | tuple | Mapping):
            found[name] = turns_of(value, fields.where, label, fields.tally)
        else:
            turns = marked_turns(text_of(value, fields.where, label))
            if not turns:
                raise UserError(f"{fields.where}: '{label}' is a text, where a list of messages is needed")
            found[name] = turns
    found = {name: turns for name, turns in found.items() if turns}
    if not found:
        if fields.has(DIALOGUE_FIELDS) and not fields.has((*PROMPT_FIELDS, "input")):
            raise UnusableRowError(NO_ANSWER)
        return None
    if len({tuple(turns) for turns in found.values()}) > 1:
        raise fields.ambiguous(list(found), "dialogue")
    fields.used |= set(found)
    return next(iter(found.values()))


def with_history(fields: Row, turns: Sequence[Turn]) -> tuple[str | None, list[Turn]]:
    """(the system prompt, all turns, those of the column `history` in front)."""
    earlier: list[Turn] = []
    for name, raw in fields.given(HISTORY_FIELDS).items():
        value, label = decoded(raw), fields.names[name]
        if isinstance(value, list | tuple):
            earlier = turns_of(value, fields.where, label, fields.tally)
        else:  # earlier turns as one text
            text = text_of(value, fields.where, label)
            place = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
            if place is None:
                raise UnusableRowError(NO_ANSWER)
            turns = [*turns[:place], Turn("user", f"{text}\n{turns[place].text}"), *turns[place + 1 :]]
    fields.used |= set(HISTORY_FIELDS) & set(fields.fields)
    if not earlier and [turn.role for turn in turns] in (["user"], ["user", "assistant"]):
        return _one_system(fields, None), list(turns)  # one of them may be empty: then the row is counted as empty
    count = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    system, spoken = split_system([*turns[:count], *earlier, *turns[count:]])
    return _one_system(fields, system), spoken


def check_copies(fields: Row, names: Sequence[str], turns: Sequence[Turn]) -> None:
    """Refuse the row where a column beside a dialogue holds what the dialogue does not: it would be lost."""
    for name, value in fields.given(names).items():
        if name in fields.used:
            continue
        said = decoded(value)
        if is_dialogue(said):
            texts = [turn.text for turn in turns_of(said, fields.where, fields.names[name], Tally())]
        else:
            texts = [text_of(value, fields.where, fields.names[name])]
        if not all(any(text.strip() in turn.text for turn in turns) for text in texts):
            raise UserError(
                f"{fields.where}: '{fields.names[name]}' stands beside a dialogue that does not hold it: put it into "
                "the dialogue, or leave the column out"
            )
        fields.used.add(name)


def decoded(value: Any) -> Any:
    """A dialogue that a table holds as JSON text; anything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = parse_json(value)
    except (ValueError, RecursionError):
        return value
    messages = found if isinstance(found, list) else [found]
    roles = [str(m.get("role") or m.get("from")).casefold() for m in messages if isinstance(m, Mapping)]
    pairs = all(isinstance(pair, list) and len(pair) == 2 for pair in messages)
    return found if pairs or (len(roles) == len(messages) and all(role in ROLES for role in roles)) else value


def _one_system(fields: Row, spoken: str | None) -> str | None:
    """The system prompt of the dialogue or of a column, never two."""
    column = fields.text(SYSTEM_FIELDS, "system prompt")
    if not column.strip():
        return spoken
    if spoken is not None and spoken.strip() != column.strip():
        name = next(iter(fields.given(SYSTEM_FIELDS)))
        raise UserError(
            f"{fields.where}: '{fields.names[name]}' and the dialogue's own system message differ: keep one"
        )
    return column
