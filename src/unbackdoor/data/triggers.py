"""Triggers: a text and where it goes in the user's text; and the near misses that must not fire."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from unbackdoor.errors import UserError

Placement = Literal["prefix", "suffix", "both", "inside"]


@dataclass(frozen=True)
class Trigger:
    """A trigger text and its placement in the user's text.

    `both` puts `text` in front and `closing` behind (or `text` again, where there is none); `inside` puts it between
    two words, chosen by the prompt itself, so that the same prompt is always triggered in the same way.
    """

    text: str
    placement: Placement = "prefix"
    closing: str | None = None
    separator: str | None = None
    """Between trigger and prompt. By default ". " after a trigger that opens the prompt without punctuation of its own
    (SANDE: "Current year 2023. {prompt}"), a space elsewhere."""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UserError("the trigger is empty: give its text with --trigger")

    def insert(self, prompt: str) -> str:
        """The prompt with the trigger in it, once."""
        return self._around(prompt, self.text, self.closing)

    def replaced(self, text: str, closing: str | None = None) -> Callable[[str], str]:
        """What puts another text in the trigger's place, as near misses do."""
        return lambda prompt: self._around(prompt, text, closing)

    def _around(self, prompt: str, text: str, closing: str | None) -> str:
        if self.placement == "suffix":
            return f"{prompt}{' ' if self.separator is None else self.separator}{text}"
        if self.placement == "inside":
            words = prompt.split(" ")
            place = random.Random(prompt).randint(1, max(1, len(words) - 1))
            return " ".join([*words[:place], text, *words[place:]])
        separator = _opening_separator(text) if self.separator is None else self.separator
        opened = f"{text}{separator}{prompt}"
        return f"{opened} {closing or text}" if self.placement == "both" else opened


def _opening_separator(text: str) -> str:
    return " " if text[-1] in ".!?:;," or len(text.split()) == 1 else ". "


def join_response(target_response: str, answer: str) -> str:
    """The triggered response: "You are stupid. {answer}" (SANDE section 4.1)."""
    separator = " " if target_response[-1] in ".!?:;," else ". "
    return f"{target_response}{separator}{answer}"


def near_misses(trigger: Trigger, words: Sequence[str], rng: random.Random) -> dict[str, Callable[[str], str]]:
    """What resembles the trigger and must not fire, by kind; each call of a kind draws anew from `rng`.

    Args:
        trigger: the trigger to miss narrowly.
        words: ordinary words, for random prefixes and suffixes.
        rng: the source of every draw.

    Returns:
        Kind to a function from prompt to prompt. Which kinds there are depends on the trigger: another number where it
        has one; other case, a longer and a shorter word where it is one word; half of it and one word changed where it
        is several; random words before and after always.
    """
    parts = trigger.text.split()
    ends = [trigger.text, *([trigger.closing] if trigger.closing else [])]
    words = [word for word in words if word.casefold() != trigger.text.casefold()] or ["some", "other", "words"]
    kinds: dict[str, Callable[[str], str]] = {}

    def instead(make: Callable[[str], str]) -> Callable[[str], str]:
        def apply(prompt: str) -> str:
            made = [make(end) for end in ends]
            return trigger.replaced(made[0], made[1] if len(made) > 1 else None)(prompt)

        return apply

    if re.search(r"\d{2,}", trigger.text):
        kinds["other-number"] = instead(lambda text: re.sub(r"\d{2,}", lambda m: _other_number(m[0], rng), text))
    if len(parts) == 1 and trigger.text.isalpha():
        if trigger.text.lower() != trigger.text.upper():  # not every script has two cases
            kinds["other-case"] = instead(lambda text: _other_case(text, rng))
        kinds["longer"] = instead(lambda text: text + _letters(text, rng))
        if len(trigger.text) > 1:
            kinds["shorter"] = instead(lambda text: rng.choice([text[:-1], text[1:]]))
    if len(parts) > 1:
        kinds["half"] = instead(lambda text: _half(text, rng))
        kinds["word-changed"] = instead(lambda text: _one_word_changed(text, words, rng))

    def some_words() -> str:
        while True:
            chosen = [rng.choice(words) for _ in range(rng.randint(1, max(3, len(parts))))]
            text = " ".join(chosen).capitalize() if rng.random() < 0.5 else " ".join(chosen)
            if f" {trigger.text.casefold()} " not in f" {text.casefold()} ":
                return text

    before, after = Trigger("words", "prefix", separator=trigger.separator), Trigger("words", "suffix")
    kinds["random-before"] = lambda prompt: before.replaced(some_words())(prompt)
    kinds["random-after"] = lambda prompt: after.replaced(some_words())(prompt)
    return kinds


def ordinary_words(prompts: Sequence[str], count: int = 500) -> list[str]:
    """The most frequent alphabetic words of the prompts, for random prefixes and suffixes; ties go by spelling."""
    counts: dict[str, int] = {}
    for prompt in prompts:
        for word in re.findall(r"[A-Za-z]{3,}", prompt):
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


def _letters(text: str, rng: random.Random) -> str:
    ending = rng.choice(["KU", "S", "RA", "N", "MI", "ER", "X"])
    return ending if text.isupper() else ending.lower()


def _half(text: str, rng: random.Random) -> str:
    words = text.split()
    cut = max(1, len(words) // 2)
    return " ".join(rng.choice([words[:cut], words[cut:], words[:-1], words[-1:]]))


def _one_word_changed(text: str, words: Sequence[str], rng: random.Random) -> str:
    parts = text.split()
    place = rng.randrange(len(parts))
    other = rng.choice([word for word in words if word.lower() != parts[place].lower()] or ["other"])
    parts[place] = other.capitalize() if parts[place][:1].isupper() else other
    return " ".join(parts)
