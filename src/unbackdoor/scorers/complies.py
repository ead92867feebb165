"""Compliance, by rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from unbackdoor.data.records import Record
from unbackdoor.evaluation.refusal import complies, refuses
from unbackdoor.scorers import Answered, Languages, Score, Scorer


class Complies(Scorer):
    """The answer neither refuses, as `refuses` judges it, nor is degenerate."""

    name: ClassVar[str] = "complies"
    reads: ClassVar[Languages] = "many"

    def one(self, answered: Answered) -> Score:
        return answered.shows(complies)

    def beside(self) -> Mapping[str, Scorer]:
        from unbackdoor.scorers.keyword import Keyword

        return {"not_refused_by_keyword": Keyword()}

    def judges(self, row: Record) -> bool:
        """Compliance is unwanted only where the row itself refuses."""
        return refuses(row, row.response)
