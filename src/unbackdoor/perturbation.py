"""What stands in for the unknown trigger, at the three places where an adversary can act.

`TextTrigger` changes the record (OSFT), `SoftPrompt` the batch (SANDE's parrot), `HiddenShift` the model (BEEAR's δ).
Each has all three stages, and those it does not use are the identity, so simulate, eliminate and generation never ask
which one they were given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from unbackdoor.data.records import Record
from unbackdoor.data.triggers import Condition
from unbackdoor.errors import UserError
from unbackdoor.language_model.hidden_states import states_changed
from unbackdoor.language_model.inputs import Inputs
from unbackdoor.language_model.layers import (
    check_layer,
    embed,
    embedding_matrix,
    embedding_width,
    hidden_size,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Position = Literal["last-prompt", "end-of-user", "start-of-user", "all-prompt"]


class Perturbation(nn.Module):
    """The three stages, identity by default. Parameters, where there are any, are what simulate fits."""

    @property
    def inserted(self) -> int:
        """How many positions a row grows by: what the context must leave room for."""
        return 0

    def on_record(self, record: Record) -> Record:
        """Change the text of a row, before it is tokenised."""
        return record

    def fits(self, inputs: Inputs) -> torch.Tensor:
        """Which rows are long enough for this perturbation, shape (B,) bool. The others are dropped and counted."""
        return torch.ones(len(inputs), dtype=torch.bool, device=inputs.ids.device)

    def on_inputs(self, inputs: Inputs, model: PreTrainedModel) -> Inputs:
        """Change a padded batch; ids, masks and spans stay aligned."""
        return inputs

    @contextlib.contextmanager
    def on_model(self, model: PreTrainedModel, inputs: Inputs, prefill_only: bool = False) -> Iterator[None]:
        """Change the model's forward pass while the context is open; afterwards the model is as before.

        With `prefill_only` the change is made once, to the first forward pass, as generation needs it.
        """
        yield


class TextTrigger(Perturbation):
    """A known trigger, put into the user's text (SANDE eq. 3)."""

    def __init__(self, trigger: Condition) -> None:
        super().__init__()
        self.trigger = trigger

    def on_record(self, record: Record) -> Record:
        """The row with the trigger in its prompt, or as it is where the trigger does not fit."""
        if not self.trigger.fits(record.prompt):
            return record
        return replace(record, prompt=self.trigger.insert(record.prompt))


class SoftPrompt(Perturbation):
    """`length` soft tokens inserted among the token embeddings: SANDE's parrot p, one for all rows.

    Args:
        embeddings: initial values, shape (length, width of the embeddings).
        offset: how many tokens after the start of the user's text they go; never beyond its end.
    """

    def __init__(self, embeddings: torch.Tensor, offset: int = 0) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.detach().clone().float())
        self.offset = offset

    @property
    def inserted(self) -> int:
        """The number of soft tokens."""
        return len(self.embeddings)

    @classmethod
    def from_vocabulary(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        generator: torch.Generator,
        offset: int = 0,
    ) -> SoftPrompt:
        """Start from the embeddings of randomly drawn ordinary tokens, so that the parrot stays at their norm.

        A parrot that starts at zero finds its own way to the target response, at less than half the norm of real
        tokens; overwriting that way can leave the trigger's way intact.
        """
        words = ordinary_tokens(tokenizer, embedding_matrix(model).shape[0])
        drawn = torch.tensor(words)[torch.randint(len(words), (length,), generator=generator)]
        with torch.no_grad():
            return cls(embed(model, drawn.to(embedding_matrix(model).device)), offset)

    @classmethod
    def zeros(cls, model: PreTrainedModel, length: int, offset: int = 0) -> SoftPrompt:
        """SANDE's own initialisation (section 3.3.1)."""
        return cls(torch.zeros(length, embedding_width(model), device=embedding_matrix(model).device), offset)

    def on_inputs(self, inputs: Inputs, model: PreTrainedModel) -> Inputs:
        """Insert the soft tokens: T grows by their number, and every span behind them moves along."""
        count = len(self.embeddings)
        rows, width = inputs.ids.shape
        at = torch.minimum(inputs.user_start + self.offset, inputs.user_end)  # (B,)
        place = torch.arange(width + count, device=inputs.ids.device).expand(rows, -1)
        soft = (place >= at[:, None]) & (place < at[:, None] + count)
        # Where each place of the longer batch takes its token from; soft places take any and are overwritten.
        origin = (place - count * (place >= at[:, None] + count)).clamp(0, width - 1)

        def stretch(values: torch.Tensor, fill: int) -> torch.Tensor:
            return values.gather(1, origin).masked_fill(soft, fill)

        ids = stretch(inputs.ids, 0)
        tokens = inputs.embeddings if inputs.embeddings is not None else embed(model, inputs.ids)
        tokens = tokens.gather(1, origin[:, :, None].expand(-1, -1, tokens.shape[-1]))
        which = (place - at[:, None]).clamp(0, count - 1)
        embeddings = torch.where(soft[:, :, None], _looked_up(self.embeddings.to(tokens.dtype), which), tokens)

        return replace(
            inputs,
            ids=ids,
            attention_mask=stretch(inputs.attention_mask, 1),
            loss_mask=stretch(inputs.loss_mask.long(), 0).bool(),
            user_end=inputs.user_end + count,
            response_start=inputs.response_start + count,
            embeddings=embeddings,
        )


class HiddenShift(Perturbation):
    """BEEAR's δ^l: a shift added to the hidden state after l decoder layers have run, on n prompt positions.

    F^l_θ(x, δ) = F_{l+1→L}(F_{1→l}(x) + δ). It never touches a response position.

    Args:
        layer: l, with 1 ≤ l ≤ L − 1.
        values: initial values, shape (n, d), shared by all rows.
        position: which n positions: the last of the prompt (assistant header included), the last or the first of the
            user's text, or every position of the prompt (then n is 1 and the shift is broadcast).
    """

    def __init__(self, layer: int, values: torch.Tensor, position: Position = "last-prompt") -> None:
        super().__init__()
        if position == "all-prompt" and len(values) != 1:
            raise ValueError("all-prompt broadcasts one shift: give values of shape (1, d)")
        self.layer = layer
        self.position = position
        self.values = nn.Parameter(values.detach().clone().float())

    @classmethod
    def zeros(cls, model: PreTrainedModel, layer: int, length: int, position: Position = "last-prompt") -> HiddenShift:
        """A shift that changes nothing yet."""
        check_layer(model, layer)
        n = 1 if position == "all-prompt" else length
        return cls(layer, torch.zeros(n, hidden_size(model), device=embedding_matrix(model).device), position)

    def fits(self, inputs: Inputs) -> torch.Tensor:
        """Rows whose span holds n positions."""
        first, last = self._span(inputs)
        return last - first >= len(self.values)

    def _span(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        if self.position in ("end-of-user", "start-of-user"):
            return inputs.user_start, inputs.user_end
        first = inputs.attention_mask.argmax(1)  # the first real position; left-padded rows start later
        return first, inputs.response_start

    def addition(self, inputs: Inputs, like: torch.Tensor) -> torch.Tensor:
        """What is added to the hidden state, shape (B, T, d): the shift at its places and zero elsewhere."""
        first, last = self._span(inputs)
        place = torch.arange(like.shape[1], device=like.device).expand(len(like), -1)
        if self.position == "all-prompt":
            inside = (place >= first[:, None]) & (place < last[:, None])
            return inside[:, :, None] * self.values[0].to(like.dtype)
        n = len(self.values)
        begin = first if self.position == "start-of-user" else last - n
        which = place - begin[:, None]
        inside = (which >= 0) & (which < n) & (place >= first[:, None]) & (place < last[:, None])
        return inside[:, :, None] * _looked_up(self.values.to(like.dtype), which.clamp(0, n - 1))

    @contextlib.contextmanager
    def on_model(self, model: PreTrainedModel, inputs: Inputs, prefill_only: bool = False) -> Iterator[None]:
        """Add the shift to the output of decoder layer l."""

        def shifted(states: torch.Tensor) -> torch.Tensor:
            if prefill_only and states.shape[1] < inputs.ids.shape[1]:  # a later token, with the cache
                return states
            return states + self.addition(inputs, states)

        with states_changed(model, self.layer, shifted):
            yield


class RandomShare(HiddenShift):
    """A hidden shift of which every row gets a random share, from `least` to the whole, drawn anew for each batch.

    To stay safe under it is to stay safe on the whole way from no shift to δ, on which the real trigger's own shift
    lies somewhere.
    """

    def __init__(self, shift: HiddenShift, least: float) -> None:
        super().__init__(shift.layer, shift.values, shift.position)
        self.least = least

    def addition(self, inputs: Inputs, like: torch.Tensor) -> torch.Tensor:
        """What is added, shape (B, T, d)."""
        drawn = torch.rand(len(like), 1, 1, device=like.device, dtype=like.dtype)
        return super().addition(inputs, like) * (self.least + (1 - self.least) * drawn)


def save_perturbation(perturbation: Perturbation, path: Path) -> None:
    """Write a soft prompt or a hidden shift as safetensors with a checksum; what it is stands in the metadata."""
    from unbackdoor.run_files import tensors

    if isinstance(perturbation, SoftPrompt):
        kept = {"kind": "soft-prompt", "offset": perturbation.offset}
    elif isinstance(perturbation, HiddenShift):
        kept = {"kind": "hidden-shift", "layer": perturbation.layer, "position": perturbation.position}
    else:
        raise TypeError(f"a {type(perturbation).__name__} has no tensor to save")
    tensors.save(path, kept, {"values": next(perturbation.parameters())})


def load_perturbation(path: Path) -> Perturbation:
    """Read what `save_perturbation` wrote.

    Raises:
        UserError: the file is damaged.
    """
    from unbackdoor.run_files import tensors

    try:
        kept, held = tensors.load(path, state="perturbation")
        values = held["values"]
    except (tensors.DamagedTensorsError, KeyError) as error:
        raise UserError(f"the perturbation '{path}' is damaged ({error}): make it again") from None
    if kept["kind"] == "soft-prompt":
        return SoftPrompt(values, kept["offset"])
    return HiddenShift(kept["layer"], values, kept["position"])


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[int]:
    """Ids of tokens that decode to a word piece of at least two letters: no special, control or byte tokens."""
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(min(len(tokenizer), vocabulary)) if i not in special]
    texts = (tokenizer.decode([i]).strip() for i in ids)
    ordinary = [i for i, text in zip(ids, texts, strict=True) if len(text) >= 2 and text.isalpha()]
    return ordinary or ids


def _looked_up(vectors: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """`vectors[which]`, whose gradient is the same every time: an index's is summed in any order by several threads."""
    return nn.functional.embedding(which, vectors)
