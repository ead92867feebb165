"""One forward pass: what enters it, what of it is computed, in which mode, and the token log-probabilities it gives.

Embeddings that no token has, where a perturbation has put some, enter where the model looks its own embeddings up, not
as `inputs_embeds`: some models refuse those in generation (Gemma 3's multimodal class, Falcon-H1, Bamba), and some ask
an embedding for its id (Gemma 4, whose layers have embeddings of their own). So the model is always called with ids,
and all that it derives from them (positions, masks, caches, a layer's own embeddings) is as it is for text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from unbackdoor.language_model.precision import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.language_model.inputs import Inputs


def forward(model: PreTrainedModel, inputs: Inputs, **keywords: Any) -> Any:
    """The model's output for a batch, without a cache; `keywords` go to the model."""
    with embeddings_given(model, inputs):
        return model(input_ids=inputs.ids, attention_mask=inputs.attention_mask, use_cache=False, **keywords)


@contextlib.contextmanager
def embeddings_given(model: PreTrainedModel, inputs: Inputs) -> Iterator[None]:
    """While the context is open, the batch's first T positions have the embeddings of `inputs`, where it has any.

    In generation the prompt's forward pass begins with all T positions, and those of later tokens with a cache have
    one: they keep their own.
    """
    given = inputs.embeddings
    if given is None:
        yield
        return
    length = given.shape[1]

    def replace(_: object, __: object, looked_up: torch.Tensor) -> torch.Tensor:
        if looked_up.shape[1] < length:
            return looked_up
        return torch.cat([given.to(looked_up.dtype), looked_up[:, length:]], 1)

    with model.get_input_embeddings().register_forward_hook(replace):
        yield


# Token log-probabilities ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def logits_only_at(model: PreTrainedModel, mask: torch.Tensor | None) -> Iterator[None]:
    """Within the context the model's output layer sees only the positions of `mask`, shape (B, T) bool; None: of none.

    The selection happens in front of the output layer, inside the model's own forward pass, so scaling and capping of
    logits that an architecture does stay in force. The model then returns logits of shape (mask.sum(), vocabulary).
    """

    def select(_: object, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = arguments[0]
        return (hidden[mask] if mask is not None else hidden.flatten(0, 1)[:0], *arguments[1:])

    with model.get_output_embeddings().register_forward_pre_hook(select):
        yield


def logits_at(model: PreTrainedModel, inputs: Inputs, positions: torch.Tensor) -> torch.Tensor:
    """The logits behind the positions of a mask of shape (B, T), shape (positions, vocabulary), row by row."""
    with autocast(inputs.ids.device), logits_only_at(model, positions):
        logits: torch.Tensor = forward(model, inputs).logits
    return logits


def logits_of(model: PreTrainedModel, inputs: Inputs, tokens: torch.Tensor) -> torch.Tensor:
    """The logits that predict the tokens of a mask of shape (B, T), shape (tokens, vocabulary), row by row.

    The mask is shifted by one: token t is predicted at position t − 1.
    """
    predicted_at = torch.zeros_like(tokens)
    predicted_at[:, :-1] = tokens[:, 1:]
    return logits_at(model, inputs, predicted_at)


def token_log_probabilities(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Log-probability of every token that `inputs.loss_mask` asks for, shape (loss tokens,), row by row."""
    logits = logits_of(model, inputs, inputs.loss_mask)
    return -F.cross_entropy(logits.float(), inputs.ids[inputs.loss_mask], reduction="none")


# Modes ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_training(model: torch.nn.Module, training: bool = True) -> Iterator[None]:
    """Every part of the model is in training mode while the context is open, and in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before


def evaluating(model: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
    """Every part of the model is in evaluation mode while the context is open, and in its own mode afterwards."""
    return in_training(model, False)


@contextlib.contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout and without gradients: what is computed is measured, and never trained through."""
    with evaluating(model), torch.inference_mode():
        yield
