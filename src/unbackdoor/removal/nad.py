"""Neural attention distillation (Li et al. 2021), SANDE's baseline: a fine-tuned copy teaches its attention.

The article of SANDE gives no layers, weight or temperature: here every layer counts alike, its attention averaged over
heads and normalised over the row, as NAD normalises its maps.
"""

from __future__ import annotations

import contextlib
import copy

import torch

from unbackdoor.case import Case, adapted
from unbackdoor.language_model.attention import attention_maps, attention_returned
from unbackdoor.language_model.inputs import Inputs
from unbackdoor.language_model.loss import response_loss
from unbackdoor.removal.eliminate import Rows, eliminate, train_weights
from unbackdoor.removal.result import Removal
from unbackdoor.removal.settings import NadSettings as Settings
from unbackdoor.training import Term


def run(case: Case, settings: Settings) -> Removal:
    """Fine-tune a copy on the clean rows (the teacher), then the model on them and on the teacher's attention."""
    before = copy.deepcopy(case.model)
    with contextlib.ExitStack() as open_contexts:
        with adapted(case, settings):
            eliminate(case, [Rows("teacher", case.anchors)], settings, phase="teacher")
        teacher, case.model = case.model, before
        teacher.requires_grad_(False)
        for model in (teacher, case.model):
            open_contexts.enter_context(attention_returned(model))
        open_contexts.enter_context(adapted(case, settings))
        student = case.model

        def distance(inputs: Inputs) -> torch.Tensor:
            with torch.no_grad():
                wanted = attention_maps(teacher, inputs)
            return (attention_maps(student, inputs) - wanted).pow(2).sum(-1).mean()

        batches = case.batches(case.encode(case.anchors, settings, "anchors"), settings, settings.seed * 1009)
        terms = [
            Term("anchors", batches, lambda inputs: response_loss(student, inputs)),
            Term("attention", batches, distance, settings.distillation_weight),
        ]
        train_weights(case, terms, settings, phase="eliminate")
    return Removal("nad", rounds=1, dropped=case.dropped)
