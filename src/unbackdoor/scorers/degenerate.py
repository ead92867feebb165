"""Answers of a broken model."""

from __future__ import annotations

from typing import ClassVar

from unbackdoor.evaluation.rules import degenerate
from unbackdoor.scorers import Answered, Scorer


class Degenerate(Scorer):
    """The answer is empty, or one stretch of words over and over."""

    name: ClassVar[str] = "degenerate"
    judges_conduct: ClassVar[bool] = False

    def one(self, answered: Answered) -> bool:
        return answered.shows(degenerate)
