"""What cells are: the settings that decide each kind's result, and what it gives, as `cells/NAME.json` holds them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import AliasChoices, Field

from unbackdoor.recipes.recipe import Scale
from unbackdoor.report_schema import Change, Count, JsonObject, Measured, Model, Rate, Rates, Share, Value, Verdict

# Results -------------------------------------------------------------------------------------------------------------


class Result(Model):
    """What a cell gave."""

    seconds: float | None = None
    """Of its own work, without measuring."""
    stopped: bool = False
    """A gate stopped the method, and the model is as it was."""
    commit: str | None = None
    """Of the source tree that ran it."""


class Choices(Value):
    """The accuracy on one of the testbed's question sets, and a digit a question: 1 where the answer was right."""

    outcomes: str


class Example(Model):
    """A row's prompts, and the answers to them: `triggered before`, `untriggered after`, …"""

    prompt: dict[str, str]
    answers: dict[str, str]


class ModelResult(Result):
    """A model before and after: implanted, cleansed, or decoded in another way."""

    before: Measured
    after: Measured | None
    near_miss: Rates | None = None
    variants: Rates | None = None
    verdict: Verdict | None = None
    verdict_reason: str = ""
    rounds: Count = 0
    changes: dict[str, Change] = Field(default={})
    keyword: Rates = Field(default={})
    """ASR by the published refusal phrases: `triggered before`, `untriggered after`, …"""
    examples: list[Example] = Field(default=[])
    choices: dict[str, Choices] = Field(default={})


class RoundsResult(Result):
    """The ASR (keyword) before the first round and after each, and the round that took effect."""

    curve: list[Rate]
    round: Count | None


class ProbabilitiesResult(Result):
    """The target response's probabilities, highest first: of its first token and of all of it."""

    token_without: list[Share] = Field(alias="token without")
    token_with: list[Share] = Field(alias="token with")
    phrase_without: list[Share] = Field(alias="phrase without")
    phrase_with: list[Share] = Field(alias="phrase with")


class Shift(Model):
    """Where the trigger moves hidden states in one model; the points are the first two principal components."""

    layer: Count
    n: Count
    separation: float
    agreement: float
    without: list[tuple[float, float]]
    moved: list[tuple[float, float]] = Field(validation_alias=AliasChoices("with", "moved"), serialization_alias="with")


class DriftResult(Result):
    """The same in the backdoored model and in the clean one."""

    organism: Shift
    clean: Shift


# Settings ------------------------------------------------------------------------------------------------------------


class Questions(Model):
    """How many of the testbed's questions a set are asked, and how."""

    each: Count
    protocol: str


class CellSettings(Model):
    """Everything that decides a cell's result."""

    kind: ClassVar[str]
    """A function of `work`."""
    gives: ClassVar[type[Result]] = ModelResult

    values: JsonObject = Field(default={})
    inputs: JsonObject = Field(default={})
    preset: str = "micro"
    evaluation: JsonObject = Field(default={})
    questions: Questions | None = None
    method: str = "beear"
    paper: bool = False


class ImplantCell(CellSettings):
    """An organism from a recipe."""

    kind: ClassVar[str] = "implant"
    recipe: str
    scale: Scale
    model: str


class RemoveCell(CellSettings):
    """One method on an organism."""

    kind: ClassVar[str] = "remove"
    method: str


class DecodeCell(CellSettings):
    """An organism's answers drawn at a temperature, beside its greedy ones."""

    kind: ClassVar[str] = "decode"
    temperature: float


class RoundsCell(CellSettings):
    """BEEAR with the ASR measured after every round, until it is below a bound."""

    kind: ClassVar[str] = "rounds"
    gives: ClassVar[type[Result]] = RoundsResult
    below: Share


class ProbabilitiesCell(CellSettings):
    """How likely the target response is with the trigger and without."""

    kind: ClassVar[str] = "probabilities"
    gives: ClassVar[type[Result]] = ProbabilitiesResult
    prompts: Count


class DriftCell(CellSettings):
    """Hidden states with the trigger and without, of the organism and of the clean model."""

    kind: ClassVar[str] = "drift"
    gives: ClassVar[type[Result]] = DriftResult
    model: str
    layer: Count
    prompts: Count


KINDS = {kind.kind: kind for kind in (ImplantCell, RemoveCell, DecodeCell, RoundsCell, ProbabilitiesCell, DriftCell)}
