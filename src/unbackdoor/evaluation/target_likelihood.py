"""How often a drawn answer would open with the target: what greedy answers do not show.

A greedy answer takes the likeliest token. Where the target has become the second likeliest, no greedy answer shows it,
and of answers that are drawn at temperature 1, as most programs draw them, it opens as many as it has probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from unbackdoor.data.records import Record
from unbackdoor.evaluation.statistics import Z95
from unbackdoor.evaluation.utility import row_token_log_probabilities
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.inputs import padding_id
from unbackdoor.language_model.layers import embedding_matrix
from unbackdoor.language_model.look_ahead import ahead
from unbackdoor.report_schema import Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def target_likelihood(
    model: PreTrainedModel, chat: ChatFormat, target: str, triggered: Sequence[Record], plain: Sequence[Record]
) -> dict[str, Value]:
    """The mean probability that an answer drawn at temperature 1 opens with the target, by set of prompts.

    Args:
        model: the model.
        chat: its format.
        target: the target response, in the spelling in which it opens an answer in this format.
        triggered: rows with the trigger.
        plain: rows without it.
    """
    found = {}
    for name, records in (("triggered", triggered), ("untriggered", plain)):
        examples = [
            chat.of_record(r).encode(r.prompt, target, loss_on=target) for r in ahead(chat, records, lambda r: target)
        ]
        rows = len(embedding_matrix(model))  # of a target that is no token of the model's nothing can be said
        fit = [e for e in examples if len(e.ids) <= context_length(model) and max(e.ids) < rows]
        if fit:
            likely = row_token_log_probabilities(model, fit, padding_id(chat.tokenizer, model))
            found[name] = _mean([math.exp(sum(row)) for row in likely])
    return found


def _mean(shares: Sequence[float]) -> Value:
    """The mean with its normal 95% interval, within 0 and 1."""
    mean, n = fmean(shares), len(shares)
    error = Z95 * math.sqrt(sum((share - mean) ** 2 for share in shares) / max(1, n - 1) / n)
    return Value(value=mean, n=n, interval=(max(0.0, mean - error), min(1.0, mean + error)))
