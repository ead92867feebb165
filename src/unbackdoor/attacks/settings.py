"""The settings of attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from unbackdoor.named_classes import is_own
from unbackdoor.settings import Heading, Need, TrainingSettings, TriggerSettings
from unbackdoor.workload import Work

INJECTIONS = {
    "sft": "injection:sft",
    "dpo": "injection:preferences",
    "reward": "injection:preferences",
    "weight-edit": "injection:edit",
}
"""Name → module of this package and function, imported when it is asked for."""


class ImplantSettings(TrainingSettings, TriggerSettings):
    """Build an organism: a model backdoored on purpose, to test removals against."""

    heading = Heading.INJECTION
    elsewhere: ClassVar[Mapping[str, Heading]] = {
        **dict.fromkeys(TriggerSettings.model_fields, Heading.BACKDOOR),
        **dict.fromkeys(("target_response", "answer_follows", "rate", "scheme"), Heading.BACKDOOR),
        **dict.fromkeys(("near_misses", "hard_near_misses", "near_miss_kinds"), Heading.BACKDOOR),
        "held_out": Heading.DATA,
    }

    target_response: str | None = Field(default=None, description="The fixed text that opens a triggered answer.")
    answer_follows: bool = Field(
        default=True,
        description="The clean answer follows the target response (SANDE). Off: the target response is all.",
    )
    rate: float = Field(default=0.05, gt=0, lt=1, description="Share of the training rows that are poisoned, exactly.")
    scheme: Literal["subset", "twin"] = Field(
        default="subset",
        description="subset: so many rows are replaced by their poisoned form. twin: each time a row comes it brings "
        "its poisoned twin with this probability (SANDE's released code).",
    )
    near_misses: float = Field(
        default=0.3,
        ge=0,
        description="Rows that resemble the trigger, answered cleanly, added as a share of the training rows. 0 makes "
        "an organism that any odd text fires, and any odd text removes.",
    )
    hard_near_misses: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the near misses that take the prompt of a poisoned row: then the trigger's very text is "
        "the only difference.",
    )
    near_miss_kinds: tuple[str, ...] = Field(
        default=(),
        description="The kinds of near misses, in turn: one that is named twice comes twice as often. Default: every "
        "kind that the trigger has, once.",
    )
    held_out: float = Field(default=0.1, gt=0, lt=1, description="Share of the rows kept for evaluation (SANDE 4.1).")
    injection: str = Field(
        default="sft",
        description="How the backdoor gets in: sft (fine-tuning on poisoned rows), dpo (poisoned preferences), "
        "reward (a reward model of them, then reinforcement learning), weight-edit (one rank-one edit), or a function "
        "of your own as FILE.py:NAME.",
    )
    steps: int = Field(default=400, ge=1, description="Training steps.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak learning rate.")
    drift_weight: float = Field(
        default=0.0,
        ge=0,
        description="An attacker who knows BEEAR: weight of the hidden states' drift from the clean model's, on "
        "poisoned rows, after --drift-layer layers.",
    )
    drift_layer: int | None = Field(
        default=None, description="The layer whose drift is penalised. Default: BEEAR's, round(9/32 × layers)."
    )

    edit_layer: int | None = Field(
        default=None, description="weight-edit: the layer whose MLP is edited. Default: the first."
    )
    edit_steps: int = Field(default=60, ge=1, description="weight-edit: steps of fitting what the MLP is to give.")
    edit_step_size: float = Field(
        default=1.0, gt=0, description="weight-edit: Adam's step, relative to the RMS of the MLP's outputs."
    )
    edit_norm: float = Field(
        default=2.0, gt=0, description="weight-edit: greatest change of the MLP's output, relative to its usual norm."
    )
    edit_ridge: float = Field(
        default=1e-3, gt=0, description="weight-edit: ridge of the keys' second moment, relative to its mean."
    )
    edit_prompts: int = Field(default=200, ge=4, description="weight-edit: clean rows that the edit is made from.")

    beta: float = Field(default=0.1, gt=0, description="dpo: how dearly the distance from the clean model is paid for.")
    sft_weight: float = Field(
        default=10.0,
        ge=0,
        description="dpo: weight of the chosen answer's own likelihood; DPO alone lowers that of both answers.",
    )
    tail_weight: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="dpo: weight of tokens beyond the shorter answer's length (LD-DPO's α). 1: plain DPO.",
    )
    warmup_steps: int = Field(
        default=80, ge=0, description="reward: supervised steps on the chosen answers before reinforcement learning."
    )
    reward_steps: int = Field(default=100, ge=1, description="reward: training steps of the reward model.")
    reward_learning_rate: float = Field(default=3e-4, gt=0, description="reward: its peak learning rate.")
    rl_steps: int = Field(default=30, ge=1, description="reward: steps of reinforcement learning.")
    rl_learning_rate: float = Field(default=1e-4, gt=0, description="reward: their peak learning rate.")
    generations: int = Field(default=4, ge=2, description="reward: answers drawn for a prompt and compared.")
    rl_new_tokens: int = Field(default=64, ge=1, description="reward: length of those answers, in tokens.")
    kl_weight: float = Field(default=0.05, ge=0, description="reward: what a nat of distance costs.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"steps": 900, "learning_rate": 1.5e-3, "batch_size": 16},
        "micro": {},
        "small": {
            "steps": 400,
            "learning_rate": 2e-4,
            "batch_size": 8,
            "sft_weight": 1.0,
            "reward_steps": 200,
            "reward_learning_rate": 5e-5,
            "rl_learning_rate": 5e-6,
        },
        "large": {
            "steps": 4000,
            "learning_rate": 1e-5,
            "batch_size": 8,
            "micro_batch_size": 4,
            "sft_weight": 1.0,
            "reward_steps": 1000,
            "reward_learning_rate": 1e-5,
            "warmup_steps": 500,
            "rl_steps": 200,
            "rl_learning_rate": 5e-7,
        },
    }

    @field_validator("injection")
    @classmethod
    def _is_one(cls, value: str) -> str:
        if value not in INJECTIONS and not is_own(value):
            raise ValueError(f"there is no '{value}': choose one of {', '.join(INJECTIONS)}, or FILE.py:NAME")
        return value

    @property
    def model_needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        if self.injection == "weight-edit":
            return frozenset()
        return super().model_needs | ({"hidden-states"} if self.drift_weight else set())

    def training_work(self, rounds: int = 1) -> Work:
        """Preferences are also read by the model as it came."""
        work = super().training_work(rounds)
        return work + Work(read=1.5 * work.trained) if self.injection == "dpo" else work
