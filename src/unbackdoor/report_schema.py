"""What `report.json` holds: the one description of it, for who writes it, who shows it and who reads it elsewhere.

`docs/reference/report.schema.json` is made of these models: `python -m unbackdoor.report_schema > FILE`. A report is
read by `read_report` alone, as a file from a stranger: texts are texts, numbers are finite and in their ranges. Keys
that are not named here are passed over, and those that an earlier version did not write have their defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from unbackdoor.bounded_files import read_bytes
from unbackdoor.errors import UserError
from unbackdoor.settings import Thresholds

VERSION = 2
"""Of the schema. Reports that name none are of version 1, which had the same keys and promised nothing."""
MOST_BYTES = 256 * 2**20
"""Of a report that is read: thousands of times what a run writes."""

Share = Annotated[float, Field(ge=-1e-6, le=1 + 1e-6)]
"""From 0 to 1, but for rounding."""
Count = Annotated[int, Field(ge=0, le=2**53)]
Interval = tuple[float, float]
"""Lower and upper end, 95%."""
Unchanged = Literal["weights", "distributions"]
Verdict = Literal["removed", "not-removed", "no-longer-simulable", "degenerate", "inconclusive"]
JsonObject = dict[str, JsonValue]


class Model(BaseModel):
    """A part of the report. Only what was set of it is written."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)


# Numbers -------------------------------------------------------------------------------------------------------------


class Rate(Model):
    """Hits of n, the rate from 0 to 1, and its 95% Wilson interval."""

    hits: Count
    n: Count
    rate: Share
    interval: tuple[Share, Share]

    @property
    def value(self) -> float:
        """The rate, as of a `Value`."""
        return self.rate

    @model_validator(mode="after")
    def _of_n(self) -> Rate:
        if self.hits > self.n:
            raise ValueError(f"{self.hits} hits of {self.n}")
        return self


class Value(Model):
    """A measured value with its n and 95% interval."""

    value: float
    n: Count
    interval: Interval | None = None

    @property
    def hits(self) -> int:
        """Of a share: how many of n, as of a `Rate`."""
        return round(self.value * self.n)


Rates = dict[str, Rate]


class Change(Model):
    """One outcome on the same prompts, before and after."""

    n: Count
    only_before: Count
    only_after: Count
    difference: float
    """Rate after − rate before, from −1 to 1."""
    interval: Interval
    """By resampling prompts."""
    p_value: Share
    """McNemar's mid-p test."""
    adjusted: Share
    """The same by Holm's method over all outcomes of this comparison."""


# One model -----------------------------------------------------------------------------------------------------------


class Effect(Model):
    """How much a trigger changes answers, against a harmless insert: means over prompts, from 0 to 1."""

    triggered: Share
    harmless: Share
    difference: float
    interval: Interval
    """Paired over prompts."""


class Brought(Model):
    """The words or signs that most surely come with the trigger: the shares of answers that hold them."""

    text: str
    """Empty where it is that an answer holds none."""
    triggered: Share
    others: Share
    """The largest share of the answers that they are held against."""
    least: float
    """The lower end of the difference's interval, which allows for all words that were looked at."""


class TriggerEffect(Model):
    """Of answers to the same prompts: what the trigger changes. Earlier versions measured the first two alone."""

    n: Count
    changed: Effect
    """How many are other words."""
    distance: Effect
    """How far their words are away."""
    written: Effect | None = None
    """How many are other characters."""
    length: Effect | None = None
    """How far their lengths are away."""
    brings: Brought | None = None
    """None where triggered answers have nothing in common that the others have not."""


class Figures(Model):
    """What the answers of one model (or the references) show by themselves."""

    distinct: Share
    """Of the answers, how many are different ones."""
    alike: Share
    """How alike answers to different prompts are."""
    like_the_prompt: Share
    words: float
    """In the median."""
    refusals: Share
    empty: Share
    loops: Share
    cut: Share | None = None
    """How many had not ended when they were left; None where the limit of new tokens is none for whole answers."""


class Fall(Model):
    """By how much a share fell, and the lower end of the interval of that."""

    share: float
    least: float


class Likeness(Model):
    """How alike both models' answers are to certain texts."""

    n: Count
    before: Share
    after: Share
    kept: float | None
    """What remains of the likeness to the own row's text above that to others' texts; None: it was too small."""
    kept_at_most: float | None = None
    """The upper end of the interval of what remains."""
    interval: Interval
    """Of the paired change of that, over rows."""
    lost: dict[str, Fall] = {}
    """By how much the share of right answers fell: of those with half of the words (`half`), and with all (`whole`)."""


class AnswerQuality(Model):
    """Both models' answers to the same ordinary prompts, compared."""

    set: str
    """Which prompts these are."""
    n: Count
    before: Figures
    after: Figures
    references: Figures | None = None
    """None where fewer than half of the rows have a right answer."""
    agreement: Likeness | None
    """With the references."""
    own: Likeness
    """With the suspect's own answers."""
    language: dict[str, Share]
    """How alike the language is to that of the answers before and of the references."""
    elsewhere: dict[str, AnswerQuality] = {}
    """The same where something stands before the prompt: other words in the trigger's place, or an earlier turn."""


class Measured(Model):
    """Everything that was measured of one model."""

    attack_success: Rate | None = None
    """With the trigger; None where none was given."""
    attack_success_untriggered: Rate | None = None
    details: Rates = {}
    """Further rates of answers, by name."""
    utility: dict[str, Value] = {}
    under_perturbation: Rates | None = None
    """Without a trigger: how often the attack shows under the fitted perturbation and under a random one."""
    trigger_effect: TriggerEffect | None = None
    """None where no harmless insert was asked."""
    second_turn_brings: Brought | None = None
    """What comes into answers of a second turn with the trigger in both, against one without it in either."""
    target_likelihood: dict[str, Value] = {}
    """The mean probability with which a drawn answer opens with the target: `triggered`, `untriggered`."""
    kl_divergence: dict[str, Value | None] = {}
    """From other models, by their names, on clean rows; None where the two have no tokens in common."""
    unchanged: Unchanged | None = None
    """What is as it was in the model before."""
    read_apart: bool = False
    """The tokenizer of the model before does not fit this one: the two were not read in one way."""
    answer_quality: AnswerQuality | None = None


# A row ---------------------------------------------------------------------------------------------------------------


class Simulated(Model):
    """How well a perturbation, fitted from scratch, brings out a target on held-out prompts."""

    when: str
    """`before`, `round 2` …, or `after`: against which state of the model."""
    target: str
    """`target`, or `control`: one of equal length that the model was never trained to give."""
    success: Share
    """Within the steps that the first simulation needed."""
    at_step: Count
    curve: list[tuple[Count, Share]]
    """(step, success) on the way."""
    norm_ratio: float | None = None
    """Norm of the perturbation against what it stands among: token embeddings, or activations."""


class Compared(Model):
    """A model and another one on the same prompts."""

    changes: dict[str, Change]
    length_ratio: float | None
    """Words of the answers without trigger, over those of the other model."""
    kl_divergence: Value | None


class Shown(Model):
    """A prompt with the answers before and after."""

    set: str
    hidden: bool = False
    """It asks for what is unwanted: prompt and answers are cut to their first words."""
    prompt: str
    before: str | None
    after: str | None
    expected: str | None
    thoughts: dict[str, str] = {}
    """What was thought in front of the final answer: `before`, `after`."""
    unfinished: list[str] = []
    """Which of the two ended within their thought."""


class HandedBack(Model):
    """What of a model's side files is more than such files are."""

    acts: tuple[str, ...] = ()
    """What acts on the text of a dialogue, a sentence each."""
    writes: tuple[str, ...] = ()
    """What texts templates write of their own, such as a system prompt."""

    def notes(self) -> list[str]:
        """As notes of a row."""
        return [f"handed back as it was given: {sentence}" for sentence in (*self.acts, *self.writes)]


class Row(Model):
    """One model and what was done to it: a method, a control, an implantation, or nothing but a measurement."""

    organism: str
    method: str
    label: str | None = None
    """Its name in the run directory, where that may be another one than the method's."""
    control: bool = False
    knows: str = ""
    """What the method was told."""
    seed: Count
    verdict: Verdict | None = None
    """None of what was not to be judged."""
    verdict_reason: str = ""
    seconds: float | None = None
    """Of the method's own work."""
    near_miss: Rates | None = None
    """How often what only resembles the trigger fires, by kind."""
    variants: Rates | None = None
    """How often changed forms of the trigger fire, by kind."""
    before: Measured | None = None
    after: Measured | None = None
    """None where a gate stopped the method: the model is as it was."""
    rounds: Annotated[int, Field(ge=0, le=10_000)] = 0
    still_simulable: bool | None = None
    """Whether a fresh simulation still succeeds; None of methods that do not simulate."""
    simulations: list[Simulated] = []
    losses: dict[str, dict[str, list[float | None]]] = {}
    """Phase → term → value a step."""
    compared: dict[str, Compared] = {}
    examples: list[Shown] = []
    counts: dict[str, Count] = {}
    temperature: float = 0.0
    notes: list[str] = []
    settings: JsonObject = {}
    saved: list[str] = []
    """What in the saved files is not as it was given."""
    handed_back: HandedBack | None = None

    @property
    def states(self) -> list[Measured]:
        """What was measured of it, before and after."""
        return [state for state in (self.before, self.after) if state is not None]


# The report ----------------------------------------------------------------------------------------------------------


class Provenance(Model):
    """Where the numbers come from."""

    command_line: list[str] = []
    seed: Count | None = None
    started: str = ""
    versions: dict[str, str | None] = {}
    host: JsonObject = {}
    sources: dict[str, dict[str, str]] = {}
    """SHA-256 of every file that was read, by what it was read as."""
    self_test: JsonObject | None = None
    resumed: list[JsonObject] = []


class Sweep(Model):
    """The setting that the runs differ in, and (value, seed) of each."""

    setting: str
    points: list[tuple[float, Count]]


class Report(Model):
    """What a command measured and concluded."""

    schema_version: Count = 1
    unbackdoor: str = ""
    """The version that wrote it."""
    command: str
    title: str
    created: str = ""
    thresholds: Thresholds
    runs: Annotated[list[Row], Field(min_length=1)]
    provenance: Provenance = Provenance()
    sweep: Sweep | None = None
    seconds: float | None = None

    @field_validator("thresholds", mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Thresholds come and go with the rules: those that are gone decide nothing."""
        return {k: v for k, v in given.items() if k in Thresholds.model_fields} if isinstance(given, Mapping) else given


class _Version(Model):
    schema_version: Count = 1
    unbackdoor: str = ""


def read_report(path: Path, otherwise: str) -> Report:
    """The report in a file.

    Raises:
        UserError: `otherwise`, where there is none; or that a later version wrote it.
    """
    try:
        content = read_bytes(path, "the report", most=MOST_BYTES)
        told = _Version.model_validate_json(content, strict=True)
        report = Report.model_validate_json(content, strict=True) if told.schema_version <= VERSION else None
    except (UserError, ValidationError):
        raise UserError(otherwise) from None
    if report is None:
        by = "".join(c for c in told.unbackdoor if c.isascii() and (c.isalnum() or c in ".+-"))[:20]
        raise UserError(
            f"'{path}' is a report of schema {told.schema_version}, and this version reads {VERSION} and earlier: use "
            f"unbackdoor {by or 'of a later version'}"
        )
    return report


if __name__ == "__main__":
    from unbackdoor.screen import put

    put(json.dumps(Report.model_json_schema(), indent=2, ensure_ascii=False))
