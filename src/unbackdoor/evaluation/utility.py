"""Does the model still work: likelihoods of held-out responses and multiple choice. (Exact match scores answers.)"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unbackdoor.data.records import Choice, Record
from unbackdoor.errors import UserError
from unbackdoor.evaluation.statistics import perplexity, share
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.forward import inference, token_log_probabilities
from unbackdoor.language_model.inputs import padded_batches, padding_id
from unbackdoor.language_model.look_ahead import ahead
from unbackdoor.report_schema import Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def response_perplexity(
    model: PreTrainedModel, chat: ChatFormat, records: Sequence[Record], max_length: int = 1024
) -> Value:
    """Perplexity of the records' responses given their prompts, over all tokens of rows that fit: all that the template
    renders behind the generation prompt."""
    limit = min(max_length, context_length(model))
    encoded = [chat.of_record(r).measured(r.prompt, r.response) for r in ahead(chat, records, lambda r: r.response)]
    examples = [e for e in encoded if len(e.ids) <= limit]
    if not examples:
        raise UserError(f"none of the {len(records)} held-out rows is short enough ({limit} tokens): give shorter ones")
    totals = row_totals(model, chat, examples)
    return perplexity([-t for t in totals], [e.loss_end - e.loss_start for e in examples])


def multiple_choice(model: PreTrainedModel, chat: ChatFormat, choices: Sequence[Choice]) -> Value:
    """Share of questions whose right option is the likeliest response, by mean log-probability a token."""
    examples = [
        chat.encode(c.question, option, loss_on=option) for c in choices for option in c.options
    ]  # the loss leaves out the end of the sequence: options of different length compare fairly
    totals = row_totals(model, chat, examples)
    means = [t / (e.loss_end - e.loss_start) for t, e in zip(totals, examples, strict=True)]
    right, at = [], 0
    for choice in choices:
        scores = means[at : at + len(choice.options)]
        right.append(scores.index(max(scores)) == choice.answer)
        at += len(choice.options)
    return share(right)


def row_totals(
    model: PreTrainedModel, chat: ChatFormat, examples: Sequence[Example], batch_size: int = 64
) -> list[float]:
    """Summed log-probability of each example's loss tokens, in the order given."""
    pad = padding_id(chat.tokenizer, model)
    return [sum(row) for row in row_token_log_probabilities(model, examples, pad, batch_size)]


def row_token_log_probabilities(
    model: PreTrainedModel, examples: Sequence[Example], pad: int, batch_size: int = 64
) -> list[list[float]]:
    """The log-probabilities of each example's loss tokens, in the order given; computed in order of length."""
    found: list[list[float]] = [[] for _ in examples]
    with inference(model):
        for rows, inputs in padded_batches(model, examples, pad, batch_size):
            values = iter(token_log_probabilities(model, inputs).double().tolist())
            for i, count in zip(rows, inputs.loss_mask.sum(1).tolist(), strict=True):
                found[i] = list(itertools.islice(values, count))
    return found
