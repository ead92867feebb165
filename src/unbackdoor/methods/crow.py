"""CROW: consecutive layers are made consistent under an adversarial perturbation of the embeddings.

Min et al., "CROW: Eliminating Backdoors from Large Language Models via Internal Consistency Regularization" (ICML
2025). A backdoor makes the hidden state turn from one layer to the next; clean rows alone are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import FINE_TUNING, TrainingMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.settings import Need
from unbackdoor.workload import Work

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from unbackdoor.case import Case
    from unbackdoor.language_model.inputs import Inputs


class Crow(TrainingMethod):
    """CROW: consecutive layers are made consistent under an adversarial embedding perturbation (Min et al. 2025)."""

    name = "crow"
    summary = "make consecutive layers consistent under an adversarial embedding perturbation"
    needs = (Fact.CLEAN_ROWS,)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = FINE_TUNING

    consistency_weight: float = Field(default=5.5, ge=0, description="Weight α of the consistency loss.")
    epsilon: float = Field(
        default=0.1,
        ge=0,
        description="Size of the perturbation's sign step, relative to the RMS of the token embeddings.",
    )

    @property
    def model_needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().model_needs | {"layer-states"}

    def training_work(self, rounds: int = 1) -> Work:
        """Of two terms, and the perturbation's gradient."""
        rows = super().training_work(rounds).trained
        return Work(trained=2 * rows, fitted=rows)

    def run(self, case: Case) -> Removal:
        """Train on the clean rows' loss + α · consistency under ε · sign(∇ consistency) on the embeddings."""
        from unbackdoor.case import adapted
        from unbackdoor.language_model.forward import in_training
        from unbackdoor.language_model.loss import response_loss
        from unbackdoor.methods.parts.eliminate import train_weights
        from unbackdoor.training import Term

        with adapted(case, self):
            model = case.model
            batches = case.batches(case.encode(case.anchors, self, "anchors"), self, self.seed * 1009)

            def consistent(inputs: Inputs) -> torch.Tensor:
                return consistency(model, perturbed(model, inputs, self.epsilon))

            terms = [
                Term("anchors", batches, lambda inputs: response_loss(model, inputs)),
                Term("consistency", batches, consistent, self.consistency_weight),
            ]
            with in_training(model):
                train_weights(case, terms, self, phase="eliminate")
        return Removal(self.name, rounds=1, dropped=case.dropped)


def consistency(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Mean of 1 − cos(h_l, h_{l+1}) over consecutive hidden states and tokens, a scalar; padding does not count."""
    import torch

    from unbackdoor.language_model.hidden_states import layer_states
    from unbackdoor.language_model.precision import autocast

    with autocast(inputs.attention_mask.device):
        states = layer_states(model, inputs)
    real = inputs.attention_mask.bool()
    stack = torch.stack([state[real].float() for state in states])
    return (1 - torch.cosine_similarity(stack[:-1], stack[1:], dim=-1)).mean()


def perturbed(model: PreTrainedModel, inputs: Inputs, epsilon: float) -> Inputs:
    """The batch with embeddings moved by ε · RMS · sign of the gradient that raises inconsistency most."""
    import torch

    from unbackdoor.language_model.layers import embed

    tokens = embed(model, inputs.ids).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(consistency(model, replace(inputs, embeddings=tokens)), tokens)
    real = inputs.attention_mask.bool()
    size = epsilon * tokens.detach()[real].float().pow(2).mean().sqrt()
    moved = tokens.detach() + size.to(tokens.dtype) * gradient.sign() * real[:, :, None]
    return replace(inputs, embeddings=moved)
