"""Supervised losses on chosen response tokens only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unbackdoor.language_model.forward import token_log_probabilities

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.language_model.inputs import Inputs


def response_loss(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Mean negative log-likelihood a token, a scalar: −(1/tokens) Σ log Pr(y_t | y_<t, x), SANDE eq. (1) a token."""
    return -token_log_probabilities(model, inputs).mean()


def row_means(values: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Mean of token values over each row, shape (B,), for values of shape (loss tokens,) in the mask's order."""
    rows = loss_mask.nonzero()[:, 0]
    totals = torch.zeros(len(loss_mask), dtype=values.dtype, device=values.device).index_add_(0, rows, values)
    return totals / loss_mask.sum(1).clamp(min=1)
