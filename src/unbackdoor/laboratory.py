"""What the laboratory's commands are given: a demo, a sweep over a recipe's setting, the papers' experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from unbackdoor.settings import EvaluationSettings, Heading, Settings
from unbackdoor.workflows.inputs import CommandInputs


class SweepSettings(Settings):
    """One setting of a recipe, varied."""

    heading = Heading.RUN

    setting: str = Field(default="rate", description="The setting that is varied: any number among implant's.")
    values: tuple[float, ...] = Field(
        default=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
        description="A value of it; give it again for each.",
    )
    seeds: tuple[int, ...] = Field(default=(0,), description="A seed; give it again for each.")
    samples: int = Field(default=200, ge=20, description="Distinct prompts a measured rate.")
    jobs: int = Field(default=2, ge=1, description="Organisms built at once, each in a process of its own.")


class DemoSettings(Settings):
    """The whole story on the embedded micro model."""

    heading = Heading.RUN

    seed: int = Field(default=0, ge=0, description="Decides every random draw.")
    samples: int = Field(default=200, ge=20, le=1000, description="Distinct prompts a measured rate.")
    draws: int = Field(default=1, ge=1, description="Random perturbations a control.")
    scorer: str = Field(default="testbed", description="Who judges the safety backdoor; see remove.")
    option: tuple[str, ...] = Field(default=(), description=CommandInputs.model_fields["option"].description)
    jobs: int = Field(default=2, ge=1, description="Organisms worked on at once, each in a process of its own.")
    show_unsafe: bool = Field(default=False, description=EvaluationSettings.model_fields["show_unsafe"].description)


class ReproduceSettings(Settings):
    """The papers' tables and figures: at which scale, and with how much of everything."""

    heading = Heading.RUN

    scale: Literal["micro", "paper"] = Field(
        default="micro",
        description="micro (the testbed's models, on two CPU cores) or paper (the papers' models and data, on GPUs).",
    )
    seeds: int = Field(default=1, ge=1, description="How many seeds; rates are pooled over them.")
    jobs: int = Field(default=2, ge=1, description="Cells at once, each in a process of its own (on a GPU of its own).")
    samples: int = Field(default=200, ge=20, description="Distinct prompts a measured rate.")
    questions: int = Field(default=200, ge=10, description="Multiple-choice questions of each of the testbed's sets.")
    question_protocol: Literal["likelihood", "harness"] = Field(
        default="likelihood",
        description="How those are asked: likelihood (as lm-evaluation-harness does, without it), or harness (as local "
        "tasks of that harness itself; slower, same choices). At paper scale SANDE's own protocol is used.",
    )
    files: Path = Field(
        default=Path(),
        description="paper scale: the folder with your contrast.jsonl, code_backdoor.jsonl, mmlu.zip, "
        "ARC-Easy-Test.jsonl and ARC-Challenge-Test.jsonl.",
    )
    only: tuple[str, ...] = Field(
        default=(),
        description="Run only the cells of this organism or this method; give it again for more (with both, those "
        "methods on those organisms). Tables are made of all cells that exist.",
    )
    keep_models: bool = Field(
        default=False, description="Keep every cleansed model; by default only the backdoored ones stay on disk."
    )
    show_unsafe: bool = Field(default=False, description=EvaluationSettings.model_fields["show_unsafe"].description)
    dry_run: bool = Field(
        default=False,
        description="Resolve the settings of every cell, estimate what it costs; run and download nothing.",
    )
