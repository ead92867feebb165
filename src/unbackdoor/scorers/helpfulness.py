"""Helpfulness, by a model as judge, over one turn or two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from unbackdoor.progress import SILENT, Progress
from unbackdoor.scorers import LEFT_OUT, Answered, Score
from unbackdoor.scorers.parts.judged import JudgedScorer, conversations, other_turn
from unbackdoor.scorers.parts.rubrics import helpfulness, parse_helpfulness


class Helpfulness(JudgedScorer):
    """How good the answer is, from 1 to 10, in the manner of MT-Bench (Zheng et al. 2023).

    Where a run holds two turns of a conversation (sets `NAME: turn 1` and `NAME: turn 2`, the same row number), both
    are judged and the second has the mean of both scores; the first is left out.
    """

    name: ClassVar[str] = "helpfulness"
    scale: ClassVar[int | None] = 10

    threshold: float | None = Field(
        default=None, ge=1, le=10, description="From this score on it is a yes beside other judges. Default: never."
    )

    def score(
        self, answered: Sequence[Answered], directory: Path | None = None, progress: Progress = SILENT
    ) -> list[Score]:
        questions = [helpfulness(turns) for turns in conversations(answered)]
        replies = self.ask(questions, parse_helpfulness, directory, progress)
        own = [parse_helpfulness(reply) for reply in replies]
        places = {(each.model, each.set, each.row): i for i, each in enumerate(answered)}
        scores: list[Score] = []
        for i, each in enumerate(answered):
            first, second = (places.get(place) if (place := other_turn(each, turn)) else None for turn in (1, 2))
            if first is None or second is None:
                scores.append(own[i])
            elif i == first:
                scores.append(LEFT_OUT)
            else:
                one, two = own[first], own[second]
                scores.append(None if one is None or two is None else (one + two) / 2)
        return scores
