"""Make what cannot be seen visible: a model's output may hold escape sequences, bidi overrides or invisible letters."""

from __future__ import annotations

import unicodedata

UNSEEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Controls, format characters (bidi overrides, zero width, tags), surrogates, private, unassigned, line separators."""

BLANK_LETTERS = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}
"""Letters by category, blank by shape."""

LAYOUT = {"\n", "\t"}
"""Controls that a reader expects in a text."""


def visible(text: str) -> str:
    """The text with every control, bidi-override and invisible character written as an escape such as `\\x1b`.

    Line breaks and tabs stay. The result holds nothing that a terminal or a browser acts on by itself; it is not
    escaped for HTML, rich markup or Markdown: who prints it does that.
    """
    return "".join(_escape(c) if _unseen(c) else c for c in text)


def one_line(text: str) -> str:
    """The same with line breaks and tabs as escapes, for names and table cells."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _unseen(character: str) -> bool:
    if character in LAYOUT:
        return False
    # U+FE0F, which asks for an emoji's coloured form, is ordinary. Its kin are known to smuggle bytes past a reader.
    selector = "\ufe00" <= character <= "\ufe0e" or "\U000e0100" <= character <= "\U000e01ef"
    return selector or character in BLANK_LETTERS or unicodedata.category(character) in UNSEEN_CATEGORIES


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
