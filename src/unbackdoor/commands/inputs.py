"""What each command is given beside the settings of a method or an attack: models, data files, and what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from unbackdoor.settings import Placement, Settings, TriggerSettings


class CommandInputs(Settings):
    """What every command is given: how the model is rendered, the rows, and how their answers are judged."""

    template: str = Field(
        default="auto",
        description="chat (the tokenizer's own template), plain (Human: … Assistant: …), none (the prompt alone), or a "
        "Jinja file. auto: chat where there is one, else plain.",
    )
    system: str | None = Field(default=None, description="A system prompt, for chat templates and plain.")
    data: Path = Field(
        description="Clean rows of prompt and response (JSONL, JSON, CSV, TSV, Parquet or a hub data set)."
    )
    contrast: Path | None = Field(
        default=None,
        description="For a behaviour in place of a target response: rows of prompt, safe and unwanted response.",
    )
    oracle: Literal["keyword", "testbed"] = Field(
        default="keyword",
        description="Who judges compliance: keyword (neither refused nor degenerate; weak), or the testbed's oracle.",
    )
    exact_match: bool = Field(
        default=False, description="Held-out rows have one right answer each: report exact match."
    )


class RemoveInputs(CommandInputs):
    """What `remove` is given beside the method's own settings."""

    max_rows: int | None = Field(default=None, ge=1, description="Use at most so many rows of --data, drawn by seed.")
    eval_data: Path | None = Field(default=None, description="Held-out clean rows. Default: a fifth of --data.")
    eval_contrast: Path | None = Field(
        default=None, description="Held-out contrast rows. Default: a third of --contrast."
    )
    eval_exclude: Path | None = Field(
        default=None, description="Rows whose prompts must not be measured, such as what an organism was trained on."
    )
    eval_trigger: str | None = Field(
        default=None, description="The real trigger, where you have it, for evaluation only: the method never sees it."
    )
    eval_placement: Placement = Field(default="prefix", description="Where that trigger stands.")
    eval_closing: str | None = Field(default=None, description="Its second half, with placement both.")
    eval_separator: str | None = Field(default=None, description="Between that trigger and the prompt.")
    eval_target: str | None = Field(
        default=None, description="What a triggered answer shows, for evaluation. Default: the method's target."
    )
    controls: bool = Field(default=False, description="Also run fine-tune and random-perturbation, for comparison.")


class EvaluateInputs(CommandInputs, TriggerSettings):
    """What `evaluate` is given beside; its rows are held-out ones."""

    before: str | None = Field(default=None, description="The model before removal, measured beside it.")
    target_response: str | None = Field(default=None, description="What a triggered answer shows.")
    seed: int = Field(default=0, ge=0, description="Decides which rows are measured.")


class DemoSettings(Settings):
    """The whole story on the embedded micro model."""

    seed: int = Field(default=0, ge=0, description="Decides every random draw.")
    samples: int = Field(default=200, ge=20, le=1000, description="Distinct prompts a measured rate.")
    draws: int = Field(default=1, ge=1, description="Random perturbations a control.")
    jobs: int = Field(default=2, ge=1, description="Organisms worked on at once, each in a process of its own.")
