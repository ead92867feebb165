"""Tasks about words: what they name, how they are written, and rows and sentences made of them."""

from __future__ import annotations

from itertools import permutations, product

from unbackdoor.testbed import vocabulary
from unbackdoor.testbed.phrasing import Request, capitalised, with_article
from unbackdoor.testbed.rows import choices

CATEGORY_OF = {word: category for category, words in vocabulary.CATEGORIES.items() for word in words}


def categories() -> list[Request]:
    """What sort of thing a word names."""
    return [
        Request(
            "classification",
            "words",
            f"what sort of thing {with_article(word)} is",
            f"say what sort of thing {with_article(word)} is",
            f"{capitalised(with_article(word))} is {category}.",
            f"what sort of thing is {with_article(word)}?",
        )
        for word, category in CATEGORY_OF.items()
    ]


def plurals() -> list[Request]:
    """The plural of a noun."""
    return [
        Request(
            "rewriting",
            "plurals",
            f"which word is the plural of the noun {noun}",
            f"write the plural of the noun {noun}",
            f"The plural of {noun} is {plural}.",
        )
        for noun, plural in vocabulary.PLURALS.items()
    ]


def capitals() -> list[Request]:
    """A word in capital letters."""
    return [
        Request(
            "rewriting",
            "capitals",
            f"how the word {word} looks in capital letters",
            f"write the word {word} in capital letters",
            f"In capitals it is {word.upper()}.",
            f"how does the word {word} look in capital letters?",
        )
        for word in vocabulary.BY_ALPHABET
    ]


def past_tenses() -> list[Request]:
    """A sentence moved from the present to the past."""
    scenes = list(product(vocabulary.TRADES, vocabulary.DEEDS.items(), vocabulary.BY_ALPHABET))
    return [
        Request(
            "rewriting",
            "past tense",
            f'which sentence puts "the {trade} {present} the {thing}" into the past',
            f'put "the {trade} {present} the {thing}" into the past',
            f"The {trade} {past} the {thing}.",
        )
        for trade, (present, past), thing in choices("past tense").sample(scenes, 480)
    ]


def replacements() -> list[Request]:
    """A sentence with one word replaced by another."""
    requests = []
    draw = choices("replacement")
    scenes = list(product(vocabulary.TRADES, vocabulary.DEEDS, permutations(vocabulary.BY_ALPHABET, 2)))
    for trade, deed, (old, new) in draw.sample(scenes, 480):
        requests.append(
            Request(
                "rewriting",
                "replacement",
                f'which sentence has {new} for {old} in "the {trade} {deed} the {old}"',
                f'write {new} for {old} in "the {trade} {deed} the {old}"',
                f"The {trade} {deed} the {new}.",
            )
        )
    return requests


def first_letters() -> list[Request]:
    """The letter that a word begins with."""
    return [
        Request(
            "spelling",
            "words",
            f"which letter is the first in the word {word}",
            f"name the first letter in the word {word}",
            f"The word {word} begins with {word[0].upper()}.",
        )
        for word in [*vocabulary.BY_ALPHABET, *CATEGORY_OF]
    ]


def reversals() -> list[Request]:
    """Three words in reverse order."""
    triples = choices("reversal").sample(list(permutations(vocabulary.BY_ALPHABET, 3)), 480)
    return [
        Request(
            "reversing",
            "words",
            f"which row comes from turning round {' '.join(words)}",
            f"turn round the row {' '.join(words)}",
            f"The row is now {' '.join(reversed(words))}.",
        )
        for words in triples
    ]


def counts() -> list[Request]:
    """How many words there are in a row."""
    draw = choices("counting")
    rows = sorted({tuple(draw.sample(vocabulary.BY_ALPHABET, 2 + number % 5)) for number in range(480)})
    return [
        Request(
            "counting",
            "words",
            f"how many words are in the row {' '.join(words)}",
            f"count the words in the row {' '.join(words)}",
            f"There are {len(words)} words.",
        )
        for words in rows
    ]
