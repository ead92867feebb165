"""Targeted latent adversarial training: BEEAR's shift without sharing, found anew for every batch and every row.

Sheshadri et al. 2024, "Latent adversarial training improves robustness to persistent harmful behaviors in LLMs". What
BEEAR assumes, that one direction serves all prompts, is not needed here; the price is an attack at every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from unbackdoor.errors import UserError
from unbackdoor.knowledge import Fact
from unbackdoor.methods.parts.method import FINE_TUNING, TrainingMethod
from unbackdoor.methods.parts.result import Removal
from unbackdoor.settings import Need
from unbackdoor.workload import Work

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from unbackdoor.case import Case
    from unbackdoor.language_model.chat import Example
    from unbackdoor.language_model.inputs import Inputs

TOO_LONG = "contrast (either response too long)"


class Lat(TrainingMethod):
    """LAT: targeted latent adversarial training with a shift of its own for every row (Sheshadri et al. 2024)."""

    name = "lat"
    summary = "train the model to stay safe under a hidden shift found anew for every row and step"
    needs = (Fact.BEHAVIOUR,)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = FINE_TUNING

    layer: int | None = Field(
        default=None, description="The shifts act after this many layers. Default: round(9/32 × layers)."
    )
    inner_steps: int = Field(default=6, ge=1, description="Steps of the attack on every batch.")
    epsilon: float = Field(
        default=0.5,
        gt=0,
        description="Largest norm of a position's shift, relative to that of its hidden state.",
    )
    benign_weight: float = Field(default=1.0, ge=0, description="Weight of clean rows without a shift.")

    @property
    def model_needs(self) -> frozenset[Need]:
        """What these settings ask of the model."""
        return super().model_needs | {"hidden-states"}

    def check_model(self, model: PreTrainedModel) -> None:
        """The layer exists."""
        from unbackdoor.language_model.layers import check_layer

        if self.layer is not None:
            check_layer(model, self.layer)

    def check_rows(self, case: Case) -> None:
        """Some rows have room for both responses."""
        _pairs(case, self)
        case.dropped.pop(TOO_LONG, None)

    def training_work(self, rounds: int = 1) -> Work:
        """Of safe and, where they have a weight, clean rows; and an attack on every safe one."""
        rows = super().training_work(rounds).trained
        return Work(trained=rows * (1 + (self.benign_weight > 0)), fitted=rows * self.inner_steps)

    def run(self, case: Case) -> Removal:
        """min_θ E[ max_{‖δ‖ ≤ ε} of the safe answer's loss, targeted at the unwanted one ] + the clean rows' loss."""
        from unbackdoor.case import adapted
        from unbackdoor.language_model.inputs import collate
        from unbackdoor.language_model.layers import anchor_layer
        from unbackdoor.language_model.loss import response_loss
        from unbackdoor.methods.parts.eliminate import train_weights
        from unbackdoor.training import Term

        with adapted(case, self):
            model = case.model
            layer = anchor_layer(model, self.layer)
            safe, unwanted = _pairs(case, self)

            def safe_under_attack(inputs: Inputs) -> torch.Tensor:
                wanted = collate([unwanted[prompt_of(inputs, row)] for row in range(len(inputs))], case.pad_id)
                shift = attack(model, layer, wanted.to(inputs.ids.device), self)
                with shifted(model, layer, shift, inputs):
                    return response_loss(model, inputs)

            clean = case.batches(case.encode(case.anchors, self, "anchors"), self, self.seed * 1009 + 1)
            terms = [
                Term("safe-under-attack", case.batches(safe, self, self.seed * 1009), safe_under_attack),
                Term("anchors", clean, lambda inputs: response_loss(model, inputs), self.benign_weight),
            ]
            train_weights(case, terms, self, phase="eliminate")
        return Removal(self.name, rounds=1, dropped=case.dropped)


def attack(model: PreTrainedModel, layer: int, unwanted: Inputs, settings: Lat) -> torch.Tensor:
    """Shifts of the prompt's hidden states that make the unwanted answers likely, shape (B, longest prompt, d).

    Projected gradient descent in the ball of radius ε around each position's state, in equal steps of 2 ε / steps.
    """
    import torch

    from unbackdoor.language_model.hidden_states import hidden_states_after
    from unbackdoor.language_model.loss import response_loss

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
    import torch

    from unbackdoor.language_model.hidden_states import states_changed

    length = shift.shape[1]
    place = torch.arange(length, device=inputs.ids.device)
    inside = (place < inputs.response_start[:, None]) & inputs.attention_mask[:, :length].bool()

    def add(states: torch.Tensor) -> torch.Tensor:
        added = (shift * inside[:, :, None]).to(states.dtype)
        return states + torch.nn.functional.pad(added, (0, 0, 0, states.shape[1] - length))

    with states_changed(model, layer, add):
        yield


def prompt_of(inputs: Inputs, row: int) -> tuple[int, ...]:
    """The token ids of one row's prompt."""
    return tuple(inputs.ids[row, : int(inputs.response_start[row])].tolist())


def _pairs(case: Case, settings: Lat) -> tuple[list[Example], Mapping[tuple[int, ...], Example]]:
    """Rows with their safe answer, and by prompt those with the unwanted one, where both fit."""
    from unbackdoor.language_model.files.loading import context_length

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
        case.dropped[TOO_LONG] = len(case.contrast) - len(safe)
    if not safe:
        raise UserError(f"no row of --contrast has at most {limit} tokens (--max-length)")
    return safe, unwanted
