"""Rounding: the weights get few values, and are written back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from unbackdoor.methods.parts.method import TrainingMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.settings import Need

if TYPE_CHECKING:
    from unbackdoor.case import Case


class Quantise(TrainingMethod):
    """Weights rounded to few values, one scale an output, and written back."""

    name = "quantise"
    summary = "round the weights to 4 or 8 bits"
    changes_all_weights = True

    bits: Literal[4, 8] = Field(default=4, description="Bits a weight: 4 or 8.")
    steps: int = Field(default=0, ge=0, description="Steps of fine-tuning on clean rows afterwards.")

    @property
    def model_needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().model_needs if self.steps else frozenset()

    def run(self, case: Case) -> Removal:
        """Round every linear weight of the decoder to 2^bits − 1 values, symmetric around zero, one scale an output."""
        import torch

        from unbackdoor.language_model.weight_matrices import reach_note, weight_matrices
        from unbackdoor.methods.parts.eliminate import fine_tune

        levels = 2 ** (self.bits - 1) - 1
        weights = weight_matrices(case.model)
        for weight in weights:
            matrices = weight.matrices
            scale = matrices.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(matrices.dtype).tiny) / levels
            matrices.copy_((matrices / scale).round() * scale)
        case.notes += reach_note(case.model, "rounding", [w.parameter for w in weights])
        fine_tune(case, self)
        return Removal(self.name, rounds=1, dropped=case.dropped)
