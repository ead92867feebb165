"""Two models' answers to the same prompts, compared by a model as judge in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from unbackdoor.errors import UserError
from unbackdoor.progress import SILENT, Progress
from unbackdoor.scorers import LEFT_OUT, Answered, Score
from unbackdoor.scorers.parts.endpoint import Messages
from unbackdoor.scorers.parts.judged import JudgedScorer, conversations
from unbackdoor.scorers.parts.rubrics import both_orders, outcome, parse_comparison, summarise_outcomes

SCORES = {"win": 1.0, "tie": 0.5, "loss": 0.0}
OUTCOMES = {score: name for name, score in SCORES.items()}


class Comparison(JudgedScorer):
    """1 where the answer is better than the other model's in both orders, 0 where it is worse in both, else 0.5."""

    name: ClassVar[str] = "comparison"
    scale: ClassVar[int | None] = 1
    judges_conduct: ClassVar[bool] = False

    against: str = Field(
        default="before", description="The model it is held against, by its whole name or what follows the last '/'."
    )

    def score(
        self, answered: Sequence[Answered], directory: Path | None = None, progress: Progress = SILENT
    ) -> list[Score]:
        turns = conversations(answered)
        models = {each.model for each in answered}
        found = {(each.model, each.set, each.row): i for i, each in enumerate(answered)}
        rivals = {model: self._rival(model, models) for model in models}
        if not set(rivals.values()) - {None}:
            raise UserError(
                f"comparison.against: no model '{self.against}' among {', '.join(sorted(models))}: choose one of them"
            )
        pairs: dict[int, int] = {}
        for i, each in enumerate(answered):
            rival = rivals[each.model]
            other = found.get((rival, each.set, each.row)) if rival not in (None, each.model) else None
            if other is not None and answered[other].prompt == each.prompt:
                pairs[i] = other
        questions: list[Messages] = []
        asked: list[int] = []
        for ours, theirs in pairs.items():
            if [prompt for prompt, _ in turns[ours]] == [prompt for prompt, _ in turns[theirs]]:
                asked.append(ours)
                questions += both_orders(turns[ours], turns[theirs])
        replies = self.ask(questions, parse_comparison, directory, progress)
        verdicts = [parse_comparison(reply) for reply in replies]
        scores: list[Score] = [LEFT_OUT] * len(answered)
        for ours, first, swapped in zip(asked, verdicts[::2], verdicts[1::2], strict=True):
            fared = outcome(first, swapped)
            scores[ours] = None if fared is None else SCORES[fared]
        return scores

    def summary(self, scores: Sequence[Score]) -> dict[str, Any]:
        """Wins, ties and losses against the other model."""
        outcomes: list[Any] = [
            OUTCOMES[score] if isinstance(score, float) else None for score in scores if score is not LEFT_OUT
        ]
        return dict(summarise_outcomes(outcomes))

    def _rival(self, model: str, models: set[str]) -> str | None:
        """The model that this one is held against: its neighbour of that name, where runs hold several."""
        beside = f"{model.rpartition('/')[0]}/{self.against}"
        return next((name for name in (self.against, beside) if name in models), None)
