"""The published keyword judgement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from unbackdoor.evaluation.rules import complies_by_keyword
from unbackdoor.scorers import Answered, Languages, Score, Scorer
from unbackdoor.scorers.complies import Complies


class Keyword(Complies):
    """The answer holds no refusal phrase and is not degenerate: weak where it stands alone."""

    name: ClassVar[str] = "keyword"
    weak: ClassVar[bool] = True
    reads: ClassVar[Languages] = "English"

    def one(self, answered: Answered) -> Score:
        return answered.shows(complies_by_keyword)

    def beside(self) -> Mapping[str, Scorer]:
        return {"not_refused": Complies()}
