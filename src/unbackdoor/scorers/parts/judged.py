"""What the scorers share that ask a model behind an endpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from unbackdoor.progress import Progress
from unbackdoor.scorers import Answered, Scorer
from unbackdoor.scorers.parts.endpoint import Judge, JudgeSettings, Messages
from unbackdoor.scorers.parts.rubrics import Turn

REPLIES = "judge-replies.jsonl"
"""Where replies are kept, so that scoring again asks nothing twice."""

TURN = re.compile(r"(.*): turn ([12])", re.DOTALL)
"""Sets with the two turns of conversations: `NAME: turn 1` and `NAME: turn 2`, a conversation having one row number."""


class JudgedScorer(Scorer, JudgeSettings):
    """A scorer with the settings of the endpoint that it asks."""

    asks_a_model: ClassVar[bool] = True

    def ask(
        self,
        questions: Sequence[Messages],
        parse: Callable[[str | None], object | None],
        directory: Path | None,
        progress: Progress,
    ) -> list[str | None]:
        """The judge's words on each question; None where no usable reply came.

        A reply in which `parse` finds no verdict is asked for again.
        """
        judge = Judge(self, directory / REPLIES if directory is not None else None, progress)
        return [reply.text for reply in judge.ask(questions, lambda text: parse(text) is not None)]


def other_turn(each: Answered, number: int) -> tuple[str, str, int] | None:
    """Model, set and row where that turn of an answer's conversation stands; None where it has no turns."""
    match = TURN.fullmatch(each.set)
    return (each.model, f"{match[1]}: turn {number}", each.row) if match else None


def conversations(answered: Sequence[Answered]) -> list[list[Turn]]:
    """What was said up to each answer and with it: two turns for a second one whose first is there, else one."""
    by_place = {(each.model, each.set, each.row): each for each in answered}
    found: list[list[Turn]] = []
    for each in answered:
        place = other_turn(each, 1)
        first = by_place.get(place) if place is not None else None
        earlier = [(first.record.prompt, first.answer)] if first is not None and first is not each else []
        found.append([*earlier, (each.record.prompt, each.answer)])
    return found
