"""A chat template as the tokenizer runs it: a program of the model's author, rendered and never imitated.

Here is what a template is asked, and how its answer is read: which text it puts around a turn, with which token it ends
one, and which day it believes it is.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError
from unbackdoor.language_model.template_process import TemplateError, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = tuple[str, str]
"""A role (`system`, `user`, `assistant`, `tool`) and a text."""

Asked = tuple[tuple[Message, ...], bool]
"""A dialogue, and whether it ends with its answer."""

TOGETHER, MOST_READY = 256, 8 * 2**20
"""Dialogues that are rendered at once, and characters of renderings that are kept until they are asked for."""

_CLOCK = """{%%- macro strftime_now(format) -%%}
{%%- set day = %s -%%}
{%%- for piece in format.replace('%%%%', '\0').split('%%') -%%}
{%%- set asked = '' if loop.first else piece[:2] if piece[:1] == '-' else piece[:1] -%%}
{%%- if not loop.first and asked not in day -%%}{{- raise_exception('no date is written %%' ~ piece) -}}{%%- endif -%%}
{{- day.get(asked, '') ~ piece[asked | length:].replace('\0', '%%') -}}
{%%- endfor -%%}
{%%- endmacro %%}
"""
"""A clock that stands still, in the language of templates: each directive of `strftime` is looked up by its letter."""

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

    Raises:
        UserError: the date is none.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str | None = None
    parts: bool = False
    date: str | None = None
    today: datetime.date = field(default_factory=datetime.date.today)
    """What the template is told where no date is given: the same however long a run takes."""
    _ready: dict[Asked, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Renderings that were made together, before they are asked for, and the last one that was not among them: to look
    at a format is to ask for one of them twice in a row."""

    def __post_init__(self) -> None:
        if self.date is not None:
            _day(self.date)

    def __call__(self, messages: Sequence[Message], *, answered: bool = False) -> str:
        """The dialogue as text: up to where the model answers or, `answered`, with its last answer.

        Raises:
            UserError: the template fails on it. One line, with the template's own reason.
        """
        asked = (tuple(messages), answered)
        if asked in self._ready:
            return self._ready[asked]
        try:
            (text,) = self._rendered([asked])
            if isinstance(text, TemplateError):
                raise text
        except TemplateError as error:
            shown = "".join(c for c in " ".join(str(error).split()) if c.isprintable())
            raise UserError(f"the chat template fails: {shown[:200].rstrip('.')}") from error
        self._keep({asked: text})
        return text

    def prepare(self, asked: Sequence[Asked]) -> None:
        """Render these dialogues together, which is quicker. On what fails, it fails where that is asked for."""
        new = [one for one in dict.fromkeys(asked) if one not in self._ready]
        with contextlib.suppress(TemplateError):
            for begin in range(0, len(new), TOGETHER):
                batch = new[begin : begin + TOGETHER]
                texts = zip(batch, self._rendered(batch), strict=False)  # fewer, where they are long
                self._keep({one: text for one, text in texts if isinstance(text, str)})

    def _keep(self, texts: dict[Asked, str]) -> None:
        if sum(map(len, self._ready.values())) > MOST_READY:
            self._ready.clear()
        self._ready.update(texts)

    def _rendered(self, asked: Sequence[Asked]) -> list[str | TemplateError]:
        source, more = self._dated()
        dialogues = [
            ([{"role": role, "content": self._content(text)} for role, text in messages], answered)
            for messages, answered in asked
        ]
        return render(source, dialogues, {**self.tokenizer.special_tokens_map, **more})

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self.parts else text

    @property
    def asks_the_date(self) -> bool:
        """Whether what it renders depends on the day."""
        return "strftime_now" in self._text()

    @property
    def takes_a_date(self) -> bool:
        """Whether it writes a day that it can be told: today's, or a fixed one where none is given (Llama 3.1)."""
        return self.asks_the_date or "date_string" in self._text()

    def _text(self) -> str:
        own = self.source if self.source is not None else self.tokenizer.chat_template
        if isinstance(own, dict):  # several by name
            own = own.get("default", "")
        return str(own or "")

    def _dated(self) -> tuple[str, dict[str, Any]]:
        """The source with its day fixed, and what else the template is given.

        transformers offers `strftime_now`, which reads the clock at every rendering. A macro of that name stands before
        the template instead.
        """
        text, more = self._text(), dict[str, Any]()
        if self.date is not None and "date_string" in text:  # Llama 3.1 takes its day so, and has a fixed one otherwise
            more["date_string"] = _day(self.date).strftime("%d %b %Y")
        if not self.asks_the_date:
            return text, more
        return _clock(_day(self.date) if self.date is not None else self.today) + text, more


@cache
def _clock(date: datetime.date) -> str:
    """A macro `strftime_now` that knows one day, at midnight."""
    day = datetime.datetime.combine(date, datetime.time())
    letters = [*string.ascii_letters, *(f"-{letter}" for letter in string.ascii_letters)]
    known = {letter: day.strftime(f"%{letter}") for letter in letters}
    # The line break behind the macro is not rendered: transformers drops the first one behind a block.
    return _CLOCK % json.dumps({letter: text for letter, text in known.items() if "%" not in text})


def _day(date: str) -> datetime.date:
    try:
        return datetime.datetime.strptime(date, "%Y-%m-%d").date()
    except ValueError:
        raise UserError(f"--date '{date[:40]}' is no day: give it as YYYY-MM-DD") from None


def end_of_turn(tokenizer: PreTrainedTokenizerBase, after: str, prompt: str = "") -> tuple[str, tuple[int, ...]]:
    """With what a template ends an answer, of the text that it writes behind one.

    It is everything up to the first token of the tokenizer's own vocabulary of marks, with those that follow it
    directly. Behind it stand white space, an end of the whole text (Phi-3) or the next turn's header: none of these is
    generated as a part of the answer.

    Args:
        tokenizer: its marks are looked for.
        after: what stands behind the answer.
        prompt: what the generation prompt writes behind the user's text. Its first mark ends the user's turn and may
            end the assistant's too; the others are headers, with which no answer goes on.

    Returns:
        The text up to there, and the marks' ids. Without any mark: the whole text, and no id.
    """
    marks = _marks(tokenizer)
    if not marks:
        return after, ()
    mark = re.compile("|".join(re.escape(text) for text in sorted(marks, key=len, reverse=True)))
    first = mark.search(after)
    if first is None:
        return after, ()
    headers = set(mark.findall(prompt)[1:]) - {tokenizer.eos_token, first[0]}
    found, end = [first[0]], first.end()
    while found[-1] != tokenizer.eos_token and (following := mark.match(after, end)) and following[0] not in headers:
        found.append(following[0])
        end = following.end()
    return after[:end], tuple(dict.fromkeys(marks[text] for text in found))


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
