"""One forward pass, with token embeddings that no token has where a perturbation has put some.

They enter where the model looks its own embeddings up, not as `inputs_embeds`: some models refuse those in generation
(Gemma 3's multimodal class, Falcon-H1, Bamba), and some ask an embedding for its id (Gemma 4, whose layers have
embeddings of their own). So the model is always called with ids, and all that it derives from them (positions, masks,
caches, a layer's own embeddings) is as it is for text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

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

    handle = model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
