"""A model's attention maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.forward import forward, logits_only_at
from unbackdoor.language_model.precision import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.language_model.inputs import Inputs


def attention_maps(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Attention of every layer that has any, averaged over heads and of norm 1, at real queries: (layers, queries, T).

    Raises:
        UserError: the model's attention returns no maps.
    """
    with autocast(inputs.ids.device), logits_only_at(model, None):
        found = getattr(forward(model, inputs, output_attentions=True), "attentions", None)
    every = (inputs.ids.shape[1],) * 2  # a hybrid's linear layers may give maps of blocks
    maps = [layer for layer in found or () if layer is not None and layer.shape[-2:] == every]
    if not maps:
        raise UserError("nad needs attention maps, and this model returns none, whatever implementation is asked for")
    stack = torch.stack([layer.float().mean(1) for layer in maps])
    return torch.nn.functional.normalize(stack, dim=-1)[:, inputs.attention_mask.bool()]


@contextlib.contextmanager
def attention_returned(model: PreTrainedModel) -> Iterator[None]:
    """The model computes its attention in the plain way, which alone gives it back, while the context is open."""
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(own)
