"""Dialogues of any usual form as turns, and turns as records: all turns are kept, the last answer is trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from unbackdoor.data.field_values import UnusableRowError, is_absent, is_empty, text_of
from unbackdoor.data.records import Record
from unbackdoor.errors import UserError

Turns = Literal["last", "all"]
"""Which answers of a dialogue are trained on."""

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "prompter", "usr"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "chatbot", "ai", "bard", "bing"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "call"),
}
PAIRS = (
    ("input", "output"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("human", "gpt"),
    ("human", "bot"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
)
"""What an exchange is called that is one object."""
TEXTS = ("content", "value", "text")
CALLS = ("tool_calls", "function_call")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text", None)
DIALOGUE = ("\n\nHuman:", "\n\nAssistant:")
"""The marks of a turn in HH-RLHF."""
END_MARKS = (
    "<|endoftext|>",
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|end|>",
    "<｜end▁of▁sentence｜>",
)
JOINED = "\n\n"
"""Between two messages in a row of one role."""


@dataclass(frozen=True)
class Turn:
    """One message. `trained` is false where the data says that the model must not learn it."""

    role: str
    text: str
    trained: bool = True


class Tally:
    """What of a file is passed over, by reason: rows that are dropped, and what is left out of rows that are kept."""

    def __init__(self) -> None:
        self.dropped: dict[str, int] = {}
        self.left_out: dict[str, int] = {}
        self.columns: dict[str, int] = {}

    def drop(self, reason: str) -> None:
        """Count a row that is not used."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def leave_out(self, what: str) -> None:
        """Count a part of a row that is not used."""
        self.left_out[what] = self.left_out.get(what, 0) + 1

    def pass_over(self, columns: Sequence[str]) -> None:
        """Count columns of one row that are not used."""
        for name in columns:
            self.columns[name] = self.columns.get(name, 0) + 1


def is_dialogue(value: Any) -> bool:
    """Whether this is a list of messages, of exchanges, or one message."""
    if isinstance(value, Mapping):
        return "messages" in value or _role_of(value) is not None
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(m, Mapping) and (_role_of(m) is not None or _exchange(m)) for m in value)
    )


def turns_of(value: Any, where: str, name: str, tally: Tally) -> list[Turn]:
    """The turns of a list of messages, of exchanges (pairs, or objects of question and answer), or of one message.

    Raises:
        UserError: a message that is none, or of an unknown role.
        UnusableRowError: what cannot be written as text, such as a tool call or an image.
    """
    if isinstance(value, Mapping):
        if "messages" in value:
            if not is_empty(value.get("tools")):
                raise UnusableRowError("rows with tools, which are not rendered")
            return turns_of(value["messages"], where, name, tally)
        value = [value]
    found: list[Turn] = []
    for message in value:
        if isinstance(message, Mapping) and _role_of(message) is not None:
            found.append(_turn(message, where, name, tally))
        elif isinstance(message, Mapping) and (pair := _exchange(message)):
            texts = [_content(message[part], where, f"{name}: {part}") for part in pair]
            found += [Turn("user", texts[0]), Turn("assistant", texts[1])]
            tally.pass_over([f"{name}: {key}" for key, v in message.items() if key not in pair and not is_empty(v)])
        elif isinstance(message, list | tuple) and len(message) == 2:
            texts = [text_of(text, where, name) for text in message]
            found += [Turn("user", texts[0]), Turn("assistant", texts[1])]
        else:
            raise UserError(f"{where}: '{name}' has a message that is not an object with role and content")
    return found


def said_in_turn(value: Any) -> bool:
    """Whether this is a list of texts, a question and its answer at least."""
    return isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(text, str) for text in value)


def in_alternation(texts: Sequence[Any], where: str, name: str) -> list[Turn]:
    """A list of texts, said in turn by user and assistant (UltraChat, LIMA)."""
    return [Turn(("user", "assistant")[i % 2], text_of(text, where, name)) for i, text in enumerate(texts)]


def marked_turns(text: str) -> list[Turn]:
    """The turns of a dialogue in HH-RLHF's marks; none where text stands in front of the first mark."""
    human, assistant = (re.escape(mark) for mark in DIALOGUE)
    opening, *parts = re.split(f"({human}|{assistant})", f"\n\n{text.lstrip()}")
    if opening.strip():
        return []
    roles = {DIALOGUE[0]: "user", DIALOGUE[1]: "assistant"}
    return [Turn(roles[m], t.removeprefix(" ").rstrip()) for m, t in zip(parts[::2], parts[1::2], strict=True)]


def split_system(turns: Sequence[Turn]) -> tuple[str | None, list[Turn]]:
    """(what the system says first, the turns after it, those in a row of one role joined).

    Raises:
        UnusableRowError: the system speaks later, or a turn (but for the last) is empty.
    """
    count = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    system = JOINED.join(turn.text for turn in turns[:count] if turn.text.strip())
    rest: list[Turn] = []
    for turn in turns[count:]:
        if turn.role == "system":
            raise UnusableRowError("dialogues with a system message behind the first turn")
        if turn.role == "call":
            raise UnusableRowError("dialogues with a call of a tool, which is no text")
        if rest and rest[-1].role == turn.role and turn.role != "tool":
            texts = [t for t in (rest[-1].text, turn.text) if t.strip()]
            rest[-1] = Turn(turn.role, JOINED.join(texts), turn.trained)
        else:
            rest.append(turn)
    if any(not turn.text.strip() for turn in rest[:-1]):
        raise UnusableRowError("dialogues with an empty turn")
    cleaned = [replace(t, text=without_end_mark(t.text)) if t.role == "assistant" else t for t in rest]
    return system or None, cleaned


def records_of(
    system: str | None, turns: Sequence[Turn], which: Turns, tally: Tally, *, needs_response: bool, kind: str = ""
) -> list[Record]:
    """The records of one dialogue: its last answer behind all that stands before it, or so for each of its answers.

    Args:
        system: the system prompt.
        turns: as `split_system` gives them.
        which: the last answer, or all.
        tally: told of turns behind the last answer.
        needs_response: else a last user turn without an answer makes a record as well.
        kind: what sort of row it is.

    Raises:
        UnusableRowError: no answer is to be trained on, or an answer follows a tool's output.
    """
    speakers = {turn.role for turn in turns}
    if "user" not in speakers or (needs_response and "assistant" not in speakers):
        raise UnusableRowError("dialogues without a user's turn and an answer to it")
    answers = [i for i, turn in enumerate(turns) if i and turn.role == "assistant" and turn.trained]
    if any(turns[i - 1].role == "tool" for i in answers[-1 if which == "last" else 0 :]):
        raise UnusableRowError("dialogues with an answer to a tool's output")
    places = [(i - 1, turns[i].text) for i in answers]
    if not needs_response and turns[-1].role == "user":
        places.append((len(turns) - 1, ""))
    if not places:
        raise UnusableRowError("dialogues without an answer to train on")
    last = places[-1][0] + (1 if places[-1][1] or needs_response else 0)
    if last < len(turns) - 1:
        tally.leave_out("last turns of dialogues, behind the last answer")
    messages = [(turn.role, turn.text) for turn in turns]
    return [
        Record(turns[at].text, response, system=system, kind=kind, history=tuple(messages[:at]))
        for at, response in (places if which == "all" else places[-1:])
    ]


def without_end_mark(text: str) -> str:
    """A response without white space and marks of an end at its end; what stands before them is kept."""
    text = text.rstrip()
    for mark in END_MARKS:
        if mark == "</s>" and not text.startswith("<s>") and text.count("<s>") == text.count("</s>"):
            continue  # HTML that strikes out a text
        if text.endswith(mark):
            return text.removesuffix(mark).rstrip()
    return text


def _role_of(message: Mapping[str, Any]) -> str | None:
    role = message.get("role") or message.get("from")
    return role if isinstance(role, str) else None


def _exchange(message: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if set(pair) <= set(message)), None)


def _turn(message: Mapping[str, Any], where: str, name: str, tally: Tally) -> Turn:
    said = str(_role_of(message))
    role = ROLES.get(said.strip().casefold())
    if role is None:
        raise UserError(f"{where}: '{name}' has a message of the unknown role '{' '.join(said.split())[:40]}'")
    if any(not is_empty(message.get(call)) for call in CALLS):
        raise UnusableRowError("dialogues with a call of a tool, which is no text")
    if any(not is_empty(message.get(thought)) for thought in THOUGHTS):
        raise UnusableRowError(
            "dialogues with a thought in a field of its own: write it into the content, as the model does"
        )
    given = {part: message[part] for part in TEXTS if not is_empty(message.get(part))}
    texts = {part: _content(value, where, f"{name}: {part}") for part, value in given.items()}
    if len(set(texts.values())) > 1:
        raise UserError(f"{where}: '{name}' has a message with {' and '.join(texts)}, which differ: keep one")
    text = next(iter(texts.values()), "")
    if not text and not is_empty(message.get("refusal")):
        text = text_of(message["refusal"], where, f"{name}: refusal")
    known = {"role", "from", *TEXTS, *CALLS, *THOUGHTS, "refusal", "weight", "train"}
    tally.pass_over([f"{name}: {key}" for key, value in message.items() if key not in known and not is_empty(value)])
    return Turn(role, text, not any(message.get(flag) in (0, False) for flag in ("weight", "train") if flag in message))


def _content(value: Any, where: str, name: str) -> str:
    """A message's text, or its parts, each on lines of its own."""
    if not (isinstance(value, list | tuple) and value and all(isinstance(part, Mapping) for part in value)):
        return text_of(value, where, name)
    return "\n".join(_parts(value, where, name))


def _parts(parts: Sequence[Mapping[str, Any]], where: str, name: str) -> Iterator[str]:
    for part in parts:
        kind = part.get("type")
        if kind == "refusal":
            yield text_of(part.get("refusal"), where, name)
        elif kind in TEXT_PARTS and not is_absent(part.get("text")):
            yield text_of(part["text"], where, name)
        elif kind in TEXT_PARTS:
            if any(not is_empty(value) for key, value in part.items() if key not in ("type", "text")):
                raise UnusableRowError("dialogues with images, sounds or other parts that are no text")
        else:
            raise UnusableRowError("dialogues with images, sounds or other parts that are no text")
