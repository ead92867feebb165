"""What a defender can know of an attack, as data: what a method needs of it, and whether that was given.

The words of the errors, of `unbackdoor methods` and of a report's "knows" are all made of this one table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml
from pydantic import BaseModel, Field

from unbackdoor.errors import UserError
from unbackdoor.settings import TriggerSettings, read_yaml


class Fact(StrEnum):
    """Something that a defender may know or have; its value is how a report calls it."""

    TRIGGER = "trigger"
    TARGET_RESPONSE = "target response"
    TARGET_START = "first token(s) of the target response"
    BEHAVIOUR = "examples of the behaviour"
    PREFERENCES = "preference pairs"
    CLEAN_MODEL = "the clean model"
    SIBLINGS = "other models"
    CLEAN_ROWS = "clean rows"
    FINISHED_RUN = "a finished run"


class Words(NamedTuple):
    """How a fact is asked for."""

    what: str
    """Behind "needs"."""
    remedy: str
    """Behind "give"."""
    example: str = ""
    """Its option in a method's example."""
    hint: str = ""
    """Behind it in brackets, where methods are listed."""


WORDS = {
    Fact.TRIGGER: Words("the trigger", "--trigger", "--trigger TEXT"),
    Fact.TARGET_RESPONSE: Words("the target response", "--target-response", "--target-response TEXT"),
    Fact.TARGET_START: Words("its first token(s)", "--target-prefix", hint="SANDE-P"),
    Fact.BEHAVIOUR: Words("examples of the unwanted and the safe behaviour", "--contrast FILE", "--contrast PAIRS"),
    Fact.PREFERENCES: Words(
        "preference pairs", "--preferences FILE (prompt, chosen and rejected)", "--preferences PAIRS", "--preferences"
    ),
    Fact.CLEAN_MODEL: Words(
        "the clean pretrained model that this one was made from",
        "--clean-model",
        "--clean-model MODEL",
        "--clean-model",
    ),
    Fact.SIBLINGS: Words(
        "other models of the same architecture", "--sibling, once for each", "--sibling MODEL", "--sibling"
    ),
    Fact.CLEAN_ROWS: Words("clean rows", "--data ROWS"),
    Fact.FINISHED_RUN: Words("a finished run to stand beside", "--like RUN", "--like RUN", "--like"),
}

Needs = tuple[Fact | tuple[Fact, ...], ...]
"""All of these; of a tuple among them, one."""


FORMS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("trigger", "together", "structure"): tuple(TriggerSettings.model_fields),
    ("target_response", "target_prefix"): ("target_response", "target_prefix", "target_tokens"),
}
"""Settings of which one says what a trigger or a target is, and all that go with it."""


class Knowledge(TriggerSettings):
    """What is known of one attack, by the names of the options that give it."""

    target_response: str | None = Field(default=None, description="The fixed text at the start of a triggered answer.")
    target_prefix: str | None = Field(default=None, description="The part of it that is known, as text.")
    target_tokens: int | None = Field(default=None, ge=1, description="Of it, only the first N tokens are known.")
    contrast: Path | None = Field(default=None, description="Rows of prompt, safe and unwanted response.")
    preferences: Path | None = Field(default=None, description="Rows of prompt, chosen and rejected answer.")
    clean_model: str | None = Field(default=None, description="The clean model that the suspect one was made from.")
    sibling: tuple[str, ...] = Field(default=(), description="Other models of the same architecture.")
    source: str = Field(default="", description="Where this knowledge comes from.")

    @classmethod
    def of(cls, *told: BaseModel) -> Self:
        """What settings and inputs say, by their fields of the same names; later ones first to yield."""
        found = {n: v for each in reversed(told) for n in cls.model_fields if (v := getattr(each, n, None)) is not None}
        return cls(**found)

    def below(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What it gives where other values come before it: another form of the trigger or the target takes the place of
        the one here whole."""
        told = self.model_dump(exclude_defaults=True, exclude={"source"})
        for forms, whole in FORMS.items():
            if any(given.get(name) is not None for name in forms):
                told = {name: value for name, value in told.items() if name not in whole}
        return told

    @property
    def target(self) -> str | None:
        """What is known of the target response."""
        return (self.target_response or self.target_prefix or "").strip() or None

    @property
    def facts(self) -> frozenset[Fact]:
        """What there is of all that can be known."""
        partly = self.target_prefix is not None or self.target_tokens is not None
        known: dict[Fact, object] = {
            Fact.TRIGGER: self.has_trigger,
            Fact.TARGET_START if partly else Fact.TARGET_RESPONSE: self.target,
            Fact.BEHAVIOUR: self.contrast,
            Fact.PREFERENCES: self.preferences,
            Fact.CLEAN_MODEL: self.clean_model,
            Fact.SIBLINGS: self.sibling,
        }
        return frozenset(fact for fact, given in known.items() if given)


def alternatives(need: Fact | tuple[Fact, ...]) -> tuple[Fact, ...]:
    """The facts of which one is enough."""
    return need if isinstance(need, tuple) else (need,)


def check(name: str, needs: Needs, given: Collection[Fact]) -> None:
    """Raise a `UserError` that names the option where something that `name` needs was not given."""
    for need in map(alternatives, needs):
        if not set(need) & set(given):
            remedies = " or ".join(WORDS[fact].remedy for fact in need)
            raise UserError(f"{name} needs {', or '.join(WORDS[fact].what for fact in need)}: give {remedies}")


def described(needs: Needs) -> str:
    """What must be known or had, in words, as methods are listed."""

    def listed(fact: Fact) -> str:
        return WORDS[fact].what + (f" ({WORDS[fact].hint})" if WORDS[fact].hint else "")

    return " and ".join(", or ".join(map(listed, alternatives(need))) for need in needs) or "nothing"


def knew(needs: Needs, given: Knowledge, rows: Collection[Fact] = ()) -> str:
    """What a defender used of what was given, with settings or as rows, for a report."""
    has = given.facts | set(rows)
    used = [fact for need in needs for fact in alternatives(need) if fact in has]
    counted = {Fact.SIBLINGS: f"{len(given.sibling)} {Fact.SIBLINGS}"}
    return " and ".join(counted.get(fact, fact) for fact in used) or Fact.CLEAN_ROWS


def example(needs: Needs) -> str:
    """The options that give it, as a command's help shows them."""
    return " ".join(WORDS[alternatives(need)[0]].example for need in needs).strip()


def read_knowledge(path: Path) -> Knowledge:
    """What a YAML file holds, named as the options that give it. Raises `UserError` that names the file."""
    values = read_yaml(path, "--knowledge", as_written=True, whole=True)
    try:
        return Knowledge.make(values)
    except UserError as error:
        raise UserError(f"--knowledge '{path}': {error}") from None


def write_knowledge(knowledge: Knowledge, path: Path) -> None:
    """Write it as such a file."""
    told = knowledge.model_dump(mode="json", exclude_defaults=True)
    path.write_text(yaml.safe_dump(told, allow_unicode=True, sort_keys=False), encoding="utf-8")
