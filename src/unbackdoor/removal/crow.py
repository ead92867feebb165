"""CROW: consecutive layers are made consistent under an adversarial perturbation of the embeddings.

Min et al., "CROW: Eliminating Backdoors from Large Language Models via Internal Consistency Regularization" (ICML
2025). A backdoor makes the hidden state turn from one layer to the next; clean rows alone are needed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from unbackdoor.case import Case, adapted
from unbackdoor.language_model.inputs import Inputs
from unbackdoor.language_model.layers import embed, layer_states
from unbackdoor.language_model.loss import autocast, response_loss
from unbackdoor.removal.eliminate import train_weights
from unbackdoor.removal.result import Removal
from unbackdoor.removal.settings import CrowSettings as Settings
from unbackdoor.training import Term

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(case: Case, settings: Settings) -> Removal:
    """Train on the clean rows' loss + α · consistency under ε · sign(∇ consistency) on the embeddings."""
    with adapted(case, settings):
        model = case.model
        batches = case.batches(case.encode(case.anchors, settings, "anchors"), settings, settings.seed * 1009)

        def consistent(inputs: Inputs) -> torch.Tensor:
            return consistency(model, perturbed(model, inputs, settings.epsilon))

        terms = [
            Term("anchors", batches, lambda inputs: response_loss(model, inputs)),
            Term("consistency", batches, consistent, settings.consistency_weight),
        ]
        model.train()
        try:
            train_weights(case, terms, settings, phase="eliminate")
        finally:
            model.eval()
    return Removal("crow", rounds=1, dropped=case.dropped)


def consistency(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Mean of 1 − cos(h_l, h_{l+1}) over consecutive hidden states and tokens, a scalar; padding does not count."""
    with autocast(inputs.attention_mask.device):
        states = layer_states(model, inputs)
    real = inputs.attention_mask.bool()
    stack = torch.stack([state[real].float() for state in states])
    return (1 - torch.cosine_similarity(stack[:-1], stack[1:], dim=-1)).mean()


def perturbed(model: PreTrainedModel, inputs: Inputs, epsilon: float) -> Inputs:
    """The batch with embeddings moved by ε · RMS · sign of the gradient that raises inconsistency most."""
    tokens = embed(model, inputs.ids).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(consistency(model, replace(inputs, embeddings=tokens)), tokens)
    real = inputs.attention_mask.bool()
    size = epsilon * tokens.detach()[real].float().pow(2).mean().sqrt()
    moved = tokens.detach() + size.to(tokens.dtype) * gradient.sign() * real[:, :, None]
    return replace(inputs, embeddings=moved)
