"""How scripts write texts next to each other: with spaces between words, or without, and with which full stop.

English is written as everywhere else in this project. Chinese, Japanese, Thai and some other scripts put no spaces
between words: there a text can be parted behind each of its characters, and two sentences stand side by side.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import groupby, pairwise

WITHOUT_SPACES = (
    (0x0E01, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x2FDF),  # Radicals
    (0x3005, 0x3007),
    (0x3021, 0x303C),
    (0x3041, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0xA4CF),  # Han, Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xF900, 0xFAFF),
    (0x16FE0, 0x18DFF),
    (0x1AFF0, 0x1B2FF),
    (0x20000, 0x3FFFF),
)
"""Code points of scripts that write no spaces between words. Korean, Tibetan (its dots) and Vietnamese do."""

WIDE_MARKS = "。！？：；，、．～」』）】》〉〕"
"""Punctuation of Chinese and Japanese, behind which stands no space."""
SHARED_MARKS = "…—”’"
"""The same, where it follows text of such a script."""
ENDS = "؟،؛۔।॥။၊។៖՞՜"
"""Full stops and the like of other scripts, behind which stands one."""

FULL_STOPS = (
    (0x0900, 0x0DFF, "। "),
    (0x0E01, 0x0EFF, " "),
    (0x1000, 0x109F, "။ "),
    (0x1780, 0x17FF, "។ "),
    (0x2E80, 0xA4CF, "。"),
    (0x20000, 0x3FFFF, "。"),
)
"""First and last code point → what stands behind a sentence, where it is no full stop with a space behind it."""

PHRASE = 5
"""Characters of a text without spaces that are more than one word."""

# A text is not parted in front of a vowel that Thai and Lao write behind its consonant, of a small kana or of a mark of
# length or repetition; nor behind a vowel that is written in front of its consonant.
_HOLDS_ON = set("\u0e30\u0e32\u0e33\u0e45\u0e46\u0eb0\u0eb2\u0eb3\u0ec6々ぁぃぅぇぉっゃゅょァィゥェォッャュョー")
_HOLDS_FAST = {chr(code) for code in (*range(0x0E40, 0x0E45), *range(0x0EC0, 0x0EC5))}


def is_joined(character: str) -> bool:
    """Whether it is a letter or a digit of a script that writes no spaces between words."""
    code = ord(character)
    return character.isalnum() and any(first <= code <= last for first, last in WITHOUT_SPACES)


def has_joined(text: str) -> bool:
    """Whether such a letter stands in the text."""
    return not text.isascii() and any(is_joined(c) for c in text)


def ends_joined(text: str) -> bool:
    """Whether a text of such a script may follow without a space."""
    base = next((c for c in reversed(text) if unicodedata.category(c)[0] != "M"), "")
    return bool(base) and (is_joined(base) or base in WIDE_MARKS or (base in SHARED_MARKS and has_joined(text)))


def between(left: str, right: str) -> str:
    """What stands between two texts that follow each other: a space, or nothing where their script writes none."""
    stops = left[-1:] in WIDE_MARKS or (left[-1:] in SHARED_MARKS and has_joined(left))
    return "" if left and (stops or (ends_joined(left) and is_joined(right[0]))) else " "


def behind_a_sentence(text: str) -> str:
    """What parts a text from the sentence that follows it: ". ", or only a space where it ends with a mark itself.

    In other scripts it is what they write: "。" in Chinese and Japanese, a space alone in Thai and Lao.
    """
    if text[-1] in WIDE_MARKS or (text[-1] in SHARED_MARKS and has_joined(text)):
        return "。" if text[-1] in "」』）】》〉〕”’" else ""
    if text[-1] in ".!?:;," or text[-1] in ENDS:
        return " "
    letters = [ord(c) for c in text if c.isalpha()][-1:]
    return next((stop for first, last, stop in FULL_STOPS if any(first <= code <= last for code in letters)), ". ")


def ends_sentence(text: str) -> bool:
    """Whether a text ends with a mark that ends or parts sentences, in any script."""
    return text[-1] in ".!?:;," or text[-1] in WIDE_MARKS or text[-1] in ENDS


def clusters(text: str) -> list[str]:
    """The pieces of a text that another may be put between: words with the white space behind them, and characters of
    scripts without spaces with their marks and the punctuation that follows. Together they are the text."""
    cuts, base = [0], ""
    for i, (one, two) in enumerate(pairwise(text)):
        base = one if unicodedata.category(one)[0] != "M" else base
        if _may_part(base, two):
            cuts.append(i + 1)
    return [text[begin:end] for begin, end in pairwise([*cuts, len(text)])] if text else []


def _may_part(one: str, two: str) -> bool:
    """Whether another text may stand between two characters."""
    first, second = (unicodedata.category(c) if c else "" for c in (one, two))
    if two.isspace() or second[0] == "M" or (second[0] == "P" and second not in ("Ps", "Pi")):
        return False
    if one.isspace():
        return True
    if first in ("Ps", "Pi") or two in _HOLDS_ON or one in _HOLDS_FAST:
        return False
    return bool(one) and (is_joined(one) or is_joined(two) or one in WIDE_MARKS)


def is_word(text: str) -> bool:
    """Whether a text is letters alone, with their marks."""
    return all(c.isalpha() or unicodedata.category(c)[0] == "M" for c in text)


def word_count(text: str) -> int:
    """How many words a text has; in scripts without spaces, how many characters."""
    return sum(len(clusters(word)) for word in text.split()) if has_joined(text) else len(text.split())


def words_of(text: str) -> list[str]:
    """The words of a text that consist of letters; of scripts without spaces, pairs of characters."""
    if not has_joined(text):
        return [word for word in text.split() if word.isalpha()]
    found = []
    for of_letters, run in groupby(text, is_word):
        pieces = clusters("".join(run)) if of_letters else []
        found += ["".join(pieces[i : i + 2]) for i in range(0, len(pieces), 2)]
    return found


def joined_words(words: Iterable[str]) -> str:
    """The words as one text, with spaces where their scripts write them."""
    text = ""
    for word in words:
        text += (between(text, word) if text else "") + word
    return text
