"""Simulate and eliminate in turn, until a fresh simulation no longer succeeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from unbackdoor.case import Case
from unbackdoor.methods.parts.method import SimulatingMethod
from unbackdoor.methods.parts.result import Removal, Simulation
from unbackdoor.perturbation import Perturbation

PASSED = 0.9
"""Success at which a first simulation counts as done, where there is no gate."""

SECOND_ATTEMPT = 8
"""Before the gate stops a run, a second attempt gets so many times the usual steps; it ends as soon as it passes."""

PATIENCE = 4
"""Where rounds are repeated, a later simulation gets so many times the steps that the first one needed: one that takes
longer has a perturbation far larger than any trigger's, and to overwrite that costs utility for nothing."""


class Fit(Protocol):
    """Fit a new perturbation; the arguments are those of `simulate`."""

    def __call__(
        self, when: str, target: str, phase: str, seed: int, steps: int | None = None, give_up_after: int | None = None
    ) -> tuple[Perturbation, Simulation]: ...


@dataclass(frozen=True)
class Round:
    """The two halves of a method.

    Args:
        fit: simulate.
        overwrite: (perturbation, number of the round) → trains the model.
        longer: the same with a perturbation of twice the length, for a second attempt.
    """

    fit: Fit
    overwrite: Callable[[Perturbation, int], None]
    longer: Callable[[], Round]


def run_rounds(case: Case, settings: SimulatingMethod, name: str, parts: Round) -> Removal:
    """Alternate the two halves, and gather the evidence of fresh simulations.

    Where the first simulation does not pass the gate, it is tried once more with twice the length and more steps before
    the run stops. Every round fits a new perturbation with a new seed. Where rounds may end, that fit is also the test:
    it succeeds when, within the steps that the first simulation needed to pass the gate, it reaches `settings.success`
    and more than a control target does. Then its perturbation is overwritten in turn; otherwise the backdoor is no
    longer simulable.

    Where the case has a perturbation to take the place of the fitted ones, that is overwritten in every round, and
    nothing is simulated.
    """
    removal = Removal(name, dropped=case.dropped)
    if case.replacement is not None:
        for number in range(1, settings.rounds + 1):
            parts.overwrite(case.replacement, number)
        removal.perturbation, removal.rounds = case.replacement, settings.rounds
        return removal

    seed = settings.seed * 7919
    perturbation, first = parts.fit("before", "target", "round-1/simulate", seed)
    needed = first.steps_to(settings.gate or PASSED)
    if needed is None and settings.gate > 0:
        parts = parts.longer()
        perturbation, first = parts.fit(
            "before", "target", "round-1/simulate longer", seed, SECOND_ATTEMPT * settings.simulate_steps
        )
        needed = first.steps_to(settings.gate)
    removal.simulations.append(first)
    if needed is None and settings.gate > 0:
        removal.completed = False
        best = max(value for _, value in first.curve)
        removal.message = (
            f"{name}: the first simulation reached {best:.2f} on held-out prompts, the gate asks for "
            f"{settings.gate:.2f}. The model may not have this backdoor, or simulate needs more: raise "
            "--simulate-steps, or lower --gate"
        )
        return removal
    # Zero steps can be enough: ordinary tokens alone may fire a careless organism. A fresh simulation gets a few.
    budget = removal.steps_needed = max(settings.simulate_steps if needed is None else needed, 5)
    removal.perturbation = perturbation
    if case.when_fitted is not None:
        case.when_fitted(case, perturbation)
    removal.simulations.append(parts.fit("before", "control", "before/control", seed + 1, budget)[1])

    for number in range(1, settings.rounds + 1):
        parts.overwrite(perturbation, number)
        removal.rounds = number
        if case.after_round is not None and case.after_round(number):
            break
        last = number == settings.rounds
        phase = "after/simulate" if last else f"round-{number + 1}/simulate"
        if last:  # nothing is overwritten any more: only whether it succeeds within the budget counts
            steps = budget
        elif settings.repeat:
            steps = min(max(settings.simulate_steps, budget), PATIENCE * budget)
        else:
            steps = settings.simulate_steps
        when, seed = f"round {number + 1}", seed + 10
        may_end = last or (settings.repeat and number >= settings.least_rounds)
        perturbation, fresh = parts.fit(when, "target", phase, seed, steps, give_up_after=budget if may_end else None)
        removal.simulations.append(fresh)
        if not may_end:
            continue
        control = parts.fit(when, "control", f"{phase}-control", seed + 1, budget)[1]
        removal.simulations.append(control)
        reached = fresh.at(budget)
        removal.still_simulable = reached >= settings.success and reached > control.at(budget)
        if last or not removal.still_simulable:
            fresh.when = control.when = "after"
            break
    return removal
