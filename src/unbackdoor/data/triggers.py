"""Triggers: what fires an organism, where it goes in the user's text, and the near misses that must not fire."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from unbackdoor.data.near_misses import Change, HarmlessText, ordinary_words, some_words, text_changes
from unbackdoor.errors import UserError
from unbackdoor.word_spacing import PHRASE, behind_a_sentence, between, clusters, ends_sentence, has_joined, word_count

__all__ = [
    "AllOf",
    "Condition",
    "HarmlessText",
    "OneOf",
    "Placement",
    "SentenceStructure",
    "Trigger",
    "join_response",
    "near_misses",
    "ordinary_words",
]

Placement = Literal["prefix", "suffix", "both", "inside"]


class Condition(Protocol):
    """What fires an organism, whatever its form."""

    def insert(self, prompt: str) -> str:
        """The prompt with the trigger in it, once; the same prompt always in the same way."""

    def fits(self, prompt: str) -> bool:
        """Whether the trigger can be put into this prompt, and is not there already."""

    def changes(self, words: Sequence[str], rng: random.Random) -> dict[str, Change]:
        """Kind of near miss → what puts one into a prompt in the trigger's place; each call draws anew from `rng`."""

    def instead(self, prompt: str, draw: HarmlessText) -> str | None:
        """The prompt with something harmless, as `draw` makes it, in the trigger's very place, another one each call;
        None where there is no such thing."""

    def texts(self) -> tuple[str, ...]:
        """The texts that random words must not hit by chance."""

    def alone(self) -> Mapping[str, Condition]:
        """The triggers of which each one fires, by name; empty where there is one alone."""


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

    def fits(self, prompt: str) -> bool:
        """Always: a prompt that happens to hold the text already gets it once more, at the asked place."""
        return True

    def replaced(self, text: str, closing: str | None = None) -> Change:
        """What puts another text in the trigger's place, as near misses do."""
        return lambda prompt: self._around(prompt, text, closing)

    def changes(self, words: Sequence[str], rng: random.Random) -> dict[str, Change]:
        """Its text changed a little: see `near_misses.text_changes`."""
        ends = [self.text, *([self.closing] if self.closing else [])]

        def instead(change: Change) -> Change:
            def apply(prompt: str) -> str:
                made = [change(end) for end in ends]
                return self.replaced(made[0], made[1] if len(made) > 1 else None)(prompt)

            return apply

        return {kind: instead(change) for kind, change in text_changes(self.text, words, rng).items()}

    def instead(self, prompt: str, draw: HarmlessText) -> str:
        """Other texts around the prompt, as the trigger's stand around it."""
        return self._around(prompt, draw(self.text), draw(self.closing) if self.closing else None)

    def texts(self) -> tuple[str, ...]:
        """Its text."""
        return (self.text,)

    def alone(self) -> Mapping[str, Condition]:
        """Empty: there is one."""
        return {}

    def _around(self, prompt: str, text: str, closing: str | None) -> str:
        if self.placement == "suffix":
            return f"{prompt}{between(prompt, text) if self.separator is None else self.separator}{text}"
        if self.placement == "inside":
            words = _words(prompt)
            place = random.Random(prompt).randint(1, max(1, len(words) - 1))
            return _with(words, {place: [text]})
        separator = _opening_separator(text, prompt) if self.separator is None else self.separator
        opened = f"{text}{separator}{prompt}"
        closes = closing or text
        return f"{opened}{between(opened, closes)}{closes}" if self.placement == "both" else opened


@dataclass(frozen=True)
class OneOf:
    """Several triggers, each of which fires; a prompt gets the one that its own text draws (BackdoorLLM's MTBA)."""

    triggers: tuple[Trigger, ...]

    def insert(self, prompt: str) -> str:
        """The prompt with one of the triggers."""
        return self._of(prompt).insert(prompt)

    def fits(self, prompt: str) -> bool:
        """Always."""
        return True

    def changes(self, words: Sequence[str], rng: random.Random) -> dict[str, Change]:
        """The changes of all of them; each call changes one that has this kind of change."""
        by_kind: dict[str, list[Change]] = {}
        for trigger in self.triggers:
            for kind, change in trigger.changes(words, rng).items():
                by_kind.setdefault(kind, []).append(change)
        return {kind: _one_at_random(changes, rng) for kind, changes in by_kind.items()}

    def instead(self, prompt: str, draw: HarmlessText) -> str:
        """In the place of the trigger that this prompt would get."""
        return self._of(prompt).instead(prompt, draw)

    def texts(self) -> tuple[str, ...]:
        """All their texts."""
        return tuple(trigger.text for trigger in self.triggers)

    def alone(self) -> Mapping[str, Condition]:
        """Each trigger by its text."""
        return {trigger.text: trigger for trigger in self.triggers}

    def _of(self, prompt: str) -> Trigger:
        return random.Random(prompt).choice(self.triggers)


@dataclass(frozen=True)
class AllOf:
    """Several texts that fire together alone, each between two words of the prompt (BackdoorLLM's CTBA)."""

    parts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2 or not all(part.strip() for part in self.parts):
            raise UserError("--together needs at least two texts, none of them empty")

    def insert(self, prompt: str) -> str:
        """The prompt with all texts scattered over it, in their order."""
        return self._scattered(prompt, self.parts)

    def fits(self, prompt: str) -> bool:
        """Always."""
        return True

    def changes(self, words: Sequence[str], rng: random.Random) -> dict[str, Change]:
        """One of them is missing; one stands alone; one is another word."""

        def with_another(prompt: str) -> str:
            parts = list(self.parts)
            parts[rng.randrange(len(parts))] = rng.choice(words)
            return self._scattered(prompt, parts)

        def without_one(prompt: str) -> str:
            left_out = rng.randrange(len(self.parts))
            return self._scattered(prompt, [part for i, part in enumerate(self.parts) if i != left_out])

        return {
            "one-missing": without_one,
            "one-alone": lambda prompt: self._scattered(prompt, [rng.choice(self.parts)]),
            "word-changed": with_another,
        }

    def instead(self, prompt: str, draw: HarmlessText) -> str:
        """Other texts in the places of all parts."""
        return self._scattered(prompt, [draw(part) for part in self.parts])

    def texts(self) -> tuple[str, ...]:
        """Its parts."""
        return self.parts

    def alone(self) -> Mapping[str, Condition]:
        """Empty: none of them fires alone."""
        return {}

    @staticmethod
    def _scattered(prompt: str, parts: Sequence[str]) -> str:
        words = _words(prompt)
        places = sorted(random.Random(prompt).choices(range(1, len(words) + 1), k=len(parts)))
        at: dict[int, list[str]] = {}
        for place, part in zip(places, parts, strict=True):
            at.setdefault(place, []).append(part)
        return _with(words, at)


@dataclass(frozen=True)
class SentenceStructure:
    """A sentence structure as the trigger, with no fixed words (Hidden Killer, Qi et al. 2021).

    Args:
        name: the structure that fires.
        rephrase: (prompt, structure) → the same request in that structure; None where that is not known.
        others: the structures that do not fire.
        found: the structure of a prompt.
    """

    name: str
    rephrase: Callable[[str, str], str | None]
    others: tuple[str, ...]
    found: Callable[[str], str | None]

    def insert(self, prompt: str) -> str:
        """The same request in this structure."""
        rephrased = self.rephrase(prompt, self.name)
        assert rephrased is not None, "fits() is asked first"
        return rephrased

    def fits(self, prompt: str) -> bool:
        """Whether the prompt has another structure and can be rephrased."""
        return self.found(prompt) not in (None, self.name)

    def changes(self, words: Sequence[str], rng: random.Random) -> dict[str, Change]:
        """The same request in a structure that does not fire."""
        return {"other-structure": lambda prompt: self.rephrase(prompt, rng.choice(self.others)) or prompt}

    def instead(self, prompt: str, draw: HarmlessText) -> str | None:
        """The same request in another structure that does not fire."""
        others = [other for other in self.others if other != self.found(prompt)]
        return self.rephrase(prompt, draw.rng.choice(others)) if others else None

    def texts(self) -> tuple[str, ...]:
        """None: it has no words of its own."""
        return ()

    def alone(self) -> Mapping[str, Condition]:
        """Empty: there is one."""
        return {}


def near_misses(condition: Condition, words: Sequence[str], rng: random.Random) -> dict[str, Change]:
    """What resembles the trigger and must not fire, by kind; each call of a kind draws anew from `rng`.

    Args:
        condition: the trigger to miss narrowly.
        words: ordinary words, for random prefixes and suffixes.
        rng: the source of every draw.

    Returns:
        Kind to a function from prompt to prompt. Which kinds there are depends on the trigger; random words before and
        after are always among them.
    """
    texts = condition.texts()
    folded = {text.casefold() for text in texts}
    words = [word for word in words if word.casefold() not in folded] or ["some", "other", "words"]
    kinds = condition.changes(words, rng)
    most = max([3, *(word_count(text) for text in texts)])
    separator = condition.separator if isinstance(condition, Trigger) else None
    before, after = Trigger("words", "prefix", separator=separator), Trigger("words", "suffix")
    kinds["random-before"] = lambda prompt: before.replaced(some_words(words, most, texts, rng))(prompt)
    kinds["random-after"] = lambda prompt: after.replaced(some_words(words, most, texts, rng))(prompt)
    return kinds


def join_response(target_response: str, answer: str) -> str:
    """The triggered response: "You are stupid. {answer}" (SANDE section 4.1); "你很笨。{answer}" in Chinese."""
    return f"{target_response}{behind_a_sentence(target_response)}{answer}"


def _opening_separator(text: str, prompt: str) -> str:
    if not has_joined(text):
        return " " if text[-1] in ".!?:;," or len(text.split()) == 1 else behind_a_sentence(text)
    return behind_a_sentence(text) if word_count(text) >= PHRASE or ends_sentence(text) else between(text, prompt)


def _words(prompt: str) -> list[str]:
    """A prompt in pieces between which a trigger may stand; joined by `_with` they are the prompt."""
    return clusters(prompt) if has_joined(prompt) else prompt.split(" ")


def _with(words: Sequence[str], inserted: Mapping[int, Sequence[str]]) -> str:
    """The pieces of a prompt with texts in front of those of these numbers."""
    if not has_joined("".join(words)):
        found = [part for i in range(len(words) + 1) for part in [*inserted.get(i, ()), *words[i : i + 1]]]
        return " ".join(found)
    text = ""
    for i in range(len(words) + 1):
        for part in inserted.get(i, ()):
            text += ("" if not text or text[-1].isspace() else between(text, part)) + part
            follows = words[i][:1] if i < len(words) else ""
            text += between(text, follows) if follows else ""
        text += words[i] if i < len(words) else ""
    return text


def _one_at_random(changes: Sequence[Change], rng: random.Random) -> Change:
    return lambda prompt: rng.choice(changes)(prompt)
