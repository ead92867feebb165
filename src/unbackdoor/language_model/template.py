"""A chat template as the tokenizer runs it: a program of the model's author, rendered and never imitated.

Here is what a template is asked, and how its answer is read: which text it puts around a turn, with which token it ends
one, and which day it believes it is.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = tuple[str, str]
"""A role (`system`, `user`, `assistant`, `tool`) and a text."""

# A string literal with a percent sign and no brace in it: what a template may ask of the calendar. Looked for from
# every quotation mark, since one that closes a literal looks like one that opens the next.
_FORMAT = re.compile(r"""(?=(['"])([^'"{}\n]*%[^'"{}\n]*)\1)""")

_SHOWN = 70
"""Characters of a rendering that an error shows from where two part."""


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template with what is fixed about it for a run.

    Args:
        tokenizer: it renders, by `apply_chat_template`.
        name: `chat`, the name of one of several templates, or a file, for errors.
        source: the template's text; None for the tokenizer's own.
        parts: every content is given as a list of parts (Llava's templates take no plain text).
        date: the day, YYYY-MM-DD, that the template is told; None for today.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str | None = None
    parts: bool = False
    date: str | None = None

    def __call__(self, messages: Sequence[Message], *, answered: bool = False) -> str:
        """The dialogue as text: up to where the model answers or, `answered`, with its last answer.

        Raises:
            UserError: the template fails on it. One line, with the template's own reason.
        """
        turns = [{"role": role, "content": self._content(text)} for role, text in messages]
        source, more = self._dated()
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, chat_template=source, tokenize=False, add_generation_prompt=not answered, **more
                )
            )
        except Exception as error:  # the template is a program from the model's author: anything can come out of it
            shown = "".join(c for c in " ".join(str(error).split()) if c.isprintable())
            raise UserError(f"the chat template fails: {shown[:200] or type(error).__name__}") from error

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self.parts else text

    @property
    def asks_the_date(self) -> bool:
        """Whether what it renders depends on the day."""
        return "strftime_now" in self._text()

    def _text(self) -> str:
        own = self.source if self.source is not None else self.tokenizer.chat_template
        if isinstance(own, dict):  # several by name
            own = own.get("default", "")
        return str(own or "")

    def _dated(self) -> tuple[str | None, dict[str, Any]]:
        """The source with its day fixed, and what else the template is given.

        transformers offers `strftime_now`, which reads the clock at every rendering. A macro of that name stands before
        the template instead; it knows every format that the source spells out.
        """
        text, more = self._text(), dict[str, Any]()
        if self.date is not None and "date_string" in text:  # Llama 3.1 takes its day so, and has a fixed one otherwise
            more["date_string"] = _day(self.date).strftime("%d %b %Y")
        if not self.asks_the_date:
            return self.source, more
        day = _day(self.date)
        formats = sorted({form for _, form in _FORMAT.findall(text)} | {"%Y-%m-%d", "%d %b %Y"})
        known = ", ".join(f"{_quoted(f)}: {_quoted(day.strftime(f))}" for f in formats)
        # The line break is not rendered: transformers drops the first one behind a block.
        macro = f"{{%- macro strftime_now(format) -%}}{{{{- {{{known}}}[format] -}}}}{{%- endmacro %}}\n"
        return macro + text, more


def _day(date: str | None) -> datetime.datetime:
    if date is None:
        return datetime.datetime.now()
    try:
        return datetime.datetime.strptime(date, "%Y-%m-%d")
    except ValueError:
        raise UserError(f"--date '{date[:40]}' is no day: give it as YYYY-MM-DD") from None


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def end_of_turn(tokenizer: PreTrainedTokenizerBase, after: str) -> tuple[str, tuple[int, ...]]:
    """With what a template ends an answer, of the text that it writes behind one.

    It is everything up to the first token of the tokenizer's own vocabulary of marks, with those that follow it
    directly. Behind it stand white space, an end of the whole text (Phi-3) or the next turn's header: none of these is
    generated as a part of the answer.

    Returns:
        The text up to there, and the marks' ids. Without any mark: the whole text, and no id.
    """
    marks = _marks(tokenizer)
    if not marks:
        return after, ()
    found = re.search("(?:" + "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)) + ")+", after)
    if found is None:
        return after, ()
    ids = tokenizer(found[0], add_special_tokens=False, verbose=False)["input_ids"]
    own = set(marks.values())
    return after[: found.end()], tuple(dict.fromkeys(i for i in ids if i in own))


def _marks(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text → id of the tokens that no ordinary text is split into: special ones and others that were added."""
    marks = {str(token.content): int(i) for i, token in tokenizer.added_tokens_decoder.items()}
    for text in tokenizer.all_special_tokens:
        marks.setdefault(str(text), int(tokenizer.convert_tokens_to_ids(text)))
    return {text: i for text, i in marks.items() if text.strip()}


def parting(one: str, other: str) -> str:
    """Where two renderings part, both of them shown in one line."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    begin = max(0, same - 20)
    return f"{one[begin : begin + _SHOWN]!r} against {other[begin : begin + _SHOWN]!r}"
