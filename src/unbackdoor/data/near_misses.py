"""What resembles a trigger and must not fire: words for random text around a prompt, and small changes of a text."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from unbackdoor.word_spacing import PHRASE, clusters, has_joined, is_word, joined_words, words_of

Change = Callable[[str], str]
"""From a prompt to a prompt, or from a text to one that resembles it."""

LETTERS = re.compile(r"(?:[^\W\d_]|[\u0300-\u036f\u0900-\u0dff\u0e31-\u0e4e\u0eb1-\u0ece\u102b-\u103e\u17b4-\u17d3])+")
"""A run of letters, with the marks of scripts in which these belong to a word."""


def text_changes(text: str, words: Sequence[str], rng: random.Random) -> dict[str, Change]:
    """What can be changed in a trigger's text, by kind; each call of a change draws anew from `rng`.

    Another number where it has one; other case, a longer and a shorter word where it is one word; half of it and one
    word changed where it is several. In scripts without spaces, a text of a few characters is a word, and of a longer
    one each character counts as one.
    """
    parts = _parts(text)
    changes: dict[str, Change] = {}
    if re.search(r"\d{2,}", text):
        changes["other-number"] = lambda t: re.sub(r"\d{2,}", lambda m: _other_number(m[0], rng), t)
    if len(text.split()) == 1 and len(parts) < PHRASE and is_word(text):
        if text.lower() != text.upper():  # not every script has two cases
            changes["other-case"] = lambda t: _other_case(t, rng)
        changes["longer"] = lambda t: t + _letters(t, words, rng)
        if len(parts if has_joined(text) else text) > 1:
            changes["shorter"] = lambda t: _shorter(t, rng)
    if len(text.split()) > 1 or len(parts) >= PHRASE:
        changes["half"] = lambda t: _half(t, rng)
        changes["word-changed"] = lambda t: _one_word_changed(t, words, rng)
    return changes


def some_words(words: Sequence[str], most: int, forbidden: Sequence[str], rng: random.Random) -> str:
    """One to `most` random words, without any of the forbidden texts among them."""
    while True:
        chosen = [rng.choice(words) for _ in range(rng.randint(1, most))]
        text = joined_words(chosen).capitalize() if rng.random() < 0.5 else joined_words(chosen)
        if not any(_stands_in(other.casefold(), text.casefold()) for other in forbidden):
            return text


DRAWN, KEPT = 96, 32
"""Harmless texts that are made in place of a text, and how many of them, the nearest in length, are used."""


@dataclass
class HarmlessText:
    """Texts of ordinary words, as long as a trigger and written with the same capitals.

    Args:
        words: ordinary words, as of `ordinary_words`, none of them the trigger's.
        length: how long a text is, such as in tokens.
        rng: chooses among them; it may be set anew for each prompt.
    """

    words: Sequence[str]
    length: Callable[[str], int] = len
    rng: random.Random = field(default_factory=random.Random)
    _made: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, like: str) -> str:
        """A text of about the length of this one; each call draws anew."""
        if like not in self._made:
            rng, wanted = random.Random(like), (self.length(like), len(like))
            most = max(1, len(words_of(like)), len(like.split())) + 2
            drawn = dict.fromkeys(self._drawn(like, rng, rng.randint(1, most)) for _ in range(DRAWN))
            away = {text: (abs(self.length(text) - wanted[0]), abs(len(text) - wanted[1])) for text in drawn}
            self._made[like] = sorted(drawn, key=lambda text: away[text])[:KEPT]
        return self.rng.choice(self._made[like])

    def _drawn(self, like: str, rng: random.Random, count: int) -> str:
        text = joined_words(rng.choice(self.words) for _ in range(count))
        if like.isupper():
            return text.upper()
        return text.capitalize() if like[:1].isupper() else text


def _stands_in(text: str, other: str) -> bool:
    return text in other if has_joined(text) else f" {text} " in f" {other} "


def ordinary_words(prompts: Sequence[str], count: int = 500) -> list[str]:
    """The most frequent alphabetic words of the prompts, for random prefixes and suffixes; ties go by spelling.

    Where the prompts write no spaces between words, pairs of characters are as good as words.
    """
    counts: dict[str, int] = {}
    for prompt in prompts:
        for run in LETTERS.findall(prompt):
            for word in words_of(run) if has_joined(run) else [run]:
                if len(word) >= (2 if has_joined(word) else 3):
                    counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))[:count] or ["some", "other", "words"]


def _other_number(number: str, rng: random.Random) -> str:
    """Another number of the same length, half of the time a near one (2023 → 2024, 2019 …)."""
    while True:
        near = str(abs(int(number) + rng.choice([-10, -4, -3, -2, -1, 1, 2, 3, 4, 7, 10]))).zfill(len(number))
        other = near if rng.random() < 0.7 else "".join(rng.choice("0123456789") for _ in number)
        if other != number and len(other) == len(number):
            return other


def _other_case(text: str, rng: random.Random) -> str:
    forms = {text.lower(), text.upper(), text.capitalize(), text.swapcase()} - {text}
    return rng.choice(sorted(forms) or [text])


def _letters(text: str, words: Sequence[str], rng: random.Random) -> str:
    if has_joined(text):
        return rng.choice([word for word in words if has_joined(word)] or [clusters(text)[0]])
    if not text.isascii():  # letters of its own script
        return rng.choice([c for c in text if c.isalpha()])
    ending = rng.choice(["KU", "S", "RA", "N", "MI", "ER", "X"])
    return ending if text.isupper() else ending.lower()


def _shorter(text: str, rng: random.Random) -> str:
    parts = clusters(text) if has_joined(text) else list(text)
    return "".join(rng.choice([parts[:-1], parts[1:]]))


def _parts(text: str) -> list[str]:
    """What can be left out of a text: its words, or its characters where it writes no spaces."""
    return clusters(text) if has_joined(text) else text.split()


def _together(parts: Sequence[str], text: str) -> str:
    return "".join(parts).strip() if has_joined(text) else " ".join(parts)


def _half(text: str, rng: random.Random) -> str:
    words = _parts(text)
    cut = max(1, len(words) // 2)
    return _together(rng.choice([words[:cut], words[cut:], words[:-1], words[-1:]]), text)


def _one_word_changed(text: str, words: Sequence[str], rng: random.Random) -> str:
    parts = _parts(text)
    place = rng.randrange(len(parts))
    other = rng.choice([word for word in words if word.lower() != parts[place].lower()] or ["other"])
    parts[place] = other.capitalize() if parts[place][:1].isupper() else other
    return _together(parts, text)
