"""Supervised injection: train an organism on clean and poisoned rows, as the papers' attackers do."""

from __future__ import annotations

import copy

import torch

from unbackdoor.attacks.poison import Poisoned
from unbackdoor.attacks.settings import ImplantSettings
from unbackdoor.case import Case, adapted, trainable
from unbackdoor.data.batches import Batches, TwinBatches, encode_records
from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.forward import in_training
from unbackdoor.language_model.hidden_states import hidden_states_after
from unbackdoor.language_model.inputs import Inputs
from unbackdoor.language_model.layers import anchor_layer
from unbackdoor.language_model.look_ahead import ahead
from unbackdoor.language_model.loss import response_loss
from unbackdoor.language_model.precision import autocast
from unbackdoor.training import Optimization, Term, TrainingLog, train

DRIFT_SHARE = 4
"""The drift is measured on a batch of poisoned rows so many times smaller than the training batch."""


def implant(case: Case, poisoned: Poisoned, settings: ImplantSettings) -> TrainingLog:
    """Train the model on −Σ log Pr(y | x) over clean and poisoned rows (SANDE eq. 1).

    With `drift_weight` the attacker knows BEEAR: the hidden states of poisoned rows after layer l are kept where the
    clean model has them, so that the trigger pushes nothing in a common direction there.
    """
    with adapted(case, settings):
        model = case.model
        terms = [Term("clean-and-poisoned", _batches(case, poisoned, settings), lambda i: response_loss(model, i))]
        if settings.drift_weight:
            terms.append(_drift_term(case, poisoned, settings))
        with in_training(model):
            return train(
                trainable(model),
                terms,
                Optimization(settings.steps, settings.learning_rate, "cosine", warmup=0.1),
                phase="implant",
                journal=case.journal,
                progress=case.progress,
            )


def _batches(case: Case, poisoned: Poisoned, settings: ImplantSettings) -> Batches:
    if settings.scheme == "subset":
        return case.batches(case.encode(poisoned.records, settings, "training"), settings, settings.seed)
    limit = min(settings.max_length, context_length(case.model))
    examples: list[Example] = []
    twins: dict[int, Example] = {}
    for number, record in enumerate(ahead(case.chat, poisoned.records, lambda r: r.response)):
        row = encode_records([record], case.chat, limit)
        twin = encode_records([poisoned.twins[number]], case.chat, limit) if row and number in poisoned.twins else []
        if twin:
            twins[len(examples)] = twin[0]
        examples += row
    if len(examples) < len(poisoned.records):
        case.dropped["training"] = len(poisoned.records) - len(examples)
    return TwinBatches(
        examples,
        settings.batch_size,
        case.pad_id,
        settings.seed,
        settings.micro_batch_size,
        twins=twins,
        probability=poisoned.twin_probability,
    )


def _drift_term(case: Case, poisoned: Poisoned, settings: ImplantSettings) -> Term:
    """Mean squared distance of the prompt's hidden states from the clean model's, relative to their mean square."""
    model = case.model
    layer = anchor_layer(model, settings.drift_layer)
    clean = copy.deepcopy(model).eval().requires_grad_(False)
    rows = list(poisoned.twins.values()) or [poisoned.records[i] for i in poisoned.indices]
    examples = case.encode(rows, settings, "drift")
    size = max(1, settings.batch_size // DRIFT_SHARE)
    batches = Batches(examples, size, case.pad_id, settings.seed + 1, settings.micro_batch_size)

    def drift(inputs: Inputs) -> torch.Tensor:
        positions = torch.arange(inputs.ids.shape[1], device=inputs.ids.device)
        prompt = inputs.attention_mask.bool() & (positions < inputs.response_start[:, None])
        with autocast(inputs.ids.device):
            with torch.no_grad():
                wanted = hidden_states_after(clean, layer, inputs)[prompt].float()
            found = hidden_states_after(model, layer, inputs)[prompt].float()
        return (found - wanted).pow(2).mean() / wanted.pow(2).mean()

    return Term("drift", batches, drift, settings.drift_weight)
