"""A control: the rows, steps and learning rate of a removal, without a perturbation. What it removes was not removed by
the perturbation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field

from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.finished import Finished
from unbackdoor.methods.parts.method import FINE_TUNING, TrainingMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.settings import Heading, TrainingSettings

if TYPE_CHECKING:
    from unbackdoor.case import Case


class FineTune(TrainingMethod):
    """A control: the same rows, steps and learning rate as a removal, without a perturbation."""

    name = "fine-tune"
    summary = "control: the same training without a perturbation"
    needs = (Fact.CLEAN_ROWS,)
    control = True
    elsewhere: ClassVar[Mapping[str, Heading]] = {"like": Heading.KNOWN}

    like: Annotated[Finished | None, BeforeValidator(Finished.given)] = Field(
        default=None,
        exclude=True,
        description="A finished run directory of remove: as many steps, by the same settings of training.",
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = FINE_TUNING

    @classmethod
    def make(cls, values: Mapping[str, Any], *presets: str) -> Self:
        """As always; beside a finished run its settings stand in place of the presets'."""
        like = Finished.given(values.get("like"))
        return super().make(values, *presets) if like is None else super().make({**_settings(like), **values})

    @classmethod
    def beside(cls, finished: Finished) -> Self:
        """The control of a finished run."""
        return cls(**_settings(finished))

    def run(self, case: Case) -> Removal:
        """Train on clean rows, and on the safe responses where there is a contrast set (SANDE's SFT baseline)."""
        from unbackdoor.methods.parts.eliminate import fine_tune

        fine_tune(case, self)
        return Removal(self.name, rounds=1, dropped=case.dropped)


def _settings(finished: Finished) -> dict[str, Any]:
    """The settings of training that a run had, for its total number of steps."""
    shared = finished.method.model_dump(include=set(TrainingSettings.model_fields))
    return {**shared, "steps": max(1, finished.method.steps * max(1, finished.rounds))}
