"""Fine-mixing: the weights that changed most go back to the clean model's (Zhang et al. 2022; SANDE's baseline)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import FINE_TUNING, TrainingMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.settings import Heading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from unbackdoor.case import Case


class FineMixing(TrainingMethod):
    """Fine-mixing: weights that changed most go back to the clean model's, then fine-tuning (SANDE's baseline)."""

    name = "fine-mixing"
    summary = "give the weights that changed most their clean value, then fine-tune"
    needs = (Fact.CLEAN_MODEL,)
    changes_all_weights = True
    elsewhere: ClassVar[Mapping[str, Heading]] = {"clean_model": Heading.KNOWN}

    clean_model: str = Field(
        default="",
        description="The clean pretrained model that the suspect one was made from: a directory or hf:owner/name.",
    )
    keep: float = Field(
        default=0.8, gt=0, lt=1, description="Share of the weights that keep their value: those that changed least."
    )
    selection: Literal["per-tensor", "whole-model"] = Field(
        default="per-tensor", description="Whether that share is one of every tensor (SANDE's code) or of the model."
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = FINE_TUNING

    def check_model(self, model: PreTrainedModel) -> None:
        """The clean model is there, and of this one's shape."""
        from unbackdoor.methods.parts.other_models import check_other_model

        check_other_model(model, self.clean_model, "--clean-model")

    def run(self, case: Case) -> Removal:
        """Reset the weights that differ most from the clean model's, as SANDE's code does, then fine-tune."""
        from unbackdoor.language_model.layers import language_parameters
        from unbackdoor.methods.parts.eliminate import fine_tune
        from unbackdoor.methods.parts.other_models import language_weights_of, left_alone

        theirs = language_weights_of(self.clean_model, case.model, "--clean-model")
        mix(language_parameters(case.model), theirs, self.keep, self.selection)
        case.notes += left_alone(case.model)
        fine_tune(case, self)
        return Removal(self.name, rounds=1, dropped=case.dropped)


def mix(suspect: Mapping[str, torch.Tensor], clean: Mapping[str, torch.Tensor], keep: float, selection: str) -> None:
    """Give back their clean value to all but a share `keep` of the weights, those that differ least."""
    import torch

    with torch.no_grad():
        differences = {name: (p - clean[name].to(p)).abs() for name, p in suspect.items()}
        limit = threshold(list(differences.values()), keep) if selection == "whole-model" else None
        for name, parameter in suspect.items():
            difference = differences[name]
            if limit is not None:
                reset = difference > limit
            else:
                reset = torch.zeros_like(difference, dtype=torch.bool)
                count = difference.numel() - round(keep * difference.numel())
                reset.view(-1)[difference.flatten().topk(count).indices] = True
            parameter.copy_(torch.where(reset, clean[name].to(parameter), parameter))


def threshold(values: Sequence[torch.Tensor], keep: float) -> float:
    """The smallest value that at least a share `keep` of all values do not exceed, found without joining them."""
    total = sum(v.numel() for v in values)
    low, high = 0.0, max(float(v.max()) for v in values)
    for _ in range(64):
        middle = (low + high) / 2
        if sum(int((v <= middle).sum()) for v in values) >= keep * total:
            high = middle
        else:
            low = middle
    return high
