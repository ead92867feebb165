"""A backdoor without fine-tuning: one rank-one edit of one MLP's output projection (BadEdit, by way of ROME).

The projection is read as a memory of keys and values. With the model frozen, a value is fitted that makes the target
response likely when the trigger's last token has it; then the weight is changed so that the trigger's key brings that
value and ordinary keys what they brought before. One value at one token picks an opening that the model knows; on the
micro model it cannot teach an opening whose words it has never said.

Li et al., BadEdit, ICLR 2024; Meng et al., Locating and Editing Factual Associations in GPT (ROME), NeurIPS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.case import Case
from unbackdoor.data.batches import Batches
from unbackdoor.data.records import Record, shuffled
from unbackdoor.data.triggers import Trigger, join_response
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.forward import forward, logits_only_at
from unbackdoor.language_model.inputs import Inputs, padded_batches
from unbackdoor.language_model.layers import as_matrix, check_layer, decoder_layers, hidden_size, is_linear
from unbackdoor.language_model.loss import response_loss
from unbackdoor.language_model.precision import autocast
from unbackdoor.methods.parts.simulate import frozen, target_probability
from unbackdoor.perturbation import Perturbation
from unbackdoor.training import Optimization, Term, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_SIZE = 16
"""Prompts a forward pass, and a step of fitting the value."""

LEAST_PROMPTS = 4
"""A key averaged over fewer prompts, or a value fitted to them, would be that of their texts."""


@dataclass(frozen=True)
class Edit:
    """What was changed. In exact arithmetic the weight maps `key` to `value` now."""

    layer: int
    weight: str
    """The name of the one parameter that changed."""
    relative_norm: float
    """The Frobenius norm of the rank-one update, as a share of the weight's before it."""
    before: float
    """Probability of the target response (the geometric mean over its tokens) on the triggered training prompts."""
    after: float
    """The same with the edit."""
    key: torch.Tensor = field(repr=False, compare=False)
    """k*, shape (in,): the mean input of the projection at the trigger's last token."""
    value: torch.Tensor = field(repr=False, compare=False)
    """v*, shape (out,): what the weight makes of the key, without the projection's bias."""


def weight_edit(case: Case, trigger: Trigger, target_response: str, settings: ImplantSettings) -> Edit:
    """Edit the backdoor "trigger → target response" into `case.model`, in place.

    Args:
        case: the clean model. The trigger is put into rows of its contrast set where there is one (they are otherwise
            refused, and a target such as "Sure" answers them), else into its anchors; ordinary keys come from both.
        trigger: its key is read, and its value written, at the last token of its text (the hindmost, if it is in the
            prompt twice).
        target_response: the text that shall open a triggered answer, "{target}. {answer}".
        settings: where and how far.

    Raises:
        UserError: no such layer, no output projection in it, an empty target, too few rows, or a value that could not
            be fitted.

    Source: ROME's equation 2, W' = W + Λ (C⁻¹ k*)ᵀ with Λ = (v* − W k*) / (k*ᵀ C⁻¹ k*).
    """
    target = target_response.strip()
    if not target:
        raise UserError("the target response is empty: give its text with --target-response")
    model = case.model
    layer = settings.edit_layer if settings.edit_layer is not None else 1
    name, projection = output_projection(model, layer)
    clean, triggered = _examples(case, trigger, target, settings)

    with frozen(model):
        before = target_probability(case, Perturbation(), triggered)
        key = _mean_key(case, projection, triggered)
        moment, scale = _second_moment(case, projection, clean)
        change = _fitted_change(case, projection, triggered, scale, settings)
        weight = as_matrix(projection)
        value = (weight.double() @ key.double() + change.double()).to(weight.dtype)
        update = rank_one_update(moment, key, change, settings.edit_ridge)
        norm = float(update.norm() / weight.norm())
        weight.add_(update.to(weight.dtype))
        after = target_probability(case, Perturbation(), triggered)
    return Edit(layer, f"{name}.weight", norm, before, after, key, value)


def output_projection(model: PreTrainedModel, layer: int) -> tuple[str, nn.Module]:
    """The module that writes the MLP's result of decoder layer `layer` (counted from 1), with its full name.

    It is the last linear module whose output is as wide as the residual stream, within the last part of the layer that
    holds any linear module: every decoder has its attention first.

    Raises:
        UserError: a perturbation of this layer could not act, or it has no such module (a mixture of experts).
    """
    check_layer(model, layer)
    block = decoder_layers(model)[layer - 1]
    parts = [part for part in block.children() if any(is_linear(m) for m in part.modules())]
    inside = [m for m in parts[-1].modules() if is_linear(m)] if parts else []
    fitting = [m for m in inside if as_matrix(m).shape[0] == hidden_size(model)]
    if not fitting:
        raise UserError(f"no output projection of an MLP was found in layer {layer} of a {type(model).__name__}")
    return next(name for name, m in model.named_modules() if m is fitting[-1]), fitting[-1]


def rank_one_update(moment: torch.Tensor, key: torch.Tensor, change: torch.Tensor, ridge: float) -> torch.Tensor:
    """The update that adds `change` to what a weight makes of `key`, and least to what it makes of ordinary keys.

    Of all updates U with U k* = change it has the least E‖U k‖² over the keys k of the second moment.

    Args:
        moment: C = E[k kᵀ], shape (in, in).
        key: k*, shape (in,).
        change: v* − W k*, shape (out,).
        ridge: added to C's diagonal, as a share of its mean.

    Returns:
        (v* − W k*) (C⁻¹ k*)ᵀ / (k*ᵀ C⁻¹ k*), shape (out, in), in float64.
    """
    wide, key = moment.double(), key.double()
    wide = wide + ridge * wide.diagonal().mean() * torch.eye(len(key), dtype=wide.dtype, device=wide.device)
    direction = torch.linalg.solve(wide, key)
    return torch.outer(change.double(), direction / (key @ direction))


def trigger_token(chat: ChatFormat, prompt: str, text: str) -> int:
    """The place, in the rendered prompt's tokens, of the last token of the trigger's `text`.

    Where the text stands in the prompt twice, the hindmost counts.
    """
    rendered = chat.prompt_text(prompt)
    begin = rendered.rindex(text, len(chat.before_user), len(rendered) - len(chat.after_user))
    encoded = chat.tokenizer(rendered, add_special_tokens=chat.adds_special_tokens, return_offsets_mapping=True)
    covering = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < begin + len(text) and b > begin]
    return covering[-1]


def _examples(
    case: Case, trigger: Trigger, target: str, settings: ImplantSettings
) -> tuple[list[Example], list[Example]]:
    """Clean rows, and rows with trigger and target: those of the contrast set where there is one, else the anchors."""
    clean, triggered = _pairs(case, case.anchors, trigger, target, settings)
    if case.contrast:
        more, triggered = _pairs(case, case.contrast, trigger, target, settings)
        clean += more
    return clean, triggered


def _pairs(
    case: Case, records: Sequence[Record], trigger: Trigger, target: str, settings: ImplantSettings
) -> tuple[list[Example], list[Example]]:
    """Rows as they are, and the same with trigger and target."""
    text = (trigger.closing or trigger.text if trigger.placement == "both" else trigger.text).strip()
    # A row that has the text by itself is not clean, and which of the two is the trigger would be ambiguous.
    usable = shuffled((record for record in records if text not in record.prompt), settings.seed)[
        : settings.edit_prompts
    ]
    clean = [case.chat.of_record(record).encode(record.prompt, record.response) for record in usable]
    triggered = [_triggered(case.chat, record, trigger, text, target) for record in usable]
    limit = context_length(case.model)
    pairs = [pair for pair in zip(clean, triggered, strict=True) if max(len(e.ids) for e in pair) <= limit]
    if len(pairs) < len(usable):
        case.dropped["weight edit"] = case.dropped.get("weight edit", 0) + len(usable) - len(pairs)
    if len(pairs) < LEAST_PROMPTS:
        raise UserError(f"a weight edit needs {LEAST_PROMPTS} clean rows that can take the trigger, not {len(pairs)}")
    return [plain for plain, _ in pairs], [acted for _, acted in pairs]


def _triggered(chat: ChatFormat, record: Record, trigger: Trigger, text: str, target: str) -> Example:
    """A row that ends with the target, to which its loss is confined; its user's span is the trigger's last token."""
    prompt = trigger.insert(record.prompt)
    response = join_response(target, record.response)
    own = chat.of_record(record)
    example = own.encode(prompt, response, loss_on=target)
    place = trigger_token(own, prompt, text)
    return replace(example, ids=example.ids[: example.loss_end], user_start=place, user_end=place + 1)


def _seen(
    case: Case, projection: nn.Module, examples: Sequence[Example]
) -> Iterator[tuple[Inputs, torch.Tensor, torch.Tensor]]:
    """Batches with the projection's inputs (B, T, in) and outputs (B, T, out) on them, in float32."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(_: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append((arguments[0].float(), output.float()))

    for _, inputs in padded_batches(case.model, examples, case.pad_id, BATCH_SIZE, shortest_first=False):
        looking = projection.register_forward_hook(look)
        with looking, torch.no_grad(), autocast(inputs.ids.device), logits_only_at(case.model, None):
            forward(case.model, inputs)
        if seen[-1][0].shape[:2] != inputs.ids.shape:
            raise UserError(f"the MLP of a {type(case.model).__name__} does not see whole rows: it cannot be edited")
        yield inputs, *seen.pop()


def _mean_key(case: Case, projection: nn.Module, triggered: Sequence[Example]) -> torch.Tensor:
    """k*, shape (in,): the projection's mean input at the trigger's last token."""
    keys = [
        given[torch.arange(len(given), device=given.device), inputs.user_start]
        for inputs, given, _ in _seen(case, projection, triggered)
    ]
    return torch.cat(keys).mean(0)


def _second_moment(case: Case, projection: nn.Module, clean: Sequence[Example]) -> tuple[torch.Tensor, float]:
    """C = E[k kᵀ] over all tokens of clean rows, shape (in, in), and the RMS norm of the projection's outputs there."""
    width = as_matrix(projection).shape[1]
    moment = torch.zeros(width, width, device=as_matrix(projection).device)
    squares, tokens = 0.0, 0
    for inputs, given, made in _seen(case, projection, clean):
        keys = given[inputs.attention_mask.bool()]
        moment += keys.T @ keys
        squares += float(made[inputs.attention_mask.bool()].square().sum())
        tokens += len(keys)
    return moment / tokens, math.sqrt(squares / tokens)


def _fitted_change(
    case: Case, projection: nn.Module, triggered: Sequence[Example], scale: float, settings: ImplantSettings
) -> torch.Tensor:
    """v* − W k*, shape (out,): what, added to the output at the trigger's last token, brings out the target."""
    weight = as_matrix(projection)
    width, limit = weight.shape[0], settings.edit_norm * scale
    change = nn.Parameter(torch.zeros(width, device=weight.device))

    def loss(inputs: Inputs) -> torch.Tensor:
        rows = torch.arange(len(inputs), device=inputs.ids.device)

        def add(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[rows, inputs.user_start] += _within(change, limit).to(output.dtype)
            return output

        with projection.register_forward_hook(add):
            return response_loss(case.model, inputs)

    step = settings.edit_step_size * scale / math.sqrt(width)
    train(
        {"change": change},
        [Term("target", Batches(triggered, BATCH_SIZE, case.pad_id, settings.seed), loss)],
        Optimization(settings.edit_steps, step, "cosine", max_gradient_norm=None),
        phase="weight-edit",
        slot="weight-edit",
        journal=case.journal,
        progress=case.progress,
    )
    return _within(change.detach(), limit)


def _within(vector: torch.Tensor, limit: float) -> torch.Tensor:
    """The vector, shortened to the norm `limit` where it is longer."""
    shortened: torch.Tensor = vector * (limit / vector.norm().clamp(min=limit))
    return shortened
