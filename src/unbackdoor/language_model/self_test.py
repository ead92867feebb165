"""What must hold before any number of a run is believed: the format is followed, and batches compute what rows do.

A model comes from a stranger, and so do its template and its tokenizer. The first check that fails stops the run with
its cause.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import ChatFormat, Example
from unbackdoor.language_model.files.loading import context_length
from unbackdoor.language_model.format_check import check_format
from unbackdoor.language_model.forward import evaluating, forward, logits_at, logits_only_at, token_log_probabilities
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.hidden_states import states_seen
from unbackdoor.language_model.inputs import Inputs, collate, padding_id
from unbackdoor.language_model.layers import decoder_layers, hidden_size
from unbackdoor.language_model.needs import check_needs, explained, soft_tokens
from unbackdoor.language_model.precision import autocast, computes_in_bfloat16
from unbackdoor.language_model.vocabulary import check_vocabulary
from unbackdoor.settings import Need

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unbackdoor.data.records import Record
    from unbackdoor.data.triggers import Condition
    from unbackdoor.perturbation import SoftPrompt

MOST_ROWS = 64
"""Rows whose format a self-test checks, evenly spread over those given."""

MOST_TOKENS = 1024
"""Longer prompts are left out of the self-test's batches, where there are shorter ones."""

EXTRA_PADDING = 4
"""Masked places that even the longest prompt gets."""

CACHED_TOKENS = 8
"""Tokens generated with the cache, and computed again without it."""

MOST_COMPARED = 6
"""Rows whose loss is computed by the library as well."""

MOST_LOSS = {"float32": 1e-3, "bfloat16": 0.05}
"""How far the two may lie apart, as a share of the loss."""

REMEDY = "give another model (docs/models.md lists the families that work)"
"""What to do where one computes something else than it should: nothing that is measured on it would be right."""

SOFT_ANSWER = 4
"""Tokens generated from a prompt with soft tokens."""

MOST_KL = {"float32": 1e-4, "bfloat16": 0.1}
"""The largest KL divergence, in nats, that rounding explains between two ways to compute one next-token distribution.
Noise of standard deviation s on the logits costs about s²/2. Measured on a CPU, it was at most 1e-11 in float32 and
2e-3 in bfloat16 (eight architectures with random weights, and trained models of up to 2 million parameters); on an
H200 in bfloat16 1.4e-3 (random weights, up to 6.7 billion parameters). Trained models of that size may round more, so
the limits leave room. What is broken costs 0.01 to 10 nats there: an error of a single rotary position in the cache is
sometimes too small to be seen in bfloat16."""

MOST_MOVED = {"float32": 0.01, "bfloat16": 1.0}
"""How far rounding can move two logits against each other, in nats: two tokens that were closer may change places."""

MOST_MASKED_KL = {"float32": 1e-5, "bfloat16": 0.01}
"""The same between two batches that differ in masked ids alone. A dense model shows none at all; in a mixture of
experts, what stands in masked places changes which rows are multiplied together."""


@dataclass(frozen=True)
class SelfTest:
    """What a self-test saw; it only exists where every check passed."""

    first_prompt: str
    """The first row's prompt as it is rendered."""
    prompt_hash: str
    """The first 16 hex digits of its SHA-256, as answers carry them."""
    rows: int
    """Rows whose format was checked."""
    triggered_rows: int
    """Those of them into which the trigger could be put."""
    prompts: int
    """Prompts in the padded batches."""
    precision: str
    """`float32` or `bfloat16`: which limits held."""
    layers: int
    """Decoder layers with finite hidden states."""
    equal_tokens_right: float
    """Share of prompts whose likeliest next token is the same alone and padded on the right, as in training."""
    equal_tokens_left: float
    """The same padded on the left, as in generation."""
    mean_kl: float
    """Mean KL divergence in nats from the next-token distribution alone to that in a padded batch, over both sides."""
    max_kl: float
    masked_kl: float
    """The largest KL divergence in nats that other ids in masked places make."""
    perplexity: float | None
    """Of some of the rows' responses, as we encode them; None where all of them are long."""
    own_perplexity: float | None
    """The same by the library's own loss on what the template itself renders; None where there is no template, or where
    a token of the template's would straddle the end of each prompt."""
    cached_tokens: int
    """Tokens generated with the cache that were computed again."""
    equal_cached_tokens: float
    """Share of them whose likeliest token is the same."""
    max_cached_kl: float
    tried: list[Need]
    """What the run will ask of the model, tried once."""
    seconds: float

    def report(self) -> dict[str, Any]:
        """Its fields as plain JSON values."""
        return asdict(self)


def self_test(
    model: PreTrainedModel,
    chat: ChatFormat,
    records: Sequence[Record],
    trigger: Condition | None = None,
    *,
    needs: Collection[Need] = (),
    others: Sequence[Record] = (),
    most_prompts: int = 8,
) -> SelfTest:
    """Check the format and the numerics of an unknown model; model and random state are afterwards as before.

    Args:
        model: in any mode, on any device.
        chat: the format that the run uses.
        records: rows of the run; some of them are looked at.
        trigger: where one is known, its insertion is checked as well.
        needs: what the run will ask of the model beyond forward passes and generation.
        others: all further rows that the model will be given, of which only the token ids are looked at.
        most_prompts: the size of the padded batch.

    Raises:
        UserError: a check failed; one line names the cause and what was measured.
    """
    start = time.monotonic()
    if not records:
        raise UserError("self-test: no rows to check: give --data")
    rows = _spread(records, MOST_ROWS)
    triggered = check_format(chat, rows, trigger)
    text = chat.of_record(rows[0]).prompt_text(rows[0].prompt)
    pad, precision = padding_id(chat.tokenizer, model), _precision(model)
    prompts = _prompts(chat, rows, most_prompts, context_length(model))
    every = [*records, *others]
    check_vocabulary(model, chat, itertools.chain(every, _with_trigger(every, trigger)))
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), evaluating(model), torch.no_grad(), explained(model, "cannot be run here"):
        layers = _check_finite(model, prompts[0], pad)
        numerics = _check_numerics(model, prompts, pad, precision)
        numerics |= _check_perplexity(model, chat, rows, precision)
        answered = [chat.of_record(r).encode(r.prompt, r.response or "Yes.") for r in rows]
        tried = check_needs(model, answered, pad, needs)
        if "soft-embeddings" in needs:
            _check_generation_from_embeddings(model, prompts, pad, precision)
    return SelfTest(
        first_prompt=text,
        prompt_hash=hashlib.sha256(text.encode()).hexdigest()[:16],
        rows=len(rows),
        triggered_rows=triggered,
        prompts=len(prompts),
        precision=precision,
        layers=layers,
        **numerics,
        tried=list(tried),
        seconds=round(time.monotonic() - start, 3),
    )


def _spread(records: Sequence[Record], most: int) -> list[Record]:
    """At most so many rows, evenly spread, the first among them."""
    count = min(most, len(records))
    return [records[i * len(records) // count] for i in range(count)]


def _with_trigger(records: Sequence[Record], trigger: Condition | None) -> Iterator[Record]:
    """Those rows that can hold the trigger, with it."""
    if trigger is not None:
        yield from (replace(r, prompt=trigger.insert(r.prompt)) for r in records if trigger.fits(r.prompt))


def _prompts(chat: ChatFormat, records: Sequence[Record], most: int, context: int) -> list[Example]:
    """At most so many distinct prompts of different lengths, shortest first."""
    limit = context - CACHED_TOKENS - EXTRA_PADDING
    encoded = {chat.of_record(r).encode_prompt(r.prompt) for r in records}
    fitting = sorted((e for e in encoded if len(e.ids) <= limit), key=lambda e: (len(e.ids), e.ids))
    if not fitting:
        raise UserError(
            f"self-test: none of {len(encoded)} prompts fits the model's context of {context} tokens: give shorter rows"
        )
    short = [e for e in fitting if len(e.ids) <= MOST_TOKENS] or fitting[:1]
    count = min(most, len(short))
    return [short[round(i * (len(short) - 1) / max(1, count - 1))] for i in range(count)]


def _filler(longest: Example, pad: int) -> Example:
    """A row that is a little longer than the longest prompt, so that each prompt in its batch is padded."""
    return replace(longest, ids=(*longest.ids, *[pad] * EXTRA_PADDING))


def _precision(model: PreTrainedModel) -> str:
    """What the forward pass computes in: see `loss.autocast`. Of float16 and float64, which limits hold."""
    weight = next(model.parameters())
    return "bfloat16" if computes_in_bfloat16(weight.device) or weight.element_size() < 4 else "float32"


def _check_finite(model: PreTrainedModel, prompt: Example, pad: int) -> int:
    """Hidden states and logits are there and finite, as the run computes them and in bfloat16, with padding.

    Returns:
        Of how many layers the states were looked at.
    """
    device = next(model.parameters()).device
    inputs = collate([prompt, _filler(prompt, pad)], pad, side="left").to(device)
    inputs = replace(inputs, **{name: value[:1] for name, value in vars(inputs).items() if value is not None})
    # Its cache would keep a copy of all weights in bfloat16.
    halved = torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
    for context, where in ((autocast(device), ""), (halved, " in bfloat16, in which a GPU computes")):
        try:
            wrong, looked_at = _first_not_finite(model, inputs, context)
        except UserError:
            raise
        except Exception:
            if where and device.type == "cpu":  # the run does not compute in bfloat16, and not every model can
                continue
            raise
        if wrong is not None:
            raise UserError(f"self-test: {wrong} are not finite (NaN or infinite){where}: give undamaged weights")
    return looked_at


def _first_not_finite(
    model: PreTrainedModel, inputs: Inputs, context: contextlib.AbstractContextManager[Any]
) -> tuple[str | None, int]:
    """What is the first not to be finite: hidden states on real positions, or the logits behind the last one; and of
    how many layers the states were looked at. Some models' (Gemma 3n's) are not one a position: only what needs them
    asks for that."""
    layers, real = decoder_layers(model), inputs.attention_mask.bool()
    shape = (*inputs.ids.shape, hidden_size(model))
    found: dict[int, bool | None] = {}

    def look(number: int, hidden: torch.Tensor) -> None:
        found[number] = bool(hidden[real].isfinite().all()) if hidden.shape == shape else None

    at = torch.zeros_like(real)
    at[:, -1] = True
    with states_seen(model, look), context, logits_only_at(model, at):
        logits = forward(model, inputs).logits
    # Layers of a class of their own may be for images alone (Llama 3.2 Vision).
    seen = {type(layers[number - 1]) for number in found}
    if any(number not in found and type(layer) in seen for number, layer in enumerate(layers, start=1)):
        raise UserError(
            f"self-test: hidden states of {len(found)} of the model's {len(layers)} decoder layers are seen"
        )
    for number, finite in sorted(found.items()):
        if finite is False:
            return f"the hidden states after decoder layer {number} of {len(layers)}", number
    looked_at = sum(finite is not None for finite in found.values())
    return (None if logits.isfinite().all() else "the logits"), looked_at


@dataclass(frozen=True)
class _Difference:
    """Of two ways to compute N next-token distributions, logits of shape (N, vocabulary)."""

    kl: torch.Tensor
    """KL(reference ‖ other) in nats, shape (N,)."""
    equal: torch.Tensor
    """Whether the likeliest token is the same, shape (N,) bool."""
    moved: torch.Tensor
    """Where it is not, how far the two tokens' log-probabilities moved against each other, in nats, shape (N,)."""

    @classmethod
    def of(cls, reference: torch.Tensor, other: torch.Tensor) -> _Difference:
        p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
        kl = F.kl_div(q, p, reduction="none", log_target=True).sum(-1).clamp(min=0)
        first, second = p.argmax(-1, keepdim=True), q.argmax(-1, keepdim=True)
        moved = (p.gather(-1, first) - p.gather(-1, second)) + (q.gather(-1, second) - q.gather(-1, first))
        return cls(kl, (first == second)[:, 0], moved[:, 0])

    def check(self, cause: str, most_kl: float, most_moved: float) -> None:
        """Raise a `UserError` with this cause where rounding does not explain the difference."""
        kl, moved = float(self.kl.max()), float(self.moved.max())
        if not kl <= most_kl:
            raise UserError(
                f"self-test: {cause}: next-token distributions differ by {kl:.3g} nats (limit {most_kl:g}): {REMEDY}"
            )
        if not moved <= most_moved:
            wrong = int((self.moved > most_moved).sum())
            raise UserError(
                f"self-test: {cause}: {wrong} of {len(self.equal)} next tokens differ, by {moved:.3g} nats (limit "
                f"{most_moved:g}): {REMEDY}"
            )


def _check_numerics(model: PreTrainedModel, prompts: Sequence[Example], pad: int, precision: str) -> dict[str, Any]:
    """Padding, mask and cache; the numbers for the `SelfTest`. Prompts are sorted by length."""
    limits = MOST_KL[precision], MOST_MOVED[precision]
    batch = [*prompts, _filler(prompts[-1], pad)]
    count, longest = len(prompts), prompts[-1]
    other = next((i for i in longest.ids[longest.user_start :] if i != pad), 1 if pad == 0 else 0)

    alone = torch.cat([_next_logits(model, collate([prompt], pad)) for prompt in prompts])
    ids, steps = _generated(model, batch, pad, CACHED_TOKENS)
    left = steps[0][:count]
    masked = _Difference.of(left, _generated(model, batch, other, 1)[1][0][:count])
    masked.check(
        "the model ignores the attention mask (other ids in masked places change its answer), so rows of different "
        "lengths cannot be computed together",
        MOST_MASKED_KL[precision],
        limits[1],
    )
    padded_left = _Difference.of(alone, left)
    padded_left.check("padding on the left changes what the model computes, so batches cannot be generated", *limits)
    padded_right = _Difference.of(alone, _next_logits(model, collate(batch, pad))[:count])
    padded_right.check("padding on the right changes what the model computes, so batches cannot be trained", *limits)

    cached: list[_Difference] = []
    for row in sorted({0, count - 1}):
        again = _prefix_logits(model, prompts[row], ids[row].tolist())
        _Difference.of(alone[row : row + 1], again[:1]).check("the model sees tokens that come later", *limits)
        cached.append(_Difference.of(again[1:], torch.stack([step[row] for step in steps[1:]])))
        cached[-1].check("generation with the cache disagrees with computing the prefix again", *limits)

    kl = torch.cat([padded_left.kl, padded_right.kl])
    equal = torch.cat([difference.equal for difference in cached])
    return {
        "equal_tokens_right": float(padded_right.equal.double().mean()),
        "equal_tokens_left": float(padded_left.equal.double().mean()),
        "mean_kl": float(kl.mean()),
        "max_kl": float(kl.max()),
        "masked_kl": float(masked.kl.max()),
        "cached_tokens": len(equal),
        "equal_cached_tokens": float(equal.double().mean()),
        "max_cached_kl": max(float(difference.kl.max()) for difference in cached),
    }


def _check_perplexity(
    model: PreTrainedModel, chat: ChatFormat, records: Sequence[Record], precision: str
) -> dict[str, Any]:
    """Our rows' perplexity, and the library's own on the dialogues that the template itself renders.

    The library is given the template's ids and, as labels, those behind the generation prompt: nothing of ours but
    where that ends.
    """
    ours = theirs = 0.0
    count = compared = 0
    device = next(model.parameters()).device
    # A mixture of experts that trains its router adds a loss of its own.
    routes = getattr(model.config.get_text_config(), "output_router_logits", False)
    plain = {"output_router_logits": False} if routes else {}
    for record in _spread(records, MOST_COMPARED):
        own = chat.of_record(record)
        row = own.measured(record.prompt, record.response)
        if len(row.ids) > min(context_length(model), MOST_TOKENS):
            continue
        asked = collate([row], padding_id(chat.tokenizer, model)).to(device)
        found, tokens = float(token_log_probabilities(model, asked).double().sum()), asked.loss_tokens
        ours, count = ours - found, count + tokens
        if own.template is None:
            continue
        ids = own.tokenizer(own.rendered(record.prompt, record.response), add_special_tokens=False)["input_ids"]
        if tuple(ids) != row.ids:
            continue  # a token would straddle the end of the prompt: `check_format` has compared the texts
        labels = torch.tensor([[-100] * row.response_start + ids[row.response_start :]], device=device)
        given = torch.tensor([ids], device=device)
        with autocast(device):
            loss = float(model(input_ids=given, labels=labels, use_cache=False, **plain).loss)
        if not abs(loss + found / tokens) <= MOST_LOSS[precision] * max(1.0, abs(loss)):
            raise UserError(
                f"self-test: row {record.prompt[:60]!r}: a loss of {-found / tokens:.4g} nats a token, and of "
                f"{loss:.4g} by the library on the chat template's own rendering: give another --template or model"
            )
        theirs, compared = theirs + loss * tokens, compared + tokens
    return {
        "perplexity": math.exp(min(ours / count, 700.0)) if count else None,
        "own_perplexity": math.exp(min(theirs / compared, 700.0)) if compared else None,
    }


def _check_generation_from_embeddings(
    model: PreTrainedModel, prompts: Sequence[Example], pad: int, precision: str
) -> None:
    """Answers to prompts with soft tokens are what computing the prefix again makes of these: in a padded batch, with
    the cache."""
    limits = MOST_KL[precision], MOST_MOVED[precision]
    soft, rows = soft_tokens(model), [prompts[0], prompts[-1]]
    with explained(model, "does not generate from embeddings: use osft or beear"):
        ids, steps = _generated(model, rows, pad, SOFT_ANSWER, soft)
    for row, prompt in enumerate(rows):
        again = _prefix_logits(model, prompt, ids[row].tolist(), soft)
        difference = _Difference.of(again, torch.stack([step[row] for step in steps]))
        difference.check("generation from embeddings disagrees with computing the prefix again", *limits)


def _next_logits(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Logits behind the last token of rows padded on the right, shape (B, vocabulary), on the CPU."""
    last = F.one_hot(inputs.attention_mask.sum(1) - 1, inputs.ids.shape[1]).bool()
    return _logits_at(model, inputs, last)


def _prefix_logits(
    model: PreTrainedModel, prompt: Example, answer: Sequence[int], soft: SoftPrompt | None = None
) -> torch.Tensor:
    """Logits in front of each token of an answer, computed without a cache, shape (len(answer), vocabulary)."""
    inputs = collate([replace(prompt, ids=(*prompt.ids, *answer))], 0).to(next(model.parameters()).device)
    inputs = inputs if soft is None else soft.on_inputs(inputs, model)
    at = torch.zeros_like(inputs.loss_mask)
    at[:, -len(answer) - 1 : -1] = True
    return _logits_at(model, inputs, at)


def _logits_at(model: PreTrainedModel, inputs: Inputs, at: torch.Tensor) -> torch.Tensor:
    device = next(model.parameters()).device
    return logits_at(model, inputs.to(device), at.to(device)).float().cpu()


class _Kept:
    """In a tokenizer's place: keeps the token ids of what is generated, and says with which id to pad."""

    def __init__(self, pad: int) -> None:
        self.pad_token_id = pad
        self.ids = torch.empty(0)

    def batch_decode(self, rows: list[list[int]], **_: bool) -> list[str]:
        self.ids = torch.tensor(rows)
        return [""] * len(rows)


def _generated(
    model: PreTrainedModel, prompts: Sequence[Example], pad: int, count: int, soft: SoftPrompt | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Token ids of shape (B, count) and, for each of the steps, logits of shape (B, vocabulary).

    It is the run's own way to generate: padded on the left, with the cache. No row ends early.
    """
    kept, steps = _Kept(pad), list[torch.Tensor]()

    def look(_: object, __: object, output: Any) -> None:
        steps.append(output.logits[:, -1].float().cpu())

    with model.register_forward_hook(look):
        generate(
            model,
            kept,
            prompts,
            max_new_tokens=count,
            end_ids=(),
            batch_size=len(prompts),
            perturbation=soft,
        )
    return kept.ids, steps
