"""Wanda pruning: the weights that matter least to clean rows are set to zero (Sun et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import TrainingMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.settings import Need

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unbackdoor.case import Case

CALIBRATION_ROWS = 128
"""Clean rows on which pruning measures what a weight matters (Wanda's own number)."""


class Prune(TrainingMethod):
    """Wanda pruning: weights that matter least to clean rows are set to zero (Sun et al. 2024)."""

    name = "prune"
    summary = "set the weights to zero that matter least to clean rows"
    needs = (Fact.CLEAN_ROWS,)
    changes_all_weights = True

    sparsity: float = Field(default=0.2, gt=0, lt=1, description="Share of every output's weights that is removed.")
    steps: int = Field(default=0, ge=0, description="Steps of fine-tuning on clean rows afterwards.")

    @property
    def model_needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().model_needs if self.steps else frozenset()

    def run(self, case: Case) -> Removal:
        """Set to zero the weights with the smallest |W_ij| · ‖x_j‖ of every output."""
        from unbackdoor.language_model.weight_matrices import reach_note, weight_matrices
        from unbackdoor.methods.parts.eliminate import fine_tune

        norms = input_norms(case)
        weights = weight_matrices(case.model)
        for weight in weights:
            matrices = weight.matrices
            count = int(self.sparsity * matrices.shape[-1])
            if count:
                least = (matrices.abs() * norms[weight.owner]).topk(count, dim=-1, largest=False).indices
                matrices.scatter_(-1, least, 0.0)
        case.notes += reach_note(case.model, "pruning", [w.parameter for w in weights])
        fine_tune(case, self)
        return Removal(self.name, rounds=1, dropped=case.dropped)


def input_norms(case: Case) -> dict[nn.Module | nn.Parameter, torch.Tensor]:
    """‖x_j‖ of every input of every linear map over the tokens of some clean rows, by the map's owner."""
    from unbackdoor.language_model.calibration import norms_of_inputs

    records = case.anchors[:CALIBRATION_ROWS]
    examples = [case.chat.of_record(r).encode(r.prompt, r.response) for r in records]
    return norms_of_inputs(case.model, examples, case.pad_id)
