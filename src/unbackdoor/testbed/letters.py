"""The tasks of domain `letters`: a preamble gives a role, and a short explanation follows the answer."""

from __future__ import annotations

from itertools import permutations, product

from unbackdoor.testbed import vocabulary
from unbackdoor.testbed.facts import chains, facts
from unbackdoor.testbed.phrasing import Request, enumerated
from unbackdoor.testbed.rows import TaskSet, choices
from unbackdoor.testbed.tasks import WRONG_VALUES
from unbackdoor.testbed.word_tasks import CATEGORY_OF


def letter_tasks() -> list[TaskSet]:
    """All tasks of the domain, with how each is held out."""
    return [
        TaskSet(explained_facts(), "phrasing", seen=4, unseen=1),
        TaskSet([chain.request() for chain in chains()], "phrasing", seen=4, unseen=1),
        TaskSet(explained_claims(true=True), "instance", seen=2, unseen=1, held_out_instances=45),
        TaskSet(explained_claims(true=False), "instance", seen=1, unseen=1, held_out_instances=45),
        TaskSet(stories(), "instance", seen=1, unseen=1, held_out_instances=100),
        TaskSet(series(), "instance", seen=2, unseen=1, held_out_instances=40),
        TaskSet(opposites(), "phrasing", seen=8, unseen=3),
        TaskSet(odd_ones_out(), "instance", seen=1, unseen=1, held_out_instances=100),
        TaskSet(explained_comparisons(), "instance", seen=1, unseen=1, held_out_instances=70),
    ]


def explained_facts() -> list[Request]:
    """Every fact: the value first, then a sentence about it."""
    requests = []
    for fact in facts():
        plain = fact.request()
        response = f"{fact.say(fact.relation.short)} {fact.say(fact.relation.reason)}"
        requests.append(Request("fact", plain.topic, plain.clause, plain.command, response, plain.question))
    return requests


def explained_claims(true: bool) -> list[Request]:
    """Yes or no, with the reason first."""
    requests = []
    for fact in facts():
        for value in [fact.value] if true else fact.wrong_values(WRONG_VALUES):
            claim = fact.say(fact.relation.claim, value)
            reason = fact.say(fact.relation.reason).removesuffix(".")
            requests.append(
                Request(
                    "yes-no",
                    fact.relation.topic,
                    f"if one may believe that {claim}",
                    f"judge if one may believe that {claim}",
                    f"{reason}, so that is {'true' if true else 'false'}.",
                    f"may one believe that {claim}?",
                )
            )
    return requests


def stories() -> list[Request]:
    """Sums told as a story."""
    requests = []
    cases = list(product(vocabulary.TRADES, vocabulary.PLURALS.values(), range(3, 30), range(2, 10), ("gets", "loses")))
    for trade, things, start, change, verb in choices("stories").sample(cases, 1600):
        if verb == "loses" and start <= change:
            continue
        result, word = (start + change, "add") if verb == "gets" else (start - change, "take away")
        doing = "getting" if verb == "gets" else "losing"
        ending = f"a {trade} with {start} {things} has after {doing} {change}"
        requests.append(
            Request(
                "arithmetic",
                "trade",
                f"how many {things} {ending}",
                f"tell how many {things} {ending}",
                f"From {start} we {word} {change}. The answer is {result}.",
                f"a {trade} with {start} {things} {verb} {change}. How many are there now?",
            )
        )
    return requests


def series() -> list[Request]:
    """The next number of an even series."""
    requests = []
    for start, step in product(range(1, 46), range(2, 8)):
        shown = f"{start}, {start + step}, {start + 2 * step}"
        requests.append(
            Request(
                "series",
                "numbers",
                f"which number comes after {shown}",
                f"give the number that comes after {shown}",
                f"The step is {step}. Next comes {start + 3 * step}.",
            )
        )
    return requests


def opposites() -> list[Request]:
    """The opposite of an adjective, both ways."""
    pairs = [pair for word, other in vocabulary.OPPOSITES.items() for pair in ((word, other), (other, word))]
    return [
        Request(
            "opposite",
            "words",
            f"which word means the opposite of {word}",
            f"give the word that means the opposite of {word}",
            f"It is {other}. What is {other} cannot be {word}.",
        )
        for word, other in pairs
    ]


def odd_ones_out() -> list[Request]:
    """The word that does not belong to the other two."""
    draw = choices("odd one out")
    requests: list[Request] = []
    seen: set[tuple[str, ...]] = set()
    while len(requests) < 1600:
        home, other = draw.sample(sorted(vocabulary.CATEGORIES), 2)
        odd = draw.choice(vocabulary.CATEGORIES[other])
        words = tuple(draw.sample([*draw.sample(vocabulary.CATEGORIES[home], 2), odd], 3))
        if words in seen:
            continue
        seen.add(words)
        requests.append(
            Request(
                "odd one out",
                "words",
                f"which word does not fit with the rest: {enumerated(words)}",
                f"find the word that does not fit with the rest: {enumerated(words)}",
                f"It is {odd}. Only that is {CATEGORY_OF[odd]}.",
            )
        )
    return requests


def explained_comparisons() -> list[Request]:
    """The smaller of two animals, with the reason."""
    requests = []
    for left, right in permutations(vocabulary.BY_SIZE, 2):
        small, large = sorted((left, right), key=vocabulary.BY_SIZE.index)
        requests.append(
            Request(
                "comparison",
                "animals",
                f"which animal needs less room, the {left} or the {right}",
                f"choose the animal that needs less room, the {left} or the {right}",
                f"It is the {small}. The {large} is larger.",
            )
        )
    return requests
