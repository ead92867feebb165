"""What a method will ask of a model, tried once before anything is written.

Most models can do all of it. Where one cannot, a run would end hours later in an error of the library's: here the
method's own path is walked on two short rows, and what fails is said with what to do instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from unbackdoor.errors import UserError
from unbackdoor.language_model.attention import attention_maps, attention_returned
from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.forward import forward, in_training, logits_only_at
from unbackdoor.language_model.hidden_states import layer_states, states_seen
from unbackdoor.language_model.inputs import Inputs, collate
from unbackdoor.language_model.layers import decoder_layers, embed, embedding_matrix, hidden_size
from unbackdoor.language_model.lora import attach
from unbackdoor.language_model.loss import response_loss
from unbackdoor.perturbation import HiddenShift, SoftPrompt
from unbackdoor.settings import Need

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOFT_TOKENS = 2
"""Soft tokens that are tried."""


def check_needs(model: PreTrainedModel, examples: Sequence[Example], pad: int, needs: Collection[Need]) -> list[Need]:
    """Try everything that a method needs. Weights, gradients and random state are afterwards as before.

    Args:
        model: as it was loaded.
        examples: rows with a response; the two shortest are used.
        pad: the id that fills masked places.
        needs: what to try.

    Returns:
        What was tried, in the order of `TRIALS`.

    Raises:
        UserError: what the model cannot do, and what to do instead.
    """
    rows = sorted(examples, key=lambda e: (len(e.ids), e.ids))[:2]
    inputs = collate(rows, pad).to(next(model.parameters()).device)
    tried = [need for need in TRIALS if need in needs]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    for need in tried:
        attempt, cause = TRIALS[need]
        with torch.random.fork_rng(devices), torch.enable_grad(), explained(model, cause):
            attempt(model, inputs)
    return tried


def soft_tokens(model: PreTrainedModel) -> SoftPrompt:
    """Random soft tokens with the norm of the model's own embeddings: no token has them."""
    device = embedding_matrix(model).device
    ids = torch.arange(min(64, len(embedding_matrix(model))), device=device)
    with torch.no_grad():
        own = embed(model, ids).float()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(SOFT_TOKENS, own.shape[-1], generator=generator).to(device)
    norms = own.norm(dim=-1).mean() / drawn.norm(dim=-1, keepdim=True)
    return SoftPrompt(drawn * norms)


def _trains(model: PreTrainedModel, inputs: Inputs) -> None:
    """A loss in training mode, and its gradient through all layers down to the embeddings."""
    with in_training(model):
        _check_gradient(response_loss(model, inputs), embedding_matrix(model))


def _adapters(model: PreTrainedModel, inputs: Inputs) -> None:
    """Adapters can be put on and taken off, and the loss has a gradient in them."""
    wrapped = attach(model, 2)
    try:
        adapters = [p for name, p in wrapped.named_parameters() if "lora_B" in name]
        found = torch.autograd.grad(response_loss(wrapped, inputs), adapters, allow_unused=True)
        if not any(g is not None and bool(g.isfinite().all()) and bool(g.any()) for g in found):
            raise ValueError("the loss has no gradient in the adapters")
    finally:
        wrapped.unload()
        model.requires_grad_(True)


def _soft_embeddings(model: PreTrainedModel, inputs: Inputs) -> None:
    """The loss under soft tokens has a gradient in them; generation from them is tried by the self-test itself."""
    soft = soft_tokens(model)
    _check_gradient(response_loss(model, soft.on_inputs(inputs, model)), soft.embeddings)


def _hidden_states(model: PreTrainedModel, inputs: Inputs) -> None:
    """Every decoder layer gives one state a position, and a shift of one in the middle moves the loss."""
    layers = decoder_layers(model)
    if len(layers) < 2:
        raise ValueError(f"it has {len(layers)} decoder layer, and a shift needs another one behind it")
    wanted = (*inputs.ids.shape, hidden_size(model))
    shapes = output_shapes(model, inputs)
    for number in range(1, len(layers) + 1):
        if shapes.get(number) != wanted:
            raise ValueError(f"decoder layer {number} gives {shapes.get(number, 'nothing')} in place of {wanted}")
    shift = HiddenShift.zeros(model, len(layers) // 2, 1)
    with shift.on_model(model, inputs):
        _check_gradient(response_loss(model, inputs), shift.values)


def output_shapes(model: PreTrainedModel, inputs: Inputs) -> dict[int, tuple[int, ...]]:
    """The shape of what each decoder layer gives, by its number from 1."""
    found: dict[int, tuple[int, ...]] = {}

    def look(number: int, hidden: torch.Tensor) -> None:
        found[number] = tuple(hidden.shape)

    with states_seen(model, look), torch.no_grad(), logits_only_at(model, None):
        forward(model, inputs)
    return found


def _layer_states(model: PreTrainedModel, inputs: Inputs) -> None:
    """The states of consecutive layers can be compared, and have a gradient in the embeddings."""
    stack = torch.stack([state.float() for state in layer_states(model, inputs)])
    _check_gradient(stack.mean(), embedding_matrix(model))


def _attention_maps(model: PreTrainedModel, inputs: Inputs) -> None:
    """At least some layers give their attention."""
    with attention_returned(model), torch.no_grad():
        attention_maps(model, inputs)


def _check_gradient(loss: torch.Tensor, of: torch.Tensor) -> None:
    (gradient,) = torch.autograd.grad(loss, of)
    if not loss.isfinite() or not gradient.isfinite().all():
        raise ValueError("the loss or its gradient is not a finite number")
    if not gradient.any():
        raise ValueError("the loss does not depend on it")


@contextlib.contextmanager
def explained(model: PreTrainedModel, cause: str) -> Iterator[None]:
    """Whatever the library raises, in one line that says what the model cannot do."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if reason.startswith("self-test: "):
            raise
        raise UserError(f"self-test: a {type(model).__name__} {cause} ({reason[:200]})") from error


TRIALS: dict[Need, tuple[Callable[[PreTrainedModel, Inputs], None], str]] = {
    "training": (_trains, "cannot be trained here"),
    "adapters": (_adapters, "takes no LoRA adapters: leave --lora out"),
    "soft-embeddings": (_soft_embeddings, "cannot be fitted from embeddings: use osft, beear or a method without them"),
    "hidden-states": (_hidden_states, "has no hidden states that can be shifted: use sande, or osft"),
    "layer-states": (_layer_states, "has no states of its layers that can be compared: use another method than crow"),
    "attention-maps": (_attention_maps, "gives no attention maps: use another method than nad"),
}
"""Each need: how it is tried, and what is said where it fails."""
