"""Averaging: backdoors that several suspect models do not share fade (WAG, Arora et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import TrainingMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.settings import Heading, Need

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.case import Case


class Average(TrainingMethod):
    """WAG: the average of several suspect models of one architecture (Arora et al. 2024)."""

    name = "average"
    summary = "average the weights with other suspect models"
    needs = (Fact.SIBLINGS,)
    changes_all_weights = True

    elsewhere: ClassVar[Mapping[str, Heading]] = {"sibling": Heading.KNOWN}

    sibling: tuple[str, ...] = Field(
        default=(), description="Another model of the same architecture; give it again for each."
    )
    steps: int = Field(default=0, ge=0, description="Steps of fine-tuning on clean rows afterwards.")

    @property
    def model_needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().model_needs if self.steps else frozenset()

    def check_model(self, model: PreTrainedModel) -> None:
        """The others are there, and of this one's shape."""
        from unbackdoor.methods.parts.other_models import check_other_model

        for source in self.sibling:
            check_other_model(model, source, "--sibling")

    def run(self, case: Case) -> Removal:
        """The mean of this model's weights and its siblings'."""
        import torch

        from unbackdoor.language_model.layers import language_parameters
        from unbackdoor.methods.parts.eliminate import fine_tune
        from unbackdoor.methods.parts.other_models import language_weights_of, left_alone

        named, count = language_parameters(case.model), len(self.sibling) + 1
        with torch.no_grad():
            for parameter in named.values():
                parameter.div_(count)
            for source in self.sibling:  # one after the other: they may not fit together
                for name, theirs in language_weights_of(source, case.model, "--sibling").items():
                    named[name].add_(theirs.to(named[name]) / count)
        case.notes += left_alone(case.model)
        fine_tune(case, self)
        return Removal(self.name, rounds=1, dropped=case.dropped)
