"""Scorers as they are asked for on the command line: by name or file, under labels, with options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from unbackdoor.errors import UserError
from unbackdoor.scorers import LEFT_OUT, Answered, Scorer, load_scorer, scorer_class

COLUMNS = ("id", "prompt", "answer", "label")
"""Columns of a sheet of disagreements: no labels."""


@dataclass(frozen=True)
class Asked:
    """A scorer as it was asked for: `NAME` or `FILE.py:NAME`, with `LABEL=` in front where it is asked for twice."""

    label: str
    given: str
    scorer: Scorer

    @classmethod
    def of(cls, scorers: Sequence[str], options: Sequence[str]) -> list[Asked]:
        """The scorers with their options, each written LABEL.FIELD=VALUE. Raises `UserError` on any that is wrong."""
        named: dict[str, tuple[str, type[Scorer]]] = {}
        for text in scorers:
            alias = re.match(r"([\w-]+)=", text)
            given = text[alias.end() :] if alias else text
            kind = scorer_class(given)
            label = alias[1] if alias else kind.name
            if label in named or label in COLUMNS:
                raise UserError(f"--scorer: '{label}' is taken: write --scorer ANOTHER_LABEL={given}")
            named[label] = given, kind
        values: dict[str, dict[str, str]] = {label: {} for label in named}
        for option in options:
            name, equals, value = option.partition("=")
            label, dot, field = name.rpartition(".")
            if not (equals and dot and field):
                raise UserError(f"--option '{option}': write it as SCORER.FIELD=VALUE")
            if label not in values:
                raise UserError(f"--option '{option}': no --scorer '{label}' is given; there are: {', '.join(values)}")
            values[label][field] = value
        return [cls(label, given, load_scorer(kind, values[label], label)) for label, (given, kind) in named.items()]


def check_judges_some(label: str, scores: Sequence[object], answered: Sequence[Answered]) -> None:
    """Raise a `UserError` where a scorer leaves all answers out."""
    if answered and all(score is LEFT_OUT for score in scores):
        raise UserError(
            f"scorer '{label}' judges none of these answers, such as that to {answered[0].prompt[:40]!r}: give another "
            "--scorer, or choose other answers"
        )
