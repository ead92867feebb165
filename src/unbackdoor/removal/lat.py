"""Targeted latent adversarial training: BEEAR's shift without sharing, found anew for every batch and every row.

Sheshadri et al. 2024, "Latent adversarial training improves robustness to persistent harmful behaviors in LLMs". What
BEEAR assumes, that one direction serves all prompts, is not needed here; the price is an attack at every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from unbackdoor.case import Case, adapted
from unbackdoor.data.batches import Batches
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.inputs import Inputs, collate
from unbackdoor.language_model.layers import anchor_layer, decoder_layers, hidden_states_after
from unbackdoor.language_model.loading import context_length
from unbackdoor.language_model.loss import response_loss
from unbackdoor.removal.eliminate import train_weights
from unbackdoor.removal.result import Removal
from unbackdoor.removal.settings import LatSettings as Settings
from unbackdoor.training import Term

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(case: Case, settings: Settings) -> Removal:
    """min_θ E[ max_{‖δ‖ ≤ ε} of the safe answer's loss, targeted at the unwanted one ] + the clean rows' loss."""
    if not case.contrast:
        raise UserError("lat needs examples of the unwanted behaviour: give --contrast FILE")
    with adapted(case, settings):
        model = case.model
        layer = anchor_layer(model, settings.layer)
        safe, unwanted = _pairs(case, settings)

        def safe_under_attack(inputs: Inputs) -> torch.Tensor:
            wanted = collate([unwanted[prompt_of(inputs, row)] for row in range(len(inputs))], case.pad_id)
            shift = attack(model, layer, wanted.to(inputs.ids.device), settings)
            with shifted(model, layer, shift, inputs):
                return response_loss(model, inputs)

        batches = Batches(safe, settings.batch_size, case.pad_id, settings.seed * 1009, settings.micro_batch_size)
        clean = case.batches(case.encode(case.anchors, settings, "anchors"), settings, settings.seed * 1009 + 1)
        terms = [
            Term("safe-under-attack", batches, safe_under_attack),
            Term("anchors", clean, lambda inputs: response_loss(model, inputs), settings.benign_weight),
        ]
        train_weights(case, terms, settings, phase="eliminate")
    return Removal("lat", rounds=1, dropped=case.dropped)


def attack(model: PreTrainedModel, layer: int, unwanted: Inputs, settings: Settings) -> torch.Tensor:
    """Shifts of the prompt's hidden states that make the unwanted answers likely, shape (B, longest prompt, d).

    Projected gradient descent in the ball of radius ε around each position's state, in equal steps of 2 ε / steps.
    """
    with torch.no_grad():
        states = hidden_states_after(model, layer, unwanted)
    longest = int(unwanted.response_start.max())
    radius = settings.epsilon * states[:, :longest].float().norm(dim=-1, keepdim=True)
    shift = torch.zeros_like(states[:, :longest], dtype=torch.float32)
    for _ in range(settings.inner_steps):
        shift.requires_grad_(True)
        with shifted(model, layer, shift, unwanted):
            (gradient,) = torch.autograd.grad(response_loss(model, unwanted), shift)
        direction = gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        shift = shift.detach() - 2 * radius / settings.inner_steps * direction
        shift = shift * (radius / shift.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
    return shift


@contextlib.contextmanager
def shifted(model: PreTrainedModel, layer: int, shift: torch.Tensor, inputs: Inputs) -> Iterator[None]:
    """Add a row's own shift to its prompt positions after `layer` decoder layers while the context is open."""
    length = shift.shape[1]
    place = torch.arange(length, device=inputs.ids.device)
    inside = (place < inputs.response_start[:, None]) & inputs.attention_mask[:, :length].bool()

    def add(_: object, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> object:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        added = hidden + torch.nn.functional.pad(
            (shift * inside[:, :, None]).to(hidden.dtype), (0, 0, 0, hidden.shape[1] - length)
        )
        return added if isinstance(output, torch.Tensor) else (added, *output[1:])

    handle = decoder_layers(model)[layer - 1].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def prompt_of(inputs: Inputs, row: int) -> tuple[int, ...]:
    """The token ids of one row's prompt."""
    return tuple(inputs.ids[row, : int(inputs.response_start[row])].tolist())


def _pairs(case: Case, settings: Settings) -> tuple[list[Example], Mapping[tuple[int, ...], Example]]:
    """Rows with their safe answer, and by prompt those with the unwanted one, where both fit."""
    limit = min(settings.max_length, context_length(case.model))
    safe: list[Example] = []
    unwanted: dict[tuple[int, ...], Example] = {}
    for record in case.contrast:
        pair = [
            case.chat.of_record(record).encode(record.prompt, text) for text in (record.response, record.unwanted or "")
        ]
        if all(len(example.ids) <= limit for example in pair):
            safe.append(pair[0])
            unwanted[pair[0].ids[: pair[0].response_start]] = pair[1]
    if len(safe) < len(case.contrast):
        case.dropped["contrast (either response too long)"] = len(case.contrast) - len(safe)
    if not safe:
        raise UserError(f"no row of --contrast has at most {limit} tokens (--max-length)")
    return safe, unwanted
