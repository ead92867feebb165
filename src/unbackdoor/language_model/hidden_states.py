"""Hidden states between the decoder layers: seen, changed, and computed without what stands behind them.

A decoder layer gives its states as a tensor or, in some architectures, first in a tuple: only this file knows that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.forward import forward, inference, logits_only_at
from unbackdoor.language_model.inputs import Inputs, padded_batches
from unbackdoor.language_model.layers import decoder_layers, hidden_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Output = torch.Tensor | tuple[torch.Tensor, ...]


class _ReachedError(Exception):
    """The forward pass has come as far as it is needed."""


def hidden_states_after(model: PreTrainedModel, layer: int, inputs: Inputs) -> torch.Tensor:
    """The hidden states after `layer` decoder layers have run, shape (B, T, hidden); later layers do not run.

    The forward pass ends by an exception in a hook of the layer. A model with fewer layers would end there as well, but
    its config, its caches, its masks and what it computes for all layers at once (Gemma 3n, Llama 4) count the layers
    that it was made with, and an interrupt would leave it cut.

    Raises:
        UserError: the model never runs that layer on text.
    """
    seen: list[torch.Tensor] = []

    def look(_: int, hidden: torch.Tensor) -> None:
        seen.append(hidden)
        raise _ReachedError

    with states_seen(model, look, [layer]), contextlib.suppress(_ReachedError):
        forward(model, inputs)
    if not seen:
        raise UserError(f"decoder layer {layer} of a {type(model).__name__} does not run on text: choose another")
    return seen[0]


def layer_states(model: PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
    """What enters the first layer and what each layer gives, as the model reports them, of shape (B, T, hidden) each.

    The last one may have been projected to the embeddings' width (OPT-350m): then it is left out.

    Raises:
        UserError: most of them are not of this shape.
    """
    with logits_only_at(model, None):
        states = forward(model, inputs, output_hidden_states=True).hidden_states or ()
    shape = (*inputs.ids.shape, hidden_size(model))
    kept = [state for state in states if state.shape == shape]
    if len(kept) < len(decoder_layers(model)):
        shapes = sorted({tuple(state.shape) for state in states})
        raise UserError(f"a {type(model).__name__} gives states of the shapes {shapes} in place of {shape}")
    return kept


def prompt_states(
    model: PreTrainedModel,
    prompts: Sequence[Example],
    pad: int,
    layer: int,
    of_row: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    shortest_first: bool = True,
) -> torch.Tensor:
    """What `of_row` makes of each prompt's hidden states after `layer` layers, shape (prompts, hidden), on the CPU.

    Args:
        model: the model, put into evaluation mode meanwhile.
        prompts: encoded.
        pad: the id that fills masked places.
        layer: after how many layers.
        of_row: `mean_of_row` or `last_of_row`.
        shortest_first: whether prompts of similar length pass together.
    """
    states = torch.empty(len(prompts), hidden_size(model))
    with inference(model):
        for rows, inputs in padded_batches(model, prompts, pad, PROMPTS_AT_ONCE, shortest_first):
            found = hidden_states_after(model, layer, inputs).float()
            states[rows] = of_row(found, inputs.attention_mask).cpu()
    return states


PROMPTS_AT_ONCE = 50
"""In a forward pass over prompts alone."""


def mean_of_row(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mean over a row's real positions, shape (B, hidden)."""
    mask = attention_mask[..., None]
    return (states * mask).sum(1) / mask.sum(1)


def last_of_row(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """That of the last real position of rows padded on the right, shape (B, hidden)."""
    return states[torch.arange(len(states), device=states.device), attention_mask.sum(1) - 1]


@contextlib.contextmanager
def states_seen(
    model: PreTrainedModel, look: Callable[[int, torch.Tensor], None], layers: Sequence[int] = ()
) -> Iterator[None]:
    """`look(l, states)` is called with what decoder layer l (from 1) gives, while the context is open.

    Args:
        model: the model.
        look: may raise, which ends the forward pass.
        layers: those that are looked at; all where there are none.
    """

    def hook(number: int) -> Callable[[object, object, Output], None]:
        return lambda _, __, output: look(number, _states_in(output))

    stack = decoder_layers(model)
    with contextlib.ExitStack() as hooks:
        for number in layers or range(1, len(stack) + 1):
            hooks.enter_context(stack[number - 1].register_forward_hook(hook(number)))
        yield


@contextlib.contextmanager
def states_changed(
    model: PreTrainedModel, layer: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """After `layer` decoder layers the hidden states are `change(states)`, while the context is open."""

    def hook(_: object, __: object, output: Output) -> Output:
        changed = change(_states_in(output))
        return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

    with decoder_layers(model)[layer - 1].register_forward_hook(hook):
        yield


def _states_in(output: Output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]
