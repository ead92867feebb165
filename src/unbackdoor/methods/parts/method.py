"""What a removal method is: its settings, what it must be given, and `run`. A method's file has all three.

Nothing here imports torch, and no method's file does before it runs: the command line lists methods at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from unbackdoor.knowledge import Knowledge, Needs, check, knew
from unbackdoor.settings import Heading, Settings, TrainingSettings
from unbackdoor.workload import Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.case import Case
    from unbackdoor.methods.parts.result import Removal

FINE_TUNING: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"steps": 100, "learning_rate": 5e-4, "batch_size": 16},
    "micro": {"batch_size": 16},
    # Tried on SmolLM2-135M (docs/results/real-chat-model.md), where OSFT needs no more.
    "small": {"steps": 40, "learning_rate": 5e-5, "batch_size": 8},
    "large": {"steps": 1250, "learning_rate": 2e-5, "batch_size": 8, "micro_batch_size": 4},
}
"""Presets of plain training on clean rows."""
CHECK_EVERY = 5
"""Steps of a simulation between two looks at its success."""
SHARE_LEARNED = 0.5
"""Of a simulation's most steps, what it usually takes."""


class Method(Settings):
    """A removal method; its fields are its options. A new one declares the class variables and overrides `run`."""

    heading = Heading.METHOD

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    """What it does, in a line that begins small."""
    needs: ClassVar[Needs] = ()
    """What a defender must know or have; the options are made of it, too."""
    control: ClassVar[bool] = False
    """Whether it only says what another method's work was worth."""
    simulates: ClassVar[bool] = False
    """Whether it fits a perturbation, which a control can replace by a random one."""
    changes_all_weights: ClassVar[bool] = False
    """Whether it changes weights beside those that it trains, so that adapters alone do not hold what it did."""

    def run(self, case: Case) -> Removal:
        """Do it: the case's model is changed in place."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")

    @property
    def basis(self) -> TrainingMethod:
        """The method whose settings decide the work: itself; of a control, one that a finished run had."""
        raise NotImplementedError(f"{type(self).__name__} has no settings of training")

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise a `UserError` where the method cannot work on this model, or something of its own is not there."""

    def check_rows(self, case: Case) -> None:
        """Raise a `UserError` where no row of the case is left as the method encodes them, before anything is written.

        Rows whose own prompt and response are too long have been dropped before.
        """

    def knew(self, case: Case) -> str:
        """What the defender knew, for a row of the report."""
        return "control" if self.control else knew(self.needs, Knowledge.of(self), case.facts)

    def on(self, case: Case) -> Removal:
        """Run it on a case whose model is changed in place. Raises `UserError` for what is missing."""
        basis = self.basis
        check(self.name, basis.needs, Knowledge.of(basis).facts | case.facts)
        removal = self.run(case)
        removal.notes = [*removal.notes, *case.notes]
        return removal


class TrainingMethod(Method, TrainingSettings):
    """A method that trains the model's weights."""

    @property
    def basis(self) -> TrainingMethod:
        return self

    def simulating_work(self, rounds: int) -> Work:
        """What it takes to simulate in so many rounds."""
        return Work()


class AnchoredMethod(TrainingMethod):
    """A method that mixes in clean rows as they are."""

    anchor_weight: float = Field(
        default=1.0,
        ge=0,
        description="Weight of clean rows without perturbation, which keep the model useful.",
    )

    def training_work(self, rounds: int = 1) -> Work:
        """As many of them as of the others."""
        return super().training_work(rounds) * (1 + (self.anchor_weight > 0))


class SimulatingMethod(AnchoredMethod):
    """A method that simulates and eliminates in turn."""

    simulates = True

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

    @property
    def round_range(self) -> tuple[int, int]:
        """They may end early only where they are repeated."""
        return (min(self.least_rounds, self.rounds) if self.repeat else self.rounds), self.rounds

    def simulating_work(self, rounds: int) -> Work:
        """One for every round, one behind the last, and control targets beside the first and the last."""
        from unbackdoor.case import MOST_HELD_OUT

        steps = (rounds + 3) * self.simulate_steps * SHARE_LEARNED
        return Work(fitted=steps * self.batch_size, read=steps / CHECK_EVERY * MOST_HELD_OUT)
