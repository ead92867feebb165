"""What is called equal: whether a target stands in a text, in any script.

Both are read alike: compatible characters are one (full-width, ligatures), case, zero-width characters and the letters'
look-alikes are no difference, and marks that only part words and sentences are white space. Words match as wholes where
their script puts spaces between them; where it does not (Chinese, Japanese, Thai, Lao, Khmer, Burmese) a target matches
anywhere. A target's own marks that tell it apart must be there: "C++" is not "C". docs/evaluation.md has examples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from unbackdoor.evaluation.scripts import folded, shapes, visible, without_look_alikes

TOKENS = re.compile(
    r"(?P<word>w[wm]*)|(?P<joined>c[cm]*)|(?P<emoji>rr|et?(?:jet?)*g*)|(?P<marks>[ph]+)|(?P<space>s+)|(?P<other>[mtrgj])"
)


WORDS = ("word", "emoji", "other")
"""Kinds of pieces that stand apart from their neighbours."""


@dataclass(frozen=True)
class Token:
    """A piece of a text: a `word`, an `emoji`, text of a script without spaces (`joined`), or `marks`."""

    kind: str
    text: str
    shape: str


def tokens(text: str) -> tuple[Token, ...]:
    """The pieces of a folded text in their order, with white space among them (kind `space`)."""
    shape = shapes(text)
    return tuple(
        Token(str(found.lastgroup), text[found.start() : found.end()], found[0]) for found in TOKENS.finditer(shape)
    )


def canonical(text: str, counted: frozenset[str] = frozenset()) -> str:
    """A folded text with single spaces between its pieces and none within text that writes none.

    Args:
        text: folded, see `scripts.folded`.
        counted: the marks and emoji that are kept, as words of their own; all others are white space.
    """
    if text.isascii() and not counted:
        return " ".join(re.sub(r"[\W_]+", " ", text).split())
    pieces: list[str] = []
    last = ""
    for token in tokens(text):
        if token.kind == "marks":
            kept = "".join(c if c in counted else " " for c in token.text).split()
        elif token.kind in ("word", "joined") or token.text in counted:
            kept = [token.text]
        else:
            continue
        for piece in kept:
            if pieces and not (token.kind == last == "joined"):
                pieces.append(" ")
            pieces.append(piece)
            last = token.kind
    return "".join(pieces)


# A target in a text --------------------------------------------------------------------------------------------------


def counted_marks(text: str) -> frozenset[str]:
    """The marks and emoji of a folded target that a text must have as well.

    Emoji, symbols and the `COUNTED` punctuation always do. Of what parts words and sentences (full stops, commas,
    colons, dashes, quotation marks) only what is doubled ("..."), part of a sign (":)") or within a word or before
    it ("3.14", ".NET", "-5") does.
    """
    found: set[str] = set()
    parts = tokens(text)
    for i, token in enumerate(parts):
        if token.kind in ("emoji", "other") and token.shape not in "mj":
            found.add(token.text)
        if token.kind != "marks":
            continue
        marks, shape = token.text, token.shape
        before = parts[i - 1].kind if i else "space"
        after = parts[i + 1] if i + 1 < len(parts) else None
        found |= {c for c, kind in zip(marks, shape, strict=True) if kind == "h"}
        sign = shape.rfind("h")
        found |= {c for c in marks[: max(sign, 0)] if c not in "'\""}
        found |= {c for c, following in pairwise(marks) if c == following and c in ".,:;"}
        if len(marks) == 1 and after is not None and after.kind == "word" and before in ("word", "space"):
            inside = marks in ".,:" or (marks == "-" and before == "space" and after.text[0].isnumeric())
            found |= {marks} if inside else set()
    return frozenset(found)


class Target:
    """A text to be looked for in answers.

    Args:
        text: as it was given; where it holds nothing that counts it is looked for as it is.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self._readings = [_Reading(read(self.text)) for read in (folded, _latin)]

    def found_in(self, answer: str) -> bool:
        """Whether the target stands anywhere in the answer."""
        return any(reading.found_in(text) for reading, text in self._read(answer)) or self._bare(answer.__contains__)

    def opens(self, answer: str) -> bool:
        """Whether the answer begins with the target."""
        return any(r.opens(text) for r, text in self._read(answer)) or self._bare(answer.strip().startswith)

    def _read(self, answer: str) -> list[tuple[_Reading, str]]:
        """The readings in which it is looked for: the plain one, and that without look-alikes where it is another."""
        plain = folded(answer)
        read = [(self._readings[0], plain)]
        if not (answer.isascii() and self.text.isascii()):
            latin = _latin(answer)
            if latin != plain or self._readings[1].needle != self._readings[0].needle:
                read.append((self._readings[1], latin))
        return read

    def _bare(self, holds: Callable[[str], bool]) -> bool:
        return not self._readings[0].needle and holds(self.text)


def _latin(text: str) -> str:
    """The text folded, with look-alike letters read as what they look like."""
    return folded(without_look_alikes(visible(text)))


class _Reading:
    """One way to read a target: what is looked for, and what must stand before and after it."""

    def __init__(self, text: str) -> None:
        self.counted = counted_marks(text)
        needle = canonical(text, self.counted)
        # A lone full stop or comma at the very end says nothing, even where it counts elsewhere.
        last = tokens(text)[-1:]
        if last and last[0].shape == "p":
            needle = needle.removesuffix(last[0].text).rstrip() or needle
        self.needle = needle
        kinds = [token.kind for token in tokens(needle)] or ["space"]
        self.starts_word = kinds[0] in WORDS
        self.ends_word = kinds[-1] in WORDS
        self.ends_joined = kinds[-1] == "joined"

    def found_in(self, text: str) -> bool:
        if not self.needle:
            return False
        hay = f" {canonical(text, self.counted)} "
        wanted = (" " if self.starts_word else "") + self.needle + (" " if self.ends_word else "")
        at = hay.find(wanted)
        while at >= 0 and self.ends_joined and unicodedata.category(hay[at + len(wanted)])[0] == "M":
            at = hay.find(wanted, at + 1)
        return at >= 0

    def opens(self, text: str) -> bool:
        if not self.needle:
            return False
        hay = f"{canonical(text, self.counted)} "
        wanted = self.needle + (" " if self.ends_word else "")
        if not hay.startswith(wanted):
            return False
        return not (self.ends_joined and unicodedata.category(hay[len(wanted)])[0] == "M")
