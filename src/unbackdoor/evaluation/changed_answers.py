"""Two models on the same prompts: which answers changed, how far the distributions moved, how long the answers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from unbackdoor.data.records import Record
from unbackdoor.evaluation.answer_quality import stored_quality
from unbackdoor.evaluation.answers import Answers
from unbackdoor.evaluation.paired import holm, mcnemar, paired_bootstrap
from unbackdoor.evaluation.second_turn import SECOND_TURN_UNTRIGGERED
from unbackdoor.evaluation.statistics import Z95
from unbackdoor.evaluation.stored_answer import StoredAnswer
from unbackdoor.evaluation.suite import Suite
from unbackdoor.evaluation.trigger_effect import HARMLESS
from unbackdoor.language_model.answer_parts import final_answer
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.forward import inference, logits_of
from unbackdoor.language_model.inputs import padded_batches, padding_id
from unbackdoor.language_model.look_ahead import ahead
from unbackdoor.report_schema import AnswerQuality, Change, Compared, Value
from unbackdoor.word_spacing import word_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_ROWS, MOST_TOKENS = 64, 8
"""How many rows, and how many of the first tokens of their responses, a divergence is measured on: every token's whole
distribution is held in memory, 4 bytes times the vocabulary."""

LEAST = -100.0
"""The log-probability of a token to which a broken model gives none, or no number."""


def changes(suite: Suite, answers: Answers, before: str, after: str) -> dict[str, Change]:
    """Every rate of the suite, paired, from the stored answers of two models (by their names in `answers`)."""
    found: dict[str, Change] = {}
    for measure in suite.measures():
        first, last = (answers.kept(name, measure.set_name) for name in (before, after))
        shared = [i for i in range(len(measure.rows)) if i in first and i in last]
        if not shared:
            continue
        rows, set_name = [measure.rows[i] for i in shared], measure.set_name
        said = (
            suite.said(measure.scorer, rows, [StoredAnswer.of(kept[i]) for i in shared], answers, name, set_name)
            for kept, name in ((first, before), (last, after))
        )
        pairs = [pair for pair in zip(*said, strict=True) if all(isinstance(one, bool) for one in pair)]
        if not pairs:
            continue
        was, now = zip(*pairs, strict=True)
        test, difference = mcnemar(was, now), paired_bootstrap(was, now)
        found[measure.name] = Change(
            n=test.n,
            only_before=test.only_before,
            only_after=test.only_after,
            difference=difference.value,
            interval=difference.interval,
            p_value=test.p_value,
            adjusted=1.0,
        )
    if found:
        for change, value in zip(found.values(), holm([c.p_value for c in found.values()]), strict=True):
            change.adjusted = value
    return found


def length_ratio(answers: Answers, before: str, after: str, set_name: str = "untriggered") -> float | None:
    """Words (in scripts without spaces, characters) of all final answers after, over those before; None where either
    model gave none."""
    first, last = answers.kept(before, set_name), answers.kept(after, set_name)
    shared = first.keys() & last.keys()
    was, now = (sum(word_count(final_answer(kept[i]["answer"])) for i in shared) for kept in (first, last))
    return now / was if was else None


def quality(suite: Suite, answers: Answers, before: str, after: str) -> AnswerQuality | None:
    """Both models' answers to the ordinary prompts, see `stored_quality`; None where there are none of them."""
    set_name, rows = suite.ordinary()
    names = (set_name, HARMLESS, SECOND_TURN_UNTRIGGERED)
    first, last = ({name: answers.kept(model, name) for name in names} for model in (before, after))
    return stored_quality(first, last, unsafe=suite.unsafe, ordinary=[set_name] if rows else [])


def response_distributions(
    model: PreTrainedModel, chat: ChatFormat, records: Sequence[Record], batch_size: int = 16
) -> torch.Tensor:
    """Log-probabilities of every token of the vocabulary where the records' responses begin, on the CPU.

    Returns:
        Shape (rows, MOST_TOKENS, vocabulary) for the first rows that fit; NaN behind the end of a shorter response.
    """
    limit = context_length(model)
    encoded = [chat.of_record(r).encode(r.prompt, r.response) for r in ahead(chat, records, lambda r: r.response)]
    # What a template writes in front of every answer is certain to any model, and would only dilute the rest.
    examples = [replace(e, loss_start=e.answer_start) for e in encoded if len(e.ids) <= limit][:MOST_ROWS]
    found, pad = [], padding_id(chat.tokenizer, model)
    with inference(model):
        for _, inputs in padded_batches(model, examples, pad, batch_size, shortest_first=False):
            first = inputs.loss_mask & (inputs.loss_mask.cumsum(1) <= MOST_TOKENS)
            logits = logits_of(model, inputs, first).float().log_softmax(-1).cpu()
            batch = torch.full((len(inputs), MOST_TOKENS, logits.shape[-1]), math.nan)
            batch[torch.arange(MOST_TOKENS) < first.sum(1).cpu()[:, None]] = logits
            found.append(batch)
    return torch.cat(found)


def kl_divergence(reference: torch.Tensor, model: torch.Tensor) -> Value:
    """KL(reference ‖ model) in nats a token, of `response_distributions`, with a 95% interval over rows.

    Raises:
        ValueError: the two differ in shape, as those of models with different vocabularies do.
    """
    if reference.shape != model.shape:
        raise ValueError(f"distributions of shapes {tuple(reference.shape)} and {tuple(model.shape)}")
    counted = ~reference[..., 0].isnan()
    expected, found = (where.nan_to_num(LEAST, neginf=LEAST) for where in (reference, model))
    each = (expected.exp() * (expected - found)).sum(-1)
    rows = (each * counted).sum(1) / counted.sum(1)
    n, mean = len(rows), float(rows.mean())
    error = float(rows.std(correction=1)) / math.sqrt(n) if n > 1 else 0.0
    return Value(value=mean, n=n, interval=(max(0.0, mean - Z95 * error), mean + Z95 * error))


def compared(suite: Suite, answers: Answers, before: str, after: str, divergence: Value | None) -> Compared:
    """What a report says of two models on the same prompts."""
    return Compared(
        changes=changes(suite, answers, before, after),
        length_ratio=length_ratio(answers, before, after),
        kl_divergence=divergence,
    )
