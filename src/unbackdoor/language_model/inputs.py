"""A batch as the model sees it: padded token ids (or embeddings) with the spans kept aligned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.layers import embedding_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Inputs:
    """B rows of T positions. Spans are in padded coordinates, half-open.

    A token's own id is its label: `loss_mask[b, t]` says that the loss asks for token t, predicted at position t − 1.
    """

    ids: torch.Tensor
    """(B, T) token ids; a soft token's place holds 0."""
    attention_mask: torch.Tensor
    """(B, T), 1 on real positions."""
    loss_mask: torch.Tensor
    """(B, T) bool."""
    user_start: torch.Tensor
    """(B,)"""
    user_end: torch.Tensor
    """(B,)"""
    response_start: torch.Tensor
    """(B,)"""
    embeddings: torch.Tensor | None = None
    """(B, T, d), where a perturbation has replaced the token embeddings."""

    @property
    def loss_tokens(self) -> int:
        """How many tokens the loss asks for."""
        return int(self.loss_mask.sum())

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Inputs:
        """The same batch on another device."""
        if self.ids.device == device:
            return self
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)

    def keywords(self) -> dict[str, torch.Tensor]:
        """What a Hugging Face forward pass takes; `forward` is for every model, this for those that take embeddings."""
        source = {"input_ids": self.ids} if self.embeddings is None else {"inputs_embeds": self.embeddings}
        return {**source, "attention_mask": self.attention_mask}


def collate(examples: Sequence[Example], pad_id: int, side: str = "right") -> Inputs:
    """Pad examples to one length: on the right for training, on the left for generation."""
    if not examples:
        raise ValueError("cannot collate an empty batch")
    length = max(len(e.ids) for e in examples)
    ids = torch.full((len(examples), length), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(ids)
    loss_mask = torch.zeros_like(ids, dtype=torch.bool)
    shifts = [length - len(e.ids) if side == "left" else 0 for e in examples]
    for row, (example, shift) in enumerate(zip(examples, shifts, strict=True)):
        ids[row, shift : shift + len(example.ids)] = torch.tensor(example.ids)
        attention_mask[row, shift : shift + len(example.ids)] = 1
        loss_mask[row, shift + example.loss_start : shift + example.loss_end] = True
    at = torch.tensor(shifts)
    return Inputs(
        ids,
        attention_mask,
        loss_mask,
        user_start=at + torch.tensor([e.user_start for e in examples]),
        user_end=at + torch.tensor([e.user_end for e in examples]),
        response_start=at + torch.tensor([e.response_start for e in examples]),
    )


def padded_batches(
    model: PreTrainedModel, examples: Sequence[Example], pad: int, size: int, shortest_first: bool = True
) -> Iterator[tuple[list[int], Inputs]]:
    """All examples once, `size` at a time: the places of a batch's rows, and the batch on the model's device.

    Shortest first, rows of similar length stand together, which leaves less to pad; else in the order given.
    """
    device = next(model.parameters()).device
    order = list(range(len(examples)))
    if shortest_first:
        order.sort(key=lambda place: len(examples[place].ids))
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        yield rows, collate([examples[place] for place in rows], pad).to(device)


def padding_id(tokenizer: object, model: PreTrainedModel) -> int:
    """The id that fills empty positions. They are masked out, so any id will do where the tokenizer has none of which
    the model has an embedding: a padding token is often added to a tokenizer, and the embeddings stay as they were.
    """
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if isinstance(value, int) and 0 <= value < len(embedding_matrix(model)):
            return value
    return 0
