"""Supervised losses on chosen response tokens only, with logits computed only where a loss needs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from unbackdoor.language_model.forward import forward
from unbackdoor.language_model.inputs import Inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Precision = Literal["auto", "float32", "bfloat16"]
_chosen: Precision = "auto"


@contextlib.contextmanager
def logits_only_at(model: PreTrainedModel, mask: torch.Tensor) -> Iterator[None]:
    """Within the context the model's output layer sees only the positions of `mask`, shape (B, T) bool.

    The selection happens in front of the output layer, inside the model's own forward pass, so scaling and capping of
    logits that an architecture does stay in force. The model then returns logits of shape (mask.sum(), vocabulary).
    """
    head = model.get_output_embeddings()

    def select(_: object, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = arguments[0]
        return (hidden[mask], *arguments[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def compute_in(precision: Precision) -> None:
    """Choose the arithmetic of everything that this process computes from now on."""
    global _chosen
    _chosen = precision


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether matrix products on this device are in bfloat16, which is asked for or (auto) a GPU's."""
    return device.type == "cuda" if _chosen == "auto" else _chosen == "bfloat16"


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 compute over float32 masters, or plain float32.

    On a CPU float32 unless asked for otherwise: only processors with bfloat16 instructions gain (avx512_bf16 or AMX:
    twice the speed for a model of 135 million parameters), all others lose.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_in_bfloat16(device))


def token_log_probabilities(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Log-probability of every token that `inputs.loss_mask` asks for, shape (loss tokens,), row by row."""
    logits = logits_of(model, inputs, inputs.loss_mask)
    return -F.cross_entropy(logits.float(), inputs.ids[inputs.loss_mask], reduction="none")


def logits_of(model: PreTrainedModel, inputs: Inputs, tokens: torch.Tensor) -> torch.Tensor:
    """The logits that predict the tokens of a mask of shape (B, T), shape (tokens, vocabulary), row by row.

    The mask is shifted by one: token t is predicted at position t − 1.
    """
    predicted_at = torch.zeros_like(tokens)
    predicted_at[:, :-1] = tokens[:, 1:]
    with autocast(inputs.ids.device), logits_only_at(model, predicted_at):
        logits: torch.Tensor = forward(model, inputs).logits
    return logits


def response_loss(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Mean negative log-likelihood a token, a scalar: −(1/tokens) Σ log Pr(y_t | y_<t, x), SANDE eq. (1) a token."""
    return -token_log_probabilities(model, inputs).mean()


def row_means(values: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Mean of token values over each row, shape (B,), for values of shape (loss tokens,) in the mask's order."""
    rows = loss_mask.nonzero()[:, 0]
    totals = torch.zeros(len(loss_mask), dtype=values.dtype, device=values.device).index_add_(0, rows, values)
    return totals / loss_mask.sum(1).clamp(min=1)
