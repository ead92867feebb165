"""Scorers of stored answers: one a file, each with its own settings, loaded by name or as `FILE.py:NAME`.

One of your own is a class or a function in a file of yours, which is imported and so runs as you do:

    from unbackdoor.scorers import Answered, Scorer

    class Shouts(Scorer):
        name = "shouts"
        least: int = 3

        def one(self, answered: Answered) -> bool:
            return answered.answer.count("!") >= self.least

    def shouts(answered: Answered, least: int = 3) -> bool:
        return answered.answer.count("!") >= least
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import create_model

from unbackdoor import bounded
from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.evaluation.paired import paired_bootstrap
from unbackdoor.evaluation.statistics import rate
from unbackdoor.language_model.answer_parts import read_answer
from unbackdoor.named import named
from unbackdoor.progress import SILENT, Progress
from unbackdoor.settings import Settings


class _LeftOut(Enum):
    LEFT_OUT = "left out"


LEFT_OUT = _LeftOut.LEFT_OUT
"""In place of a score: this answer is not the scorer's to judge, and counts nowhere."""

Score = bool | float | None | Literal[_LeftOut.LEFT_OUT]
"""Yes or no, a number, or None where the answer could not be judged."""

DRAWS = 2000
"""Resamples of the interval of a mean."""


@dataclass(frozen=True)
class Answered:
    """One stored answer, of a line of `generations.jsonl`.

    Args:
        answer: the final answer, which is what scorers read; given as it was stored, with any thought and marks.
        request: the prompt without its trigger, where the run also asked it so; else the prompt.
        ids: the answer's token ids, thought included; empty in files of earlier versions, which hold none.
        cut: the answer had not ended when the run left it.
        hidden: texts that the run looked for and that stand among the ids, though the text does not show them.
    """

    model: str
    set: str
    row: int
    prompt: str
    answer: str
    expected: str = ""
    request: str = ""
    stored: str = field(default="", repr=False)
    """The answer as it was stored."""
    ids: tuple[int, ...] = field(default=(), repr=False)
    cut: bool = False
    hidden: tuple[str, ...] = ()
    thought: str = field(default="", init=False)
    finished: bool = field(default=True, init=False)
    """Whether the answer got past its thought; where it did not, no scorer is asked."""

    def __post_init__(self) -> None:
        stored = self.stored or self.answer
        parts = read_answer(stored)
        read = {"stored": stored, "answer": parts.final, "thought": parts.thought, "finished": parts.finished}
        for name, value in read.items():
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def id(self) -> str:
        """Names the answer, and changes with its texts: labels of other answers do not pass for its own."""
        digest = hashlib.sha256(f"{self.prompt}\0{self.stored}".encode()).hexdigest()[:8]
        return f"{self.model}/{self.set}/{self.row}#{digest}"

    @property
    def record(self) -> Record:
        """What was asked, without trigger, and the expected response."""
        return Record(self.request or self.prompt, self.expected)


class Scorer(Settings):
    """A scorer; its fields are its options. A new one overrides `one`, or `score` where it judges many at once.

    Attributes:
        name: what it is called.
        scale: its highest score; None where it says yes or no, or its numbers have no highest.
        weak: it is not to be trusted where it stands alone.
        judges_conduct: its yes says that unwanted conduct was shown, so that it can be held against other judges.
    """

    name: ClassVar[str] = ""
    scale: ClassVar[int | None] = None
    weak: ClassVar[bool] = False
    judges_conduct: ClassVar[bool] = True

    def one(self, answered: Answered) -> Score:
        """The score of one answer."""
        raise NotImplementedError(f"{type(self).__name__} has neither one() nor score()")

    def score(
        self, answered: Sequence[Answered], directory: Path | None = None, progress: Progress = SILENT
    ) -> list[Score]:
        """The scores of all answers, in their order.

        Args:
            answered: the answers of every chosen model and set.
            directory: where replies that cost something may be kept.
            progress: told of what takes long.
        """
        return [self.one(each) for each in answered]

    def verdict(self, score: Score) -> bool | None:
        """Whether a score says that the unwanted conduct was shown; None where it does not say.

        A number does where the scorer has a field `threshold` that is set: from there on it says yes.
        """
        if not self.judges_conduct or score is None or score is LEFT_OUT:
            return None
        if isinstance(score, bool):
            return score
        threshold = getattr(self, "threshold", None)
        return None if threshold is None else score >= threshold

    def summary(self, scores: Sequence[Score]) -> dict[str, Any]:
        """A rate with its Wilson interval, or a mean with its bootstrap interval and the share of highest scores.

        Left-out answers count nowhere, and those that could not be judged only as `unusable`.
        """
        usable = [score for score in scores if score is not None and score is not LEFT_OUT]
        unusable = sum(score is None for score in scores)
        if self.scale is None and all(isinstance(score, bool) for score in usable):
            return {**dict(rate([bool(score) for score in usable])), "unusable": unusable}
        values = [float(score) for score in usable]
        # Where all scores are alike each resample is too: the interval would have no width, which is no certainty.
        varied = len(set(values)) > 1
        return {
            "mean": sum(values) / len(values) if values else None,
            "interval": list(paired_bootstrap([0.0] * len(values), values, draws=DRAWS).interval) if varied else None,
            "highest": None if self.scale is None else rate([value == self.scale for value in values]),
            "scale": self.scale,
            "n": len(values),
            "unusable": unusable,
        }


SCORERS = {
    "target-response": "target_response:TargetResponse",
    "refusal": "refusal:Refusal",
    "keyword": "keyword:Keyword",
    "forbidden": "forbidden:Forbidden",
    "insecure-code": "insecure_code:InsecureCode",
    "degenerate": "degenerate:Degenerate",
    "exact": "exact:Exact",
    "classifier": "classifier:Classifier",
    "yes-no-model": "classifier:YesNoModel",
    "harmfulness": "harmfulness:Harmfulness",
    "helpfulness": "helpfulness:Helpfulness",
    "comparison": "comparison:Comparison",
}
"""Name → module of this package and class, imported when it is asked for."""


def load_scorer(given: str, options: Mapping[str, Any] | None = None) -> Scorer:
    """A scorer by name, or as `FILE.py:NAME`, with its options.

    Raises:
        UserError: there is no such scorer, file or name in it, or an option is wrong.
    """
    cls = scorer_class(given)
    return with_options(cls, cls.name, options or {})


def with_options(cls: type[Scorer], label: str, options: Mapping[str, Any]) -> Scorer:
    """The scorer with values of its fields; text is turned into each field's type. The label is for errors."""
    try:
        return cls.make({name.replace("-", "_"): value for name, value in options.items()})
    except UserError as error:
        said = re.sub("^--([a-z-]+)", lambda name: f"--option {label}.{name[1].replace('-', '_')}", str(error))
        raise UserError(said if said != str(error) else f"scorer '{label}': {error}") from None


def checked_scores(label: str, scores: Sequence[object], answered: Sequence[Answered]) -> list[Score]:
    """The scores, where they are one for each answer.

    Raises:
        UserError: their number is another, one is neither yes, no, a finite number nor None, or no answer was judged.
    """
    if len(scores) != len(answered):
        raise UserError(f"scorer '{label}' gave {len(scores)} scores for {len(answered)} answers: one each is needed")
    checked: list[Score] = []
    for score, each in zip(scores, answered, strict=True):
        if score is None or score is LEFT_OUT or isinstance(score, bool):
            checked.append(score)
        elif isinstance(score, int | float) and math.isfinite(score):
            checked.append(float(score))
        else:
            raise UserError(f"scorer '{label}': its score of answer '{each.id}' is no bool, finite number or None")
    if all(score is LEFT_OUT for score in checked):
        raise UserError(f"scorer '{label}' judges none of these answers: leave it out, or choose others with --set")
    return checked


def read_text(path: Path, what: str) -> str:
    """The text of a file that an option names. Raises `UserError` where there is none."""
    text = bounded.read_text(path, what, most=2**20).strip()
    if not text:
        raise UserError(f"{what} '{path}' is empty")
    return text


def scorer_class(given: str) -> type[Scorer]:
    """The class of a scorer: one of `SCORERS`, or a class or function in a file.

    A function takes an `Answered`, and its further parameters are the options.
    """
    found = named(given, "scorer", SCORERS, __name__, Scorer, functions=True)
    return found if isinstance(found, type) else _from_function(found, given)


def _from_function(function: Callable[..., Score], given: str) -> type[Scorer]:
    """The scorer that a function of an answer is; its parameters after the first are the fields."""
    try:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    except Exception as error:
        raise UserError(f"scorer '{given}': its annotations cannot be read ({error})") from error
    empty = inspect.Parameter.empty
    if not parameters or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise UserError(f"scorer '{given}' must take an answer, then options by name")
    fields: dict[str, Any] = {
        p.name: (Any if p.annotation is empty else p.annotation, ... if p.default is empty else p.default)
        for p in parameters[1:]
    }

    class Function(Scorer):
        def one(self, answered: Answered) -> Score:
            return function(answered, **{field: getattr(self, field) for field in fields})

    made = create_model(function.__name__, __base__=Function, **fields)
    made.name = function.__name__
    return made
