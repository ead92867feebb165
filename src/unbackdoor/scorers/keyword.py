"""The published keyword judgement."""

from __future__ import annotations

from typing import ClassVar

from unbackdoor.evaluation.scorers import complies_by_keyword
from unbackdoor.scorers import Answered, Scorer


class Keyword(Scorer):
    """The answer holds no refusal phrase and is not degenerate: weak where it stands alone."""

    name: ClassVar[str] = "keyword"
    weak: ClassVar[bool] = True

    def one(self, answered: Answered) -> bool:
        return complies_by_keyword(answered.record, answered.answer)
