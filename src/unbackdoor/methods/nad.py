"""Neural attention distillation (Li et al. 2021), SANDE's baseline: a fine-tuned copy teaches its attention.

The article of SANDE gives no layers, weight or temperature: here every layer counts alike, its attention averaged over
heads and normalised over the row, as NAD normalises its maps.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import FINE_TUNING, TrainingMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.settings import Need
from unbackdoor.workload import Work

if TYPE_CHECKING:
    import torch

    from unbackdoor.case import Case
    from unbackdoor.language_model.inputs import Inputs


class Nad(TrainingMethod):
    """NAD: the attention of a fine-tuned copy is distilled into the model (Li et al. 2021; SANDE's baseline)."""

    name = "nad"
    summary = "distil the attention of a fine-tuned copy into the model"
    needs = (Fact.CLEAN_ROWS,)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = FINE_TUNING

    distillation_weight: float = Field(default=100.0, gt=0, description="Weight of the distance of attention maps.")

    @property
    def model_needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().model_needs | {"attention-maps"}

    def training_work(self, rounds: int = 1) -> Work:
        """Of teacher and student, whose rows the teacher reads as well."""
        rows = super().training_work(rounds).trained
        return Work(trained=2 * rows, read=rows)

    def run(self, case: Case) -> Removal:
        """Fine-tune a copy on the clean rows (the teacher), then the model on them and on the teacher's attention."""
        import torch

        from unbackdoor.case import adapted
        from unbackdoor.language_model.attention import attention_maps, attention_returned
        from unbackdoor.language_model.loss import response_loss
        from unbackdoor.methods.parts.eliminate import Rows, eliminate, train_weights
        from unbackdoor.training import Term

        before = copy.deepcopy(case.model)
        with contextlib.ExitStack() as open_contexts:
            with adapted(case, self):
                eliminate(case, [Rows("teacher", case.anchors)], self, phase="teacher")
            teacher, case.model = case.model, before
            teacher.requires_grad_(False)
            for model in (teacher, case.model):
                open_contexts.enter_context(attention_returned(model))
            open_contexts.enter_context(adapted(case, self))
            student = case.model

            def distance(inputs: Inputs) -> torch.Tensor:
                with torch.no_grad():
                    wanted = attention_maps(teacher, inputs)
                return (attention_maps(student, inputs) - wanted).pow(2).sum(-1).mean()

            batches = case.batches(case.encode(case.anchors, self, "anchors"), self, self.seed * 1009)
            terms = [
                Term("anchors", batches, lambda inputs: response_loss(student, inputs)),
                Term("attention", batches, distance, self.distillation_weight),
            ]
            train_weights(case, terms, self, phase="eliminate")
        return Removal(self.name, rounds=1, dropped=case.dropped)
