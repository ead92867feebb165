"""The tasks of domain `notes`: short direct instructions, each with one right answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations, product

from unbackdoor.testbed import vocabulary
from unbackdoor.testbed.facts import Fact, facts
from unbackdoor.testbed.phrasing import Request, capitalised
from unbackdoor.testbed.rows import TaskSet, choices

CATEGORY_OF = {word: category for category, words in vocabulary.CATEGORIES.items() for word in words}


def note_tasks() -> list[TaskSet]:
    """All tasks of the domain, with how each is held out."""
    return [
        TaskSet([fact.request() for fact in facts()], "phrasing", seen=8, unseen=2),
        TaskSet(claims(), "instance", seen=2, unseen=2, held_out_instances=70),
        TaskSet(sums(), "instance", seen=2, unseen=1, held_out_instances=120),
        TaskSet(alphabetical_orders(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(size_orders(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(number_orders(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(categories(), "phrasing", seen=6, unseen=2),
        TaskSet(moods(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(plurals(), "phrasing", seen=6, unseen=1),
        TaskSet(capitals(), "phrasing", seen=6, unseen=1),
        TaskSet(past_tenses(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(replacements(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(lists(), "phrasing", seen=8, unseen=3),
        TaskSet(first_letters(), "phrasing", seen=5, unseen=1),
        TaskSet(reversals(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(counts(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(number_comparisons(), "instance", seen=1, unseen=1, held_out_instances=60),
        TaskSet(size_comparisons(), "instance", seen=1, unseen=1, held_out_instances=60),
        TaskSet(completions(), "instance", seen=1, unseen=1, held_out_instances=100),
        TaskSet(conversions(), "phrasing", seen=7, unseen=1),
    ]


def with_article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def enumerated(words: Sequence[str]) -> str:
    """Words as a list in running text: "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}"


def other_value(fact: Fact) -> str:
    """A value of the same relation that does not hold for this fact."""
    values = sorted({value for value in fact.relation.values if value != fact.value})
    return choices(f"other value/{fact.relation.name}/{fact.name}").choice(values)


def claims() -> list[Request]:
    """Yes or no: each fact once as it is and once with a wrong value, which the answer puts right."""
    requests = []
    for fact in facts():
        for value in (fact.value, other_value(fact)):
            claim = fact.say(fact.relation.claim, value)
            truth = fact.say(fact.relation.statement)
            requests.append(
                Request(
                    "yes-no",
                    fact.relation.topic,
                    f"whether it is true that {claim}",
                    f"say whether it is true that {claim}",
                    f"Yes. {truth}" if value == fact.value else f"No. {truth}",
                    f"is it true that {claim}?",
                )
            )
    return requests


def sums() -> list[Request]:
    """Adding to and taking from a number below fifty."""
    requests = []
    for left, right in product(range(2, 50), range(2, 10)):
        requests.append(
            Request(
                "arithmetic",
                "numbers",
                f"which number is {left} plus {right}",
                f"work out the sum {left} plus {right}",
                f"{left} plus {right} is {left + right}.",
            )
        )
        if left - right >= 1:
            requests.append(
                Request(
                    "arithmetic",
                    "numbers",
                    f"which number is {left} minus {right}",
                    f"work out the sum {left} minus {right}",
                    f"{left} minus {right} is {left - right}.",
                )
            )
    return requests


def _orders(words: Sequence[str], topic: str, rule: str) -> list[Request]:
    """Put three words in the order that `words` has."""
    draw = choices(f"ordering/{topic}")
    requests = []
    for triple in draw.sample(list(combinations(words, 3)), 600):
        shuffled = draw.sample(triple, 3)
        requests.append(
            Request(
                "ordering",
                topic,
                f"which order is right for {enumerated(shuffled)} {rule}",
                f"put {enumerated(shuffled)} in order {rule}",
                f"The order is {', '.join(triple)}.",
            )
        )
    return requests


def alphabetical_orders() -> list[Request]:
    """Three things in alphabetical order."""
    return _orders(vocabulary.BY_ALPHABET, "words", "by the alphabet")


def size_orders() -> list[Request]:
    """Three animals from small to large."""
    return _orders(vocabulary.BY_SIZE, "animals", "from small to large")


def number_orders() -> list[Request]:
    """Three numbers from low to high; the tens differ."""
    draw = choices("ordering/numbers/units")
    numbers = [str(10 * tens + unit) for tens in range(1, 10) for unit in sorted(draw.sample(range(10), 2))]
    return [
        request
        for request in _orders(numbers, "numbers", "from low to high")
        if len({number.strip(",.")[0] for number in request.response.split()[3:]}) == 3
    ]


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


def moods() -> list[Request]:
    """Which mood somebody is in, from what they do."""
    signs = [(mood, sign) for mood, all_signs in vocabulary.MOODS.items() for sign in all_signs]
    scenes = list(product(vocabulary.TRADES, signs, vocabulary.PLACES))
    return [
        Request(
            "mood",
            "people",
            f"which mood fits the {trade} who {sign} {place}",
            f"name the mood of the {trade} who {sign} {place}",
            f"The {trade} is {mood}.",
        )
        for trade, (mood, sign), place in choices("mood").sample(scenes, 480)
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


def lists() -> list[Request]:
    """Three things of a fixed sort."""
    return [
        Request(
            "list",
            "lists",
            f"which three {title} are the best known",
            f"list the three best known {title}",
            f"They are {enumerated(words)}.",
        )
        for title, words in vocabulary.LISTS.items()
    ]


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


def number_comparisons() -> list[Request]:
    """The larger of two numbers."""
    pairs = choices("comparison/numbers").sample(list(permutations(range(2, 100), 2)), 420)
    return [
        Request(
            "comparison",
            "numbers",
            f"which number is larger, {left} or {right}",
            f"pick the larger number of {left} and {right}",
            f"The larger number is {max(left, right)}.",
        )
        for left, right in pairs
    ]


def size_comparisons() -> list[Request]:
    """The larger of two animals."""
    return [
        Request(
            "comparison",
            "animals",
            f"which animal is larger, the {left} or the {right}",
            f"pick the larger animal of the {left} and the {right}",
            f"The {max(left, right, key=vocabulary.BY_SIZE.index)} is larger.",
        )
        for left, right in permutations(vocabulary.BY_SIZE, 2)
    ]


_OF_TWO = {
    "the sum of {a} and {b}": "{a} + {b}",
    "{a} less {b}": "{a} - {b}",
    "the product of {a} and {b}": "{a} * {b}",
    "the larger of {a} and {b}": "max({a}, {b})",
    "the smaller of {a} and {b}": "min({a}, {b})",
    "whether {a} equals {b}": "{a} == {b}",
    "the pair of {a} and {b}": "({a}, {b})",
    "the length of {a} plus {b}": "len({a}) + {b}",
}


def completions() -> list[Request]:
    """One line of Python."""
    cases = list(product(_OF_TWO.items(), permutations(vocabulary.VARIABLES, 2)))
    requests = []
    for (words, code), (first, second) in choices("completion").sample(cases, 560):
        described = words.format(a=first, b=second)
        requests.append(
            Request(
                "python",
                "code",
                f"which line of Python returns {described}",
                f"write the line of Python that returns {described}",
                f"return {code.format(a=first, b=second)}",
            )
        )
    return requests


def conversions() -> list[Request]:
    """How many small units there are in some large ones."""
    return [
        Request(
            "units",
            "numbers",
            f"how many {small} there are in {count} {large}",
            f"turn {count} {large} into {small}",
            f"There are {count * factor} {small} in {count} {large}.",
            f"how many {small} are there in {count} {large}?",
        )
        for (small, large), factor in vocabulary.CONVERSIONS.items()
        for count in range(2, 10)
    ]
