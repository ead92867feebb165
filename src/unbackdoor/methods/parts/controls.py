"""The controls that stand beside a finished removal."""

from __future__ import annotations

from collections.abc import Mapping

from unbackdoor.methods.fine_tune import FineTune
from unbackdoor.methods.parts.finished import Finished
from unbackdoor.methods.parts.method import Method
from unbackdoor.methods.random_perturbation import RandomPerturbation


def controls_of(finished: Finished, simulated: Finished | None = None, draws: int = 1) -> Mapping[str, Method]:
    """Fine-tuning as long as the run and, where it simulated, the same with random perturbations; by their labels.

    Args:
        finished: the run.
        simulated: the run that perturbations are taken from, where it is another.
        draws: how many random ones.
    """
    controls: dict[str, Method] = {FineTune.name: FineTune.beside(finished)}
    simulated = simulated or finished
    if (
        simulated.method.simulates and simulated.rounds
    ):  # else the gate stopped it, and there is nothing to stand beside
        for draw in range(draws):
            label = f"{RandomPerturbation.name}-{draw}" if draw else RandomPerturbation.name
            controls[label] = RandomPerturbation(like=simulated, draw=draw)
    return controls
