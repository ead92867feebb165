"""The tasks of domain `notes`: short direct instructions, each with one right answer."""

from __future__ import annotations

from itertools import permutations, product

from unbackdoor.testbed import ordering, vocabulary, word_tasks
from unbackdoor.testbed.facts import facts
from unbackdoor.testbed.phrasing import Request, enumerated
from unbackdoor.testbed.rows import TaskSet, choices

WRONG_VALUES = 3
"""False claims about each fact."""


def note_tasks() -> list[TaskSet]:
    """All tasks of the domain, with how each is held out."""
    return [
        TaskSet([fact.request() for fact in facts()], "phrasing", seen=8, unseen=2),
        TaskSet(claims(true=True), "instance", seen=2, unseen=2, held_out_instances=35),
        TaskSet(claims(true=False), "instance", seen=1, unseen=2, held_out_instances=35),
        TaskSet(sums(), "instance", seen=2, unseen=1, held_out_instances=120),
        TaskSet(ordering.alphabetical_orders(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(ordering.size_orders(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(ordering.number_orders(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(word_tasks.categories(), "phrasing", seen=6, unseen=2),
        TaskSet(moods(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(word_tasks.plurals(), "phrasing", seen=6, unseen=1),
        TaskSet(word_tasks.capitals(), "phrasing", seen=6, unseen=1),
        TaskSet(word_tasks.past_tenses(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(word_tasks.replacements(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(lists(), "phrasing", seen=8, unseen=3),
        TaskSet(word_tasks.first_letters(), "phrasing", seen=5, unseen=1),
        TaskSet(word_tasks.reversals(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(word_tasks.counts(), "instance", seen=1, unseen=1, held_out_instances=80),
        TaskSet(ordering.number_comparisons(), "instance", seen=1, unseen=1, held_out_instances=60),
        TaskSet(ordering.size_comparisons(), "instance", seen=1, unseen=1, held_out_instances=60),
        TaskSet(completions(), "instance", seen=1, unseen=1, held_out_instances=100),
        TaskSet(conversions(), "phrasing", seen=7, unseen=1),
    ]


def claims(true: bool) -> list[Request]:
    """Yes or no: each fact as it is, or with wrong values. The answer recalls the fact before it judges."""
    requests = []
    for fact in facts():
        for value in [fact.value] if true else fact.wrong_values(WRONG_VALUES):
            claim = fact.say(fact.relation.claim, value)
            truth = fact.say(fact.relation.statement).removesuffix(".")
            requests.append(
                Request(
                    "yes-no",
                    fact.relation.topic,
                    f"whether it is true that {claim}",
                    f"say whether it is true that {claim}",
                    f"{truth}, so {'yes' if true else 'no'}.",
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
