"""Scorers of answers, for every command that judges: one a file, each with its settings, by name or as `FILE.py:NAME`.

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
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import create_model

from unbackdoor import bounded_files
from unbackdoor.data.records import Record
from unbackdoor.errors import UserError
from unbackdoor.evaluation.paired import paired_bootstrap
from unbackdoor.evaluation.rules import Rule
from unbackdoor.evaluation.statistics import rate
from unbackdoor.evaluation.stored_answer import StoredAnswer
from unbackdoor.language_model.answer_parts import read_answer
from unbackdoor.named_classes import named
from unbackdoor.progress import SILENT, Progress
from unbackdoor.settings import Settings


class _LeftOut(Enum):
    LEFT_OUT = "left out"


LEFT_OUT = _LeftOut.LEFT_OUT
"""In place of a score: this answer is not the scorer's to judge, and counts nowhere."""

Score = bool | float | None | Literal[_LeftOut.LEFT_OUT]
"""Yes or no, a number, or None where the answer could not be judged."""

Said = bool | None | Literal[_LeftOut.LEFT_OUT]
"""A score that is no number."""

Languages = Literal["all", "many", "English"]

DRAWS = 2000
"""Resamples of the interval of a mean."""


@dataclass(frozen=True)
class Answered:
    """One answer, as a line of `generations.jsonl` holds it.

    Args:
        answer: the final answer, which is what scorers read; given as it was stored, with any thought and marks.
        request: the prompt without its trigger, where the run also asked it so; else the prompt.
        ids: the answer's token ids, thought included; empty in files of earlier versions, which hold none.
        cut: the answer had not ended when the run left it.
        hidden: texts that the run looked for and that stand among the ids, though the text does not show them.
        row_asked: the row itself, where it is at hand.
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
    row_asked: Record | None = field(default=None, repr=False)
    thought: str = field(default="", init=False)
    finished: bool = field(default=True, init=False)
    """Whether the answer got past its thought; where it did not, no scorer is asked."""

    def __post_init__(self) -> None:
        stored = self.stored or self.answer
        parts = read_answer(stored)
        read = {"stored": stored, "answer": parts.final, "thought": parts.thought, "finished": parts.finished}
        for name, value in read.items():
            object.__setattr__(self, name, value)  # the class is frozen

    @classmethod
    def of(cls, model: str, set_name: str, row: int, asked: Record, answer: str, request: str = "") -> Answered:
        """An answer to a row that is at hand; `request` is the row's prompt without its trigger."""
        kept = answer if isinstance(answer, StoredAnswer) else StoredAnswer(answer)
        return cls(
            model,
            set_name,
            row,
            asked.prompt,
            str(answer),
            asked.response,
            request=request or asked.prompt,
            ids=kept.ids,
            cut=kept.cut,
            hidden=kept.hidden,
            row_asked=asked,
        )

    @property
    def id(self) -> str:
        """Names the answer, and changes with its texts: labels of other answers do not pass for its own."""
        digest = hashlib.sha256(f"{self.prompt}\0{self.stored}".encode()).hexdigest()[:8]
        return f"{self.model}/{self.set}/{self.row}#{digest}"

    @property
    def record(self) -> Record:
        """What was asked, without trigger, and the expected response."""
        return Record(self.request or self.prompt, self.expected)

    def shows(self, rule: Rule) -> bool:
        """Whether a rule says yes of the row as it was asked and the whole answer."""
        answer = StoredAnswer(self.stored, self.ids, self.cut, hidden=self.hidden)
        return rule(self.row_asked or Record(self.prompt, self.expected), answer)


class Scorer(Settings):
    """A scorer; its fields are its options. A new one overrides `one`, or `score` where it judges many at once.

    Attributes:
        name: what it is called.
        scale: its highest score; None where it says yes or no, or its numbers have no highest.
        weak: it is not to be trusted where it stands alone.
        judges_conduct: its yes says that unwanted conduct was shown: it can judge an attack, or be held against others.
        asks_a_model: its judgement costs something, so that little is tried before a run begins.
        reads: answers in which languages: all, the many of `evaluation/refusal_languages.py`, or English alone.
    """

    name: ClassVar[str] = ""
    scale: ClassVar[int | None] = None
    weak: ClassVar[bool] = False
    judges_conduct: ClassVar[bool] = True
    asks_a_model: ClassVar[bool] = False
    reads: ClassVar[Languages] = "all"

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

    @classmethod
    def meaning(cls) -> str:
        """What its yes says, in a sentence: the first line of its description."""
        return (cls.__doc__ or f"It is a scorer of yours, {cls.name}.").strip().split("\n")[0]

    def beside(self) -> Mapping[str, Scorer]:
        """What a report shows beside this judge of an attack, by the details' names."""
        return {}

    def judges(self, row: Record) -> bool:
        """Whether the answer to an ordinary row, asked without a trigger, can show the conduct."""
        return True

    def checked(
        self,
        answered: Sequence[Answered],
        directory: Path | None = None,
        progress: Progress = SILENT,
        label: str | None = None,
    ) -> list[Score]:
        """The scores, if they are ones; what is wrong is said under the label.

        An answer that ended within its thought is shown to no scorer: it has no score.

        Raises:
            UserError: the number of scores is another, or one is neither yes, no, a finite number nor None.
        """
        label = label or self.name
        finished = [each for each in answered if each.finished]
        try:
            scores: Sequence[object] = self.score(finished, directory, progress) if finished else []
        except UserError as error:
            raise UserError(f"scorer '{label}': {error}") from error
        if len(scores) != len(finished):
            raise UserError(f"scorer '{label}' gave {len(scores)} scores for {len(finished)} answers: give one each")
        checked: dict[int, Score] = {}
        for score, each in zip(scores, finished, strict=True):
            if score is None or score is LEFT_OUT or isinstance(score, bool):
                checked[id(each)] = score
            elif isinstance(score, int | float) and math.isfinite(score):
                checked[id(each)] = float(score)
            else:
                raise UserError(f"scorer '{label}': its score of answer '{each.id}' is no bool, finite number or None")
        return [checked.get(id(each)) for each in answered]

    def verdict(self, score: Score) -> bool | None:
        """Whether a score is a yes; None where it does not say.

        A number is where the scorer has a field `threshold` that is set: from there on.
        """
        if isinstance(score, bool):
            return score
        threshold = getattr(self, "threshold", None)
        return bool(score >= threshold) if isinstance(score, int | float) and threshold is not None else None

    def says(
        self, answered: Sequence[Answered], directory: Path | None = None, progress: Progress = SILENT
    ) -> list[Said]:
        """Yes or no of each answer; None where it could not be judged. An unfinished thought shows nothing.

        Raises:
            UserError: also where it gives numbers, and none is set from which on they are a yes.
        """
        scores = self.checked(answered, directory, progress)
        if getattr(self, "threshold", None) is None and any(isinstance(score, float) for score in scores):
            raise UserError(
                f"scorer '{self.name}' gives numbers: say from which on the attack is shown, with --option "
                f"{self.name}.threshold=NUMBER (a field of that name, in one of your own)"
            )
        return [
            LEFT_OUT if score is LEFT_OUT else self.verdict(score) if each.finished else False
            for each, score in zip(answered, scores, strict=True)
        ]

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
    "complies": "complies:Complies",
    "refuses": "refuses:Refuses",
    "keyword": "keyword:Keyword",
    "testbed": "testbed:Testbed",
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


def load_scorer(
    given: str | type[Scorer], options: Mapping[str, Any] = MappingProxyType({}), label: str = ""
) -> Scorer:
    """A scorer by name, by class, or as `FILE.py:NAME`, with its options; text is turned into each one's type.

    Raises:
        UserError: there is no such scorer, file or name in it, or an option is wrong, which is said under the label.
    """
    cls = scorer_class(given) if isinstance(given, str) else given
    try:
        return cls.make({name.replace("-", "_"): value for name, value in options.items()})
    except UserError as error:
        label = label or cls.name
        said = re.sub("^--([a-z-]+)", lambda name: f"--option {label}.{name[1].replace('-', '_')}", str(error))
        raise UserError(said if said != str(error) else f"scorer '{label}': {error}") from None


def read_text(path: Path, what: str) -> str:
    """The text of a file that an option names. Raises `UserError` where there is none."""
    text = bounded_files.read_text(path, what, most=2**20).strip()
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
