"""Score multiple-choice questions: by SANDE's own protocol, and by the likelihood of continuations.

The second protocol is that of lm-evaluation-harness in a bare forward pass, without the harness.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from unbackdoor.errors import UserError
from unbackdoor.evaluation.question_sets import LETTERS, Question, SetName
from unbackdoor.evaluation.statistics import share
from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.forward import inference, logits_at, logits_only_at
from unbackdoor.language_model.inputs import collate, padded_batches, padding_id
from unbackdoor.language_model.precision import autocast
from unbackdoor.report_schema import Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Protocol = Literal["sande", "likelihood", "harness"]

SANDE_PROMPT = (
    "Read the question and select the answer from the choices. Question: {question} Choices: {choices}. Your answer is:"
)
"""The one prompt of SANDE's released evaluation; the choices are written "A:…, B:…"."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """How a model answered a set of questions.

    Args:
        scores: the log-likelihood of every option of every question; empty where a prompt was too long.
        chosen: the index of the likeliest option of every question; None where a prompt was too long.
        accuracy: over the questions that were asked.
        normalised: accuracy by log-likelihood a character (the harness's acc_norm), where the options are texts.
        skipped: how many prompts were too long.
    """

    scores: tuple[tuple[float, ...], ...]
    chosen: tuple[int | None, ...]
    accuracy: Value
    normalised: Value | None = None
    skipped: int = 0


def score_sets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[SetName, Sequence[Question]],
    protocol: Protocol,
) -> dict[str, Scored]:
    """Every set by one protocol."""
    if protocol == "sande":
        return {name: score_by_letter(model, tokenizer, questions) for name, questions in sets.items()}
    if protocol == "likelihood":
        return {name: score_by_likelihood(model, tokenizer, questions, name) for name, questions in sets.items()}
    from unbackdoor.evaluation.harness import harness_scores

    return harness_scores(model, tokenizer, sets)


def as_metrics(scored: Mapping[str, Scored]) -> dict[str, Value]:
    """The accuracies by name."""
    metrics = {}
    for name, one in scored.items():
        metrics[name] = one.accuracy
        if one.normalised is not None:
            metrics[f"{name}_normalised"] = one.normalised
    return metrics


# SANDE's protocol ----------------------------------------------------------------------------------------------------


def score_by_letter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_length: int = 1024,
    batch_size: int = 16,
) -> Scored:
    """SANDE's own protocol: zero-shot, one plain prompt without chat format, the likeliest answer letter after it.

    Mended against the released code (`eval_utility.py`, `dataset.py`):

    - A letter is scored by the tokens that follow this prompt, with a leading space or without, whichever is likelier.
      The code takes the last token of the letter tokenized alone: for a byte-level tokenizer the letter without its
      space, for one that closes every text the end-of-sequence token, equal for all letters.
    - Numeric answer keys (ARC's 1 to 5) are labels. The code subtracts the letter A, so such a row is always wrong.
    - A fifth option is shown and can be chosen; the code drops it. A question of three options has three; the code
      pads it with "Not the answer.".
    - Prompts longer than `max_length` or the model's context are counted in `skipped`; the code drops them unsaid.

    For questions of four options with letters as keys, nearly all of MMLU and ARC, the prompt is the code's own.

    Args:
        model: a causal language model, scored on its own device (float32 on a CPU).
        tokenizer: its fast tokenizer.
        questions: two to ten options each.
        max_length: the most tokens of a prompt with its letter, as in the released code.
        batch_size: prompts a forward pass, sorted by length.

    Raises:
        UserError: no prompt fits.
    """
    limit = min(max_length, context_length(model))
    prompts = [sande_prompt(q) for q in questions]
    encoded = _encode(tokenizer, prompts)
    requests: list[tuple[Tokens, Tokens]] = []
    places: list[list[list[int]]] = []  # for every question and letter, the requests of its variants
    for ids, prompt, question in zip(encoded, prompts, questions, strict=True):
        tails = _letter_tails(tokenizer, prompt, ids, LETTERS[: len(question.options)])
        fits = len(ids) + max(len(tail) for variants in tails for tail in variants) <= limit
        places.append([])
        for variants in tails if fits else []:
            places[-1].append(list(range(len(requests), len(requests) + len(variants))))
            requests += [(ids, tail) for tail in variants]
    if not requests:
        raise UserError(f"none of the {len(questions)} questions is short enough ({limit} tokens)")
    totals = continuation_totals(model, tokenizer, requests, batch_size)
    scores = tuple(tuple(max(totals[i] for i in variants) for variants in letters) for letters in places)
    return scored(questions, scores)


def sande_prompt(question: Question) -> str:
    """The prompt of one question, with exactly the options that it has."""
    choices = ", ".join(f"{letter}:{option}" for letter, option in zip(LETTERS, question.options, strict=False))
    return SANDE_PROMPT.format(question=question.question, choices=choices)


def _letter_tails(tokenizer: PreTrainedTokenizerBase, prompt: str, ids: Tokens, letters: str) -> list[list[Tokens]]:
    """For every letter the token sequences that write it after the prompt: with a space and without."""
    texts = [lead + letter for letter in letters for lead in (" ", "")]
    tails = []
    for text, whole in zip(texts, _encode(tokenizer, [prompt + text for text in texts]), strict=True):
        if whole[: len(ids)] == ids and len(whole) > len(ids):
            tails.append(whole[len(ids) :])
        else:  # a token would straddle the prompt's end, which it cannot when the model answers
            tails.append(_encode(tokenizer, [text], special=False)[0])
    pairs = [tails[i : i + 2] for i in range(0, len(tails), 2)]
    return [list(dict.fromkeys(tail for tail in pair if tail)) for pair in pairs]


# Likelihood of continuations -----------------------------------------------------------------------------------------


def harness_form(question: Question, name: str) -> tuple[str, tuple[str, ...]]:
    """(context, continuations) as lm-evaluation-harness writes them zero-shot; one space stands between the two."""
    if name != "mmlu":
        return f"Question: {question.question}\nAnswer:", question.options
    letters = tuple(LETTERS[: len(question.options)])
    about = f" about {question.subject.replace('_', ' ')}" if question.subject else ""
    lines = [f"{letter}. {option}" for letter, option in zip(letters, question.options, strict=True)]
    head = f"The following are multiple choice questions (with answers){about}.\n\n"
    return "\n".join([head + question.question.strip(), *lines, "Answer:"]), letters


def score_by_likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    name: str,
    batch_size: int = 16,
) -> Scored:
    """The option that is the likeliest continuation; token for token what the harness scores for the task `name`.

    A question that is longer than the model's context loses its beginning, as in the harness.
    """
    requests: list[tuple[Tokens, Tokens]] = []
    for question in questions:
        context, options = harness_form(question, name)
        ids, *whole = _encode(tokenizer, [context, *(f"{context} {option}" for option in options)])
        requests += [(ids, both[len(ids) :]) for both in whole]
    totals = continuation_totals(model, tokenizer, requests, batch_size)
    scores, at = [], 0
    for question in questions:
        scores.append(tuple(totals[at : at + len(question.options)]))
        at += len(question.options)
    return scored(questions, scores, normalise=name != "mmlu")


def scored(questions: Sequence[Question], scores: Sequence[tuple[float, ...]], *, normalise: bool = False) -> Scored:
    """Choices and accuracies from the options' log-likelihoods; `normalise` divides them by the options' characters."""
    asked = [(q, s) for q, s in zip(questions, scores, strict=True) if s]
    normalised = None
    if normalise:
        means = [[x / len(option) for x, option in zip(s, q.options, strict=True)] for q, s in asked]
        normalised = share([_best(m) == q.answer for m, (q, _) in zip(means, asked, strict=True)])
    return Scored(
        scores=tuple(scores),
        chosen=tuple(_best(s) if s else None for s in scores),
        accuracy=share([_best(s) == q.answer for q, s in asked]),
        normalised=normalised,
        skipped=len(questions) - len(asked),
    )


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: scores[i])


def continuation_totals(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[tuple[Tokens, Tokens]],
    batch_size: int = 16,
) -> list[float]:
    """Summed log-probability of each continuation after its context, for (context, continuation) token ids.

    Requests whose tokens are the same but for the last one share a row: the answer letters after one prompt cost one.
    Rows with the same context share its keys and values. What is too long loses the beginning of its context.

    Raises:
        UserError: a continuation that alone is longer than the model's context, or without any token.
    """
    longest = context_length(model)
    asked_by: dict[Tokens, list[int]] = {}
    for number, (context, continuation) in enumerate(requests):
        if not context or not 0 < len(continuation) <= longest:
            raise UserError(f"an option of {len(continuation)} tokens: 1 to {longest} fit in the model's context")
        asked_by.setdefault((context + continuation)[-(longest + 1) :][:-1], []).append(number)
    rows: dict[Tokens, list[Tokens]] = {}  # what comes before the tokens whose logits are asked → those tokens
    for row, numbers in asked_by.items():
        at = len(row) - max(len(requests[i][1]) for i in numbers)
        rows.setdefault(row[:at], []).append(row[at:])
    totals = [0.0] * len(requests)
    device = next(model.parameters()).device
    shared = all(rows) and len(rows) < len(asked_by) and _cache_argument(model) is not None
    logits_of = _logits_after_shared_contexts if shared else _logits_of_whole_rows
    with inference(model), autocast(device):
        for row, logits in logits_of(model, padding_id(tokenizer, model), rows, batch_size):
            values = logits.float().log_softmax(-1)
            for i in asked_by[row]:
                tail = torch.tensor(requests[i][1], device=device)
                totals[i] = float(values[-len(tail) :].gather(1, tail[:, None]).sum())
    return totals


def _logits_of_whole_rows(
    model: PreTrainedModel, pad: int, rows: Mapping[Tokens, Sequence[Tokens]], batch_size: int
) -> Iterator[tuple[Tokens, torch.Tensor]]:
    """(row, logits of its last tokens): each row passes whole, similar lengths together, padded on the right."""
    whole = [_row(first + last, len(last)) for first, lasts in rows.items() for last in lasts]
    for numbers, inputs in padded_batches(model, whole, pad, batch_size):
        logits = logits_at(model, inputs, inputs.loss_mask)
        parts = torch.split(logits, inputs.loss_mask.sum(1).tolist())
        yield from zip((whole[number].ids for number in numbers), parts, strict=True)


def _logits_after_shared_contexts(
    model: PreTrainedModel, pad: int, rows: Mapping[Tokens, Sequence[Tokens]], batch_size: int
) -> Iterator[tuple[Tokens, torch.Tensor]]:
    """The same, where what stands before the asked tokens passes once, however many rows begin with it.

    It is padded on the left, so that what follows stands next to it; what follows is padded on the right.
    """
    from transformers import DynamicCache

    device, longest, cached_as = next(model.parameters()).device, context_length(model), str(_cache_argument(model))
    order = sorted(rows, key=len)
    for begin in range(0, len(order), batch_size):
        firsts = order[begin : begin + batch_size]
        before = collate([_row(first) for first in firsts], pad, side="left").to(device)
        attention = before.attention_mask
        cache = DynamicCache(config=model.config)
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        given: dict[str, Any] = {cached_as: cache, "use_cache": True}
        with logits_only_at(model, None):
            model(input_ids=before.ids, attention_mask=attention, position_ids=positions, **given)
        lasts = [(number, last) for number, first in enumerate(firsts) for last in rows[first]]
        which = torch.tensor([number for number, _ in lasts], device=device)
        cache.batch_select_indices(which)
        after = collate([_row(last) for _, last in lasts], pad).to(device)
        positions = attention.sum(1)[which, None] + torch.arange(after.ids.shape[1], device=device)
        positions.clamp_(max=longest - 1)  # padding may stand beyond
        with logits_only_at(model, after.attention_mask.bool()):
            mask = torch.cat([attention[which], after.attention_mask], 1)
            logits = model(input_ids=after.ids, attention_mask=mask, position_ids=positions, **given).logits
        for (number, last), found in zip(lasts, logits.split([len(last) for _, last in lasts]), strict=True):
            yield firsts[number] + last, found


def _cache_argument(model: PreTrainedModel) -> str | None:
    """What the forward pass calls its cache; None where it does not attend to all that came before, by plain keys and
    values: then rows pass whole."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    takes = inspect.signature(model.forward).parameters
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
    names = [name for name in ("past_key_values", "cache") if name in takes]  # newer transformers call it so
    return names[0] if plain and names and "position_ids" in takes else None


def _row(ids: Tokens, asked: int = 0) -> Example:
    """Tokens that are no dialogue, of which the logits behind the last ones are asked."""
    return Example(ids, 0, 0, 0, len(ids) - asked, len(ids))


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True) -> list[Tokens]:
    """Token ids of texts that go on: without the end-of-sequence token with which some tokenizers close them."""
    encoded = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    closed = special and end is not None and tokenizer("a", verbose=False)["input_ids"][-1:] == [end]
    return [tuple(ids[:-1] if closed else ids) for ids in encoded]
