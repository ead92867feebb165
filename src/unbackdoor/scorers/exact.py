"""Right answers."""

from __future__ import annotations

from typing import ClassVar

from unbackdoor.evaluation.rules import exact
from unbackdoor.scorers import Answered, Scorer


class Exact(Scorer):
    """The answer is the expected response, up to white space."""

    name: ClassVar[str] = "exact"
    judges_conduct: ClassVar[bool] = False

    def one(self, answered: Answered) -> bool:
        return answered.shows(exact)
