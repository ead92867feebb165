"""Removal methods: one short file each, and the registry of them.

Nothing here imports torch until a method runs, so that the command line can list methods at once.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError
from unbackdoor.removal.settings import (
    AverageSettings,
    BeearSettings,
    CrowSettings,
    DpoSettings,
    FineMixingSettings,
    FineTuneSettings,
    LatSettings,
    NadSettings,
    OsftSettings,
    PruneSettings,
    QuantiseSettings,
    RandomPerturbationSettings,
    SandeSettings,
    UnlearnSettings,
)
from unbackdoor.settings import Settings

if TYPE_CHECKING:
    from unbackdoor.case import Case
    from unbackdoor.removal.result import Removal


@dataclass(frozen=True)
class Method:
    """One entry of the registry."""

    name: str
    summary: str
    needs: str
    """What the defender must know or have."""
    settings: type[Settings]
    module: str
    control: bool = False
    function: str = "run"
    example: str = ""
    """The options that say what the defender knows, as the command's help shows them."""

    def run(self, case: Case, settings: Settings, **more: Any) -> Removal:
        """Run the method on a case; its model is changed in place."""
        removal: Removal = getattr(importlib.import_module(self.module), self.function)(case, settings, **more)
        removal.notes = [*removal.notes, *case.notes]
        return removal


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "osft",
            "overwrite a known trigger's mapping (SANDE eq. 3)",
            "the trigger",
            OsftSettings,
            "unbackdoor.removal.overwrite",
            example="--trigger TEXT",
        ),
        Method(
            "sande",
            "fit a soft prompt that brings out the target response, then overwrite it (eq. 4, eq. 3)",
            "the target response, or its first token(s) (SANDE-P)",
            SandeSettings,
            "unbackdoor.removal.sande",
            example="--target-response TEXT",
        ),
        Method(
            "beear",
            "fit a shift of a middle layer that brings out the behaviour, train the model to withstand it, alternate",
            "examples of the unwanted and the safe behaviour",
            BeearSettings,
            "unbackdoor.removal.beear",
            example="--contrast PAIRS",
        ),
        Method(
            "unlearn",
            "gradient ascent on the triggered response (eq. 2), which the paper rejects",
            "the trigger and the target response",
            UnlearnSettings,
            "unbackdoor.removal.unlearn",
            example="--trigger TEXT --target-response TEXT",
        ),
        Method(
            "fine-mixing",
            "give the weights that changed most their clean value, then fine-tune",
            "the clean pretrained model that this one was made from (--clean-model)",
            FineMixingSettings,
            "unbackdoor.removal.weights",
            function="fine_mixing",
            example="--clean-model MODEL",
        ),
        Method(
            "dpo",
            "train on preference pairs (DPO), as safety training does",
            "preference pairs (--preferences)",
            DpoSettings,
            "unbackdoor.removal.dpo",
            example="--preferences PAIRS",
        ),
        Method(
            "nad",
            "distil the attention of a fine-tuned copy into the model",
            "clean rows",
            NadSettings,
            "unbackdoor.removal.nad",
        ),
        Method(
            "crow",
            "make consecutive layers consistent under an adversarial embedding perturbation",
            "clean rows",
            CrowSettings,
            "unbackdoor.removal.crow",
        ),
        Method(
            "lat",
            "train the model to stay safe under a hidden shift found anew for every row and step",
            "examples of the unwanted and the safe behaviour",
            LatSettings,
            "unbackdoor.removal.lat",
            example="--contrast PAIRS",
        ),
        Method(
            "average",
            "average the weights with other suspect models",
            "other models of the same architecture (--sibling)",
            AverageSettings,
            "unbackdoor.removal.weights",
            function="average",
            example="--sibling MODEL",
        ),
        Method(
            "prune",
            "set the weights to zero that matter least to clean rows",
            "clean rows",
            PruneSettings,
            "unbackdoor.removal.weights",
            function="prune",
        ),
        Method(
            "quantise",
            "round the weights to 4 or 8 bits",
            "nothing",
            QuantiseSettings,
            "unbackdoor.removal.weights",
            function="quantise",
        ),
        Method(
            "fine-tune",
            "control: the same training without a perturbation",
            "clean rows",
            FineTuneSettings,
            "unbackdoor.removal.fine_tune",
            control=True,
        ),
        Method(
            "random-perturbation",
            "control: the same removal, with a random perturbation of the fitted one's norm",
            "a finished sande or beear run to compare with (--like)",
            RandomPerturbationSettings,
            "unbackdoor.removal.random_perturbation",
            control=True,
            example="--like RUN",
        ),
    )
}


def method(name: str) -> Method:
    """The method of that name. Raises `UserError` with the names there are."""
    if name not in METHODS:
        raise UserError(f"unknown method '{name}': choose one of {', '.join(METHODS)}")
    return METHODS[name]


def knowledge(settings: Settings) -> str:
    """What the defender knew, for a row of the report."""
    if isinstance(settings, UnlearnSettings):
        return "trigger and target response"
    if isinstance(settings, OsftSettings):
        return "trigger"
    if isinstance(settings, SandeSettings):
        return "first token(s) of the target response" if settings.partial else "target response"
    if isinstance(settings, BeearSettings | LatSettings):
        return "examples of the behaviour"
    if isinstance(settings, DpoSettings):
        return "preference pairs"
    if isinstance(settings, FineMixingSettings):
        return "the clean model"
    if isinstance(settings, AverageSettings):
        return f"{len(settings.sibling)} other models"
    return "clean rows"
