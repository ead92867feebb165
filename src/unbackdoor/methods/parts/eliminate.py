"""Eliminate: with the perturbation frozen, train the model to answer well under it (SANDE eq. 3, BEEAR's removal)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unbackdoor.case import Case, adapted, trainable
from unbackdoor.data.records import Record
from unbackdoor.language_model.forward import in_training
from unbackdoor.methods.parts.method import TrainingMethod
from unbackdoor.methods.parts.simulate import loss_under
from unbackdoor.perturbation import Perturbation
from unbackdoor.training import Optimization, Term, TrainingLog, train

NOTHING = Perturbation()
"""The identity."""


@dataclass(frozen=True)
class Rows:
    """Rows to be answered with their response, under a perturbation or without one."""

    name: str
    records: Sequence[Record]
    perturbation: Perturbation = NOTHING
    weight: float = 1.0


def eliminate(
    case: Case, rows: Sequence[Rows], settings: TrainingMethod, *, phase: str, round_number: int = 0
) -> TrainingLog:
    """Train the model on the weighted sum of −(1/tokens) Σ log Pr(response | prompt, perturbation) over `rows`.

    Rows of weight 0 are left out. Successive rounds see successive batches.
    """
    model = case.model
    terms = []
    for number, part in enumerate(rows):
        if part.weight == 0 or not part.records:
            continue
        examples = case.encode(part.records, settings, part.name, perturbation=part.perturbation)
        batches = case.batches(examples, settings, settings.seed * 1009 + number)
        terms.append(Term(part.name, batches, loss_under(model, part.perturbation), part.weight))
    for part in rows:
        part.perturbation.requires_grad_(False)
    with in_training(model):
        return train_weights(case, terms, settings, phase=phase, first_step=round_number * settings.steps)


def train_weights(
    case: Case, terms: Sequence[Term], settings: TrainingMethod, *, phase: str, first_step: int = 0
) -> TrainingLog:
    """Train the model's weights on the terms, as the settings schedule it; terms of weight 0 are left out."""
    return train(
        trainable(case.model),
        [term for term in terms if term.weight],
        Optimization(**settings.schedule()),
        phase=phase,
        first_step=first_step,
        journal=case.journal,
        progress=case.progress,
    )


def fine_tune(case: Case, settings: TrainingMethod) -> None:
    """Train on clean rows, and on the safe responses where there is a contrast set: nothing where no steps are asked
    for."""
    if settings.steps:
        with adapted(case, settings):
            rows = [Rows("anchors", case.anchors), Rows("safe", case.contrast)]
            eliminate(case, rows, settings, phase="eliminate")
