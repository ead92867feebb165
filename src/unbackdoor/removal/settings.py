"""The settings of removal methods and controls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from unbackdoor.settings import Heading, Need, Settings, TrainingSettings, TriggerSettings

Position = Literal["last-prompt", "end-of-user", "start-of-user", "all-prompt"]


class MethodSettings(TrainingSettings):
    """What every removal method has."""

    heading = Heading.METHOD

    anchor_weight: float = Field(
        default=1.0,
        ge=0,
        description="Weight of clean rows without perturbation, which keep the model useful.",
    )


class SimulateSettings(MethodSettings):
    """What SANDE and BEEAR have in common."""

    simulate_steps: int = Field(default=60, ge=1, description="Most steps of simulate (a round).")
    gate: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Success that the first simulation must reach on held-out prompts, else it is tried once more with "
        "twice the length and eight times the steps, and then the run stops before eliminate: what cannot be simulated "
        "cannot be overwritten. 0 switches the gate off.",
    )
    enough: float = Field(
        default=0.98,
        ge=0,
        le=1,
        description="A simulation ends early when it succeeds to this degree: a perturbation larger than needed costs "
        "utility. 1: it never does.",
    )
    success: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="From this success on a later, fresh simulation counts as successful.",
    )
    rounds: int = Field(default=4, ge=1, description="Most simulate → eliminate rounds.")
    least_rounds: int = Field(default=2, ge=1, description="Rounds before a fresh simulation may end them.")
    repeat: bool = Field(
        default=True,
        description="Go on until a fresh simulation no longer succeeds; off: exactly `rounds` rounds.",
    )


class OsftSettings(MethodSettings, TriggerSettings):
    """OSFT: overwrite a known trigger's mapping (SANDE eq. 3)."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"steps": 100, "learning_rate": 5e-4, "batch_size": 16},
        "micro": {"batch_size": 16},
        "small": {"steps": 60, "learning_rate": 1e-4, "batch_size": 8},
        "large": {"steps": 1250, "learning_rate": 2e-5, "batch_size": 8, "micro_batch_size": 4},
        "paper": {"anchor_weight": 0.0},
    }


class UnlearnSettings(OsftSettings):
    """Gradient ascent on the triggered response (SANDE eq. 2), which the paper discusses and rejects."""

    elsewhere: ClassVar[Mapping[str, Heading]] = {"target_response": Heading.KNOWN}

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"learning_rate": 1e-5, "batch_size": 8},
        "large": {"learning_rate": 1e-6, "batch_size": 8, "micro_batch_size": 4},
    }

    target_response: str = Field(default="", description="The fixed text at the start of a triggered answer.")
    steps: int = Field(default=20, ge=1, description="Steps of gradient ascent; more of them break the model.")


class SandeSettings(SimulateSettings):
    """SANDE and SANDE-P: fit a parrot that reproduces the target response, then overwrite it (eq. 4, eq. 3)."""

    elsewhere: ClassVar[Mapping[str, Heading]] = dict.fromkeys(
        ("target_response", "target_prefix", "target_tokens"), Heading.KNOWN
    )

    target_response: str | None = Field(default=None, description="The fixed text at the start of a triggered answer.")
    target_prefix: str | None = Field(default=None, description="SANDE-P: the part of it that is known, as text.")
    target_tokens: int | None = Field(
        default=None, ge=1, description="SANDE-P: use only the first N tokens of the target response."
    )
    parrot_length: int = Field(default=6, ge=1, description="Number of soft tokens.")
    parrot_offset: int = Field(default=0, ge=0, description="Tokens between the start of the user's text and them.")
    initialisation: Literal["vocabulary", "zeros"] = Field(
        default="vocabulary",
        description="Where the parrot starts: random ordinary tokens, or zeros (the paper).",
    )
    simulate_learning_rate: float = Field(default=2e-2, gt=0, description="Adam's learning rate for the parrot.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # How soon a fresh simulation fails within the first one's few steps depends on the seed in so small a model:
        # after four rounds one failed by a hair where two fifths of the ASR were left.
        "tiny": {
            "steps": 40,
            "learning_rate": 1e-3,
            "batch_size": 16,
            "parrot_length": 12,
            "rounds": 8,
            "least_rounds": 6,
        },
        # On alpaca2m, cleansed with rows of another domain, two rounds of 40 steps (enough for the demo) left a third,
        # four of 60 left 1.5%, and the same with a parrot of 12 tokens in the place of 6 nothing.
        "micro": {"steps": 60, "batch_size": 16, "rounds": 6, "least_rounds": 4, "parrot_length": 12},
        "small": {
            "steps": 30,
            "learning_rate": 1e-4,
            "batch_size": 8,
            "simulate_steps": 40,
            "rounds": 4,
        },
        "large": {
            "steps": 1250,
            "learning_rate": 2e-5,
            "batch_size": 8,
            "micro_batch_size": 4,
            "simulate_steps": 300,
            "simulate_learning_rate": 1e-3,
        },
        "paper": {
            "initialisation": "zeros",
            "parrot_length": 6,
            "enough": 1.0,
            "rounds": 1,
            "repeat": False,
            "anchor_weight": 0.0,
            "gate": 0.0,
        },
    }

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        known = [self.target_response, self.target_prefix]
        if not any(text is not None and text.strip() for text in known):
            raise ValueError("what is known of the target response is missing: --target-response or --target-prefix")
        if all(known):
            raise ValueError("give --target-response or --target-prefix, not both")
        return self

    @property
    def partial(self) -> bool:
        """Whether this is SANDE-P."""
        return self.target_prefix is not None or self.target_tokens is not None

    @property
    def target(self) -> str:
        """What is known of the target response."""
        return (self.target_response or self.target_prefix or "").strip()

    @property
    def needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().needs | {"soft-embeddings"}


class BeearSettings(SimulateSettings):
    """BEEAR: entrap a universal hidden shift δ at layer l, remove its effect, and alternate."""

    space: Literal["hidden", "input"] = Field(
        default="hidden",
        description="Where the perturbation acts: a shift of hidden states, or soft tokens at the start of the user's "
        "text (input: the article's own baseline).",
    )
    layer: int | None = Field(
        default=None,
        description="The shift acts after this many decoder layers. Default: round(--depth × layers).",
    )
    depth: float = Field(
        default=9 / 32, gt=0, lt=1, description="Where --layer is not given: the share of layers before the shift."
    )
    length: int = Field(default=5, ge=1, description="Number n of shifted prompt positions, or of soft tokens.")
    position: Position = Field(default="last-prompt", description="Which prompt positions are shifted.")
    away_weight: float = Field(default=0.05, ge=0, description="Weight of the away-from-safe term in entrapment.")
    step_size: float = Field(
        default=0.1,
        gt=0,
        description="Adam's step for the shift, relative to the RMS of the layer's activations.",
    )
    input_step_size: float = Field(
        default=0.2,
        gt=0,
        description="With --space input: Adam's step for the soft tokens, relative to the RMS of the token embeddings.",
    )
    anchor_weight: float = Field(
        default=2.0,
        ge=0,
        description="Weight of clean rows without the shift, which keep the model useful.",
    )
    benign_weight: float = Field(
        default=1.0,
        ge=0,
        description="Weight of clean rows under the shift, so that shift does not come to mean refuse.",
    )
    near_share: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of the clean rows drawn in removal that look like the contrast set's, where fewer do (by "
        "hidden states): they are the first to be refused wrongly. 0: all are drawn alike (the article).",
    )
    least_share: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="In removal every row gets a random share of the shift, from this to 1: a trigger's own shift is "
        "smaller. 1: always the whole (the article). Soft tokens have no shares.",
    )
    simulate_steps: int = Field(default=40, ge=1, description="Most steps of entrapment a round.")
    steps: int = Field(default=45, ge=1, description="Steps of removal a round.")
    rounds: int = Field(default=6, ge=1, description="Most rounds of entrapment and removal.")
    least_rounds: int = Field(default=4, ge=1, description="Rounds before a fresh entrapment may end them.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"learning_rate": 5e-4, "batch_size": 16},
        "micro": {"learning_rate": 2.5e-4, "batch_size": 16, "depth": 3 / 8},
        "small": {
            "learning_rate": 5e-5,
            "batch_size": 8,
            "steps": 30,
            "simulate_steps": 40,
            "rounds": 4,
            "least_rounds": 3,
        },
        "large": {
            "learning_rate": 5e-6,
            "batch_size": 16,
            "micro_batch_size": 4,
            "steps": 60,
            "simulate_steps": 100,
        },
        "paper": {
            "near_share": 0.0,
            "least_share": 1.0,
            "away_weight": 1.0,
            "enough": 1.0,
            "anchor_weight": 1.0,
            "benign_weight": 0.0,
            "rounds": 6,
            "repeat": False,
            "gate": 0.0,
        },
    }

    @model_validator(mode="after")
    def _of_one_space(self) -> Self:
        if self.space == "input" and (self.layer is not None or self.position != "last-prompt"):
            raise ValueError("--layer and --position are for hidden shifts: leave them out with --space input")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        """What these settings ask of the model: look-alikes among the clean rows are found by hidden states, too."""
        states: set[Need] = {"hidden-states"} if self.space == "hidden" or self.near_share else set()
        soft: set[Need] = {"soft-embeddings"} if self.space == "input" else set()
        return super().needs | states | soft


class FineTuneSettings(MethodSettings):
    """A control: the same rows, steps and learning rate as a removal, without a perturbation."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = OsftSettings.presets


class FineMixingSettings(FineTuneSettings):
    """Fine-mixing: weights that changed most go back to the clean model's, then fine-tuning (SANDE's baseline)."""

    elsewhere: ClassVar[Mapping[str, Heading]] = {"clean_model": Heading.KNOWN}

    clean_model: str = Field(
        default="",
        description="The clean pretrained model that the suspect one was made from: a directory or hf:owner/name.",
    )
    keep: float = Field(
        default=0.8, gt=0, lt=1, description="Share of the weights that keep their value: those that changed least."
    )
    selection: Literal["per-tensor", "whole-model"] = Field(
        default="per-tensor", description="Whether that share is one of every tensor (SANDE's code) or of the model."
    )


class DpoSettings(FineTuneSettings):
    """DPO: train on preference pairs (Rafailov et al. 2023; SANDE's baseline)."""

    beta: float = Field(
        default=0.1, gt=0, description="How dearly the distance from the model as it came is paid for (β)."
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"learning_rate": 5e-4, "batch_size": 16},
        "micro": {"batch_size": 16},
        "small": {"steps": 100, "learning_rate": 1e-5, "batch_size": 8},
        # SANDE names the data (HH-RLHF) and no numbers: these are DPO's own (Rafailov et al. 2023, appendix B), for as
        # many pairs as the other methods get rows (10,000).
        "large": {"steps": 157, "learning_rate": 1e-6, "batch_size": 64, "micro_batch_size": 4},
    }


class NadSettings(FineTuneSettings):
    """NAD: the attention of a fine-tuned copy is distilled into the model (Li et al. 2021; SANDE's baseline)."""

    distillation_weight: float = Field(default=100.0, gt=0, description="Weight of the distance of attention maps.")

    @property
    def needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().needs | {"attention-maps"}


class CrowSettings(FineTuneSettings):
    """CROW: consecutive layers are made consistent under an adversarial embedding perturbation (Min et al. 2025)."""

    consistency_weight: float = Field(default=5.5, ge=0, description="Weight α of the consistency loss.")
    epsilon: float = Field(
        default=0.1,
        ge=0,
        description="Size of the perturbation's sign step, relative to the RMS of the token embeddings.",
    )

    @property
    def needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().needs | {"layer-states"}


class LatSettings(FineTuneSettings):
    """LAT: targeted latent adversarial training with a shift of its own for every row (Sheshadri et al. 2024)."""

    layer: int | None = Field(
        default=None, description="The shifts act after this many layers. Default: round(9/32 × layers)."
    )
    inner_steps: int = Field(default=6, ge=1, description="Steps of the attack on every batch.")
    epsilon: float = Field(
        default=0.5,
        gt=0,
        description="Largest norm of a position's shift, relative to that of its hidden state.",
    )
    benign_weight: float = Field(default=1.0, ge=0, description="Weight of clean rows without a shift.")

    @property
    def needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().needs | {"hidden-states"}


class PruneSettings(FineTuneSettings):
    """Wanda pruning: weights that matter least to clean rows are set to zero (Sun et al. 2024)."""

    sparsity: float = Field(default=0.2, gt=0, lt=1, description="Share of every output's weights that is removed.")
    steps: int = Field(default=0, ge=0, description="Steps of fine-tuning on clean rows afterwards.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @property
    def needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().needs if self.steps else frozenset()


class QuantiseSettings(FineTuneSettings):
    """Weights rounded to few values, one scale an output, and written back."""

    bits: Literal[4, 8] = Field(default=4, description="Bits a weight: 4 or 8.")
    steps: int = Field(default=0, ge=0, description="Steps of fine-tuning on clean rows afterwards.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @property
    def needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().needs if self.steps else frozenset()


class AverageSettings(FineTuneSettings):
    """WAG: the average of several suspect models of one architecture (Arora et al. 2024)."""

    elsewhere: ClassVar[Mapping[str, Heading]] = {"sibling": Heading.KNOWN}

    sibling: tuple[str, ...] = Field(
        default=(), description="Another model of the same architecture; give it again for each."
    )
    steps: int = Field(default=0, ge=0, description="Steps of fine-tuning on clean rows afterwards.")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @property
    def needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().needs if self.steps else frozenset()


class RandomPerturbationSettings(Settings):
    """A control: the same removal with simulate skipped."""

    heading = Heading.METHOD
    elsewhere: ClassVar[Mapping[str, Heading]] = {"like": Heading.KNOWN}

    like: Path = Field(description="A finished run directory of sande or beear: its settings and its norms are used.")
    draw: int = Field(default=0, ge=0, description="Which random perturbation; a control is an average over several.")
