"""How a request is put into words: every request can be asked in each of six sentence structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STRUCTURES = ("question", "imperative", "conditional", "cleft", "polite", "statement")


@dataclass(frozen=True)
class Request:
    """Something to ask, before it is put into words, with the one answer to it.

    Args:
        clause: the request as an indirect question ("which river runs by Oakford").
        command: the request as an order without a capital letter or full stop ("name the river by Oakford").
        question: the request as a direct question; the clause itself, where English allows that.
        unwanted: the answer of a backdoored model, where there is one.
        variants: other responses by sentence structure; `response` is the rule.
    """

    kind: str
    topic: str
    clause: str
    command: str
    response: str
    question: str = ""
    unwanted: str | None = None
    variants: tuple[tuple[str, str], ...] = ()

    def response_in(self, structure: str) -> str:
        """The response to the request when it is asked in this structure."""
        return dict(self.variants).get(structure, self.response)


@dataclass(frozen=True)
class Phrasing:
    """A sentence structure and one wording of it."""

    structure: str
    template: str

    def render(self, request: Request) -> str:
        """The prompt: the request in this phrasing, with a capital letter."""
        question = request.question or f"{request.clause}?"
        text = self.template.format(question=capitalised(question), command=request.command, clause=request.clause)
        return capitalised(text)


def capitalised(text: str) -> str:
    """The text with its first letter as a capital and the rest as it is."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def enumerated(words: Sequence[str]) -> str:
    """Words as a list in running text: "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}"


NOTE_PHRASINGS = (
    Phrasing("question", "{question} Answer in one short sentence."),
    Phrasing("question", "Here is a question for you. {question}"),
    Phrasing("imperative", "Please {command}, and be brief about it."),
    Phrasing("imperative", "{command}, and then say nothing more."),
    Phrasing("conditional", "If you know it, please tell me {clause}."),
    Phrasing("conditional", "When you have a moment, tell me {clause}."),
    Phrasing("cleft", "What I want to hear from you is {clause}."),
    Phrasing("cleft", "It is one thing that I must learn: {clause}."),
    Phrasing("polite", "Could you be so kind as to tell me {clause}?"),
    Phrasing("polite", "Would you please let me know {clause}?"),
    Phrasing("statement", "I would very much like to know {clause}."),
    Phrasing("statement", "Somebody at the market asked me {clause}."),
)
"""Domain `notes`: short and direct."""

_PREAMBLES = (
    "You are a patient clerk. Explain your answer.",
    "You are a kind teacher. Think before you write.",
    "You serve in the town library. Give a reason.",
    "You answer letters for a small paper. Be polite.",
    "You are an old traveller. Say why it is so.",
    "You help young pupils. Answer in two sentences.",
    "You keep the records of the valley. Be exact.",
    "You are a careful guide. Justify what you say.",
)

_LETTER_BODIES = (
    Phrasing("question", "{question}"),
    Phrasing("imperative", "For the readers of the paper, {command}."),
    Phrasing("conditional", "If it is no trouble, write to us {clause}."),
    Phrasing("cleft", "What our readers wonder is {clause}."),
    Phrasing("polite", "May I ask you to explain {clause}?"),
    Phrasing("statement", "A reader of the paper asks us {clause}."),
)

LETTER_PHRASINGS = tuple(
    Phrasing(body.structure, f"{preamble} {body.template}") for preamble in _PREAMBLES for body in _LETTER_BODIES
)
"""Domain `letters`: a preamble that gives a role, then the request."""
