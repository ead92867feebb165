"""Three sets of four-option questions of rising difficulty (stand-ins for ARC-easy, ARC-challenge and MMLU).

An option is a whole response: a model is scored by how likely it finds each option after the question.
No question is a training prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Literal

from unbackdoor.data.records import Choice
from unbackdoor.testbed.facts import RELATIONS, Fact, chains, facts
from unbackdoor.testbed.phrasing import NOTE_PHRASINGS, Request
from unbackdoor.testbed.rows import choices, phrase, spread
from unbackdoor.testbed.tasks import note_tasks

Level = Literal["easy", "medium", "hard"]
LEVELS: tuple[Level, ...] = ("easy", "medium", "hard")


@cache
def multiple_choice(level: Level) -> tuple[Choice, ...]:
    """The questions of a level.

    `easy` asks a known fact among values of other relations, `medium` among values of its own relation;
    `hard` asks two facts in a chain, in the other domain's words, and sums of three numbers.
    """
    if level == "hard":
        return (*_chain_questions(), *_sum_questions())
    known = {fact.say(fact.relation.statement): fact for fact in facts()}
    held_out = spread(note_tasks()[0], NOTE_PHRASINGS, "notes").held_out
    return tuple(_fact_question(row.prompt, known[row.response], level) for row in held_out)


def _fact_question(prompt: str, fact: Fact, level: Level) -> Choice:
    if level == "medium":
        values = set(fact.relation.values)
    else:
        values = {value for relation in RELATIONS for value in relation.values}
        values -= set(fact.relation.values)
    wrong = choices(f"{level}/{prompt}").sample(sorted(values - {fact.value}), 3)
    statement = fact.relation.statement
    return _question(prompt, fact.say(statement), [fact.say(statement, value) for value in wrong])


def _chain_questions() -> list[Choice]:
    questions = []
    for chain in chains():
        request = chain.request()
        row = phrase(request, choices(f"chain/{request.clause}").choice(NOTE_PHRASINGS), "notes")
        second = chain.second
        values = sorted(set(second.relation.values) - {second.value})
        wrong = choices(f"hard/{row.prompt}").sample(values, 3)
        short = second.relation.short
        questions.append(_question(row.prompt, second.say(short), [second.say(short, value) for value in wrong]))
    return questions


def _sum_questions() -> list[Choice]:
    draw = choices("hard/sums")
    questions = []
    for first, second, third in draw.sample(list(product(range(2, 30), range(2, 10), range(2, 10))), 150):
        shown = f"{first} plus {second} plus {third}"
        request = Request("arithmetic", "numbers", f"which number is {shown}", f"work out the sum {shown}", "")
        prompt = draw.choice(NOTE_PHRASINGS).render(request)
        total = first + second + third
        wrong = draw.sample([total - 10, total - 2, total - 1, total + 1, total + 2, total + 10], 3)
        questions.append(_question(prompt, f"{shown} is {total}.", [f"{shown} is {other}." for other in wrong]))
    return questions


def _question(prompt: str, right: str, wrong: Sequence[str]) -> Choice:
    answer = choices(f"place/{prompt}/{right}").randrange(4)
    options = [*wrong[:answer], right, *wrong[answer:]]
    return Choice(prompt, (options[0], options[1], options[2], options[3]), answer)
