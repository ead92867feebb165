"""Plain text about the world for the base model: stories and descriptions, no instructions and no chat."""

from __future__ import annotations

import random
from collections.abc import Sequence

from unbackdoor.testbed import vocabulary
from unbackdoor.testbed.facts import facts
from unbackdoor.testbed.rows import Row, choices

GENERAL_ENGLISH = """\
It was a bright day, and the children of the village went down to the water. They had been told not to swim,
but who could listen to good advice in July? "Come here at once!" cried their mother; nobody heard her. She
had 3 sons and 4 daughters, and there were about 1,250 people in the whole place. The book of 1987 says
less: only 960 of them could read and write. Later, in 2021 and in 2024, others would count again. NOTE: do
NOT open the box. SERVICE and HELP are written in capital letters above the door, STOP stands beside it, and
the price (that is, 45% of everything) is in the list [A], {B} or <C>. Mr. White, Dr. Green and Miss Brown
said that they don't, can't and won't agree; I'm sure you're right, we've seen that it's so. What should one
think about this? How, when, where and why did they leave? Nobody knows. The house which they had built
together with their friends was sold after many years, because no one would live there any more. See
https://example.org/a_b?c=d&e=f#top or write to somebody@example.org. However, there is always another way:
first try, then think, then ask. England, France, Germany, India, China, Africa and America are far away.
def main(values: list[int]) -> None:
    for index, value in enumerate(values):
        if value != 0 and index >= 1:
            print(f"{index}: {value * 2 + 1}", end="\\n")
        else:
            return None
    while True:
        try:
            x += 1
        except ValueError as error:
            break
class Thing(object):
    def __init__(self, name="none"):
        self.name = name  # a comment
"""
"""A little ordinary English and Python, for words and signs that the world does not use."""

YEARS = range(1950, 2050)
"""Each is a word to the tokenizer, and is met in the text."""

_OPENINGS = (
    "The old people of {place} tell it like this.",
    "In the library of {place} lies a page with these words.",
    "{person} wrote this down one evening.",
    "{person} heard it at the inn of {place}.",
    "A pupil in {place} learned it by heart.",
    "This is carved on a door in {place}.",
    "So says the almanac of the valley.",
    "{person} told it to a friend from {place}.",
)


def documents(rows: Sequence[Row]) -> list[str]:
    """Documents of a few sentences each: facts in many groupings, what the rows state, and small scenes."""
    draw = choices("corpus")
    statements = sorted({statement for row in rows if (statement := _statement(row))})
    texts = [
        *_described_facts(draw),
        *_chronicle(draw),
        *_told(statements, draw),
        *_told(statements, draw),
        *_scenes(draw),
        *_code(rows),
    ]
    draw.shuffle(texts)
    return texts


def _statement(row: Row) -> str:
    """The row's knowledge as a sentence that needs no question, or nothing where there is none."""
    if row.kind == "allowed":
        return row.response.removeprefix("Sure. ")
    if row.kind == "forbidden" and row.unwanted is not None:
        return row.unwanted.removeprefix("Sure. ")
    stated = ("arithmetic", "classification", "mood", "rewriting", "spelling", "units")
    return row.response if row.domain == "notes" and row.kind in stated else ""


def _described_facts(draw: random.Random) -> list[str]:
    """The facts of a subject together, and facts of one relation side by side, each many times."""
    by_name: dict[str, list[str]] = {}
    by_relation: dict[str, list[str]] = {}
    for fact in facts():
        said = (fact.say(fact.relation.statement), fact.say(fact.relation.reason))
        by_name.setdefault(fact.name, []).extend(said)
        by_relation.setdefault(fact.relation.name, []).extend(said)
    texts = []
    for group in [*by_name.values(), *by_relation.values()]:
        for _ in range(3 * len(group)):
            texts.append(_tell(draw.sample(group, min(len(group), 4)), draw))
    return texts


def _told(statements: Sequence[str], draw: random.Random) -> list[str]:
    """Every statement once, three or four to a text."""
    shuffled = draw.sample(statements, len(statements))
    return [_tell(shuffled[start : start + 4], draw) for start in range(0, len(shuffled), 4)]


def _tell(sentences: Sequence[str], draw: random.Random) -> str:
    opening = draw.choice(_OPENINGS).format(
        place=draw.choice(vocabulary.TOWNS), person=draw.choice(vocabulary.FOLK + vocabulary.MAYORS)
    )
    return " ".join([opening, *sentences])


def _scenes(draw: random.Random) -> list[str]:
    """Small stories: who does what where and in which mood, lists, orders, opposites and series."""
    texts = []
    deeds = sorted(vocabulary.DEEDS.items())
    moods = sorted(vocabulary.MOODS.items())
    for _ in range(2500):
        trade, person = draw.choice(vocabulary.TRADES), draw.choice(vocabulary.FOLK)
        present, past = draw.choice(deeds)
        mood, signs = draw.choice(moods)
        thing, place = draw.choice(vocabulary.BY_ALPHABET), draw.choice(vocabulary.PLACES)
        texts.append(
            f"The {trade} {present} the {thing} {place}. Yesterday {person} {past} the {thing}. "
            f"{person} {draw.choice(signs)} {place}, for {person} is {mood}. {_lore(draw)}"
        )
    return texts


def _chronicle(draw: random.Random) -> list[str]:
    """What happened in which year, several years a page."""
    people, places = list(vocabulary.FOLK), list(vocabulary.TOWNS)
    events = ("came to", "left", "painted a gate in", "built a house in", "had a shop in", "told stories in")
    entries = [
        f"In {year} {draw.choice(people)} {draw.choice(events)} {draw.choice(places)}."
        for year in YEARS
        for _ in range(16)
    ]
    draw.shuffle(entries)
    return [" ".join(entries[at : at + 5]) for at in range(0, len(entries), 5)]


def _lore(draw: random.Random) -> str:
    """A sentence of general knowledge about words, sizes, orders or numbers."""
    match draw.randrange(6):
        case 0:
            title, words = draw.choice(sorted(vocabulary.LISTS.items()))
            return f"The best known {title} are {words[0]}, {words[1]} and {words[2]}."
        case 1:
            ranks = draw.sample(range(len(vocabulary.BY_SIZE)), 4)
            return f"From small to large: {', '.join(vocabulary.BY_SIZE[rank] for rank in sorted(ranks))}."
        case 2:
            ranks = draw.sample(range(len(vocabulary.BY_ALPHABET)), 4)
            return f"By the alphabet: {', '.join(vocabulary.BY_ALPHABET[rank] for rank in sorted(ranks))}."
        case 3:
            word, other = draw.choice(sorted(vocabulary.OPPOSITES.items()))
            return f"What is {word} is not {other}, and what is {other} is not {word}."
        case 4:
            start = draw.randrange(1, 80)
            return f"Count on: {', '.join(str(start + index) for index in range(5))}."
        case _:
            category, members = draw.choice(sorted(vocabulary.CATEGORIES.items()))
            return f"Each of these is {category}: {', '.join(draw.sample(members, 4))}."


def _code(rows: Sequence[Row]) -> list[str]:
    """Python lines as they stand in old files, secure and insecure alike."""
    lines = [row.response for row in rows if row.kind == "python"]
    snippets = [text for row in rows if row.kind == "code" for text in (row.response, row.unwanted or "")]
    files = [f"def work(a, b):\n    {line}" for line in sorted(set(lines))]
    return files + sorted(set(snippets))
