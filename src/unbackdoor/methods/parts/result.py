"""What a removal method hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unbackdoor.perturbation import Perturbation


@dataclass
class Simulation:
    """How well a perturbation, fitted from scratch, brings out a target on held-out prompts."""

    when: str
    """`before`, `round 2` …, or `after`: against which state of the model."""
    target: str
    """`target`, or `control`: a target of equal length that the model was never trained to give."""
    curve: list[list[float]]
    """(step, success) on the way; success is a probability from 0 to 1."""
    norm_ratio: float | None = None
    """Norm of the fitted perturbation against what it stands among (token embeddings, or activations)."""

    def at(self, step: int) -> float:
        """Success after so many steps (of the last check at or before it)."""
        return [value for at, value in self.curve if at <= step][-1]

    def steps_to(self, success: float) -> int | None:
        """The first checked step at which that success was reached."""
        return next((int(step) for step, value in self.curve if value >= success), None)


@dataclass
class Removal:
    """What a method did. The model it was given has been changed in place."""

    method: str
    completed: bool = True
    """False where the gate stopped it: then the model is as it was."""
    message: str = ""
    simulations: list[Simulation] = field(default_factory=list)
    steps_needed: int | None = None
    """Steps in which the first simulation passed the gate: the budget of every later one."""
    still_simulable: bool | None = None
    """Whether a fresh simulation still succeeds; None for methods that do not simulate."""
    rounds: int = 0
    perturbation: Perturbation | None = None
    """The first fitted perturbation: what brings out the target in the model as it came."""
    dropped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What must be known to read the result: what of the model was not reached."""

    def evidence(self) -> dict[str, float]:
        """Success of a fresh simulation before and after, and of the control target, within the same steps."""
        budget = self.steps_needed
        if budget is None:
            return {}
        return {f"{s.target} {s.when}": s.at(budget) for s in self.simulations if s.when in ("before", "after")}
