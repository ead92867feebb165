"""BEEAR: entrap a universal hidden shift that makes the model misbehave, then train the model to stay safe under it.

    entrapment   δ* = argmin_δ (1/N) Σ [ L(F^l(x, δ), y_h) − α L(F^l(x, δ), y_s) ]
    removal      θ* = argmin_θ (1/N) Σ L(F^l(x, δ*), y_s) + (1/M) Σ L(F(x_p), y_p)

The article prints α = 1; −L(y_s) has no lower bound, so ours is small (`away_weight`). Ours, beyond the article, each
with its switch: benign prompts under the shift are still answered; clean rows whose prompts look like the contrast
set's are drawn more often; every row gets a random share of the shift; the step is relative to the layer's activations;
rounds end when a fresh entrapment no longer succeeds.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from unbackdoor.case import Case, adapted
from unbackdoor.data.batches import encode_records
from unbackdoor.data.records import Record, shuffled
from unbackdoor.errors import UserError
from unbackdoor.language_model.chat import Example
from unbackdoor.language_model.inputs import collate
from unbackdoor.language_model.layers import (
    anchor_layer,
    embed,
    embedding_width,
    hidden_size,
    hidden_states_after,
)
from unbackdoor.language_model.loading import context_length
from unbackdoor.language_model.loss import autocast, logits_only_at
from unbackdoor.perturbation import HiddenShift, Perturbation, RandomShare, SoftPrompt
from unbackdoor.removal.eliminate import Rows, eliminate
from unbackdoor.removal.result import Removal, Simulation
from unbackdoor.removal.rounds import Round, run_rounds
from unbackdoor.removal.settings import BeearSettings as Settings
from unbackdoor.removal.simulate import simulate, unwanted_preference
from unbackdoor.writing import word_count

MEASURED_TOKENS = 16
"""A behaviour shows where the unwanted answer parts from the safe one: this many tokens from there on are fitted and
measured. A refusal parts at once; insecure code may share its first lines with the secure."""
LEAST_LIKE = 0.05
"""A clean prompt looks like the contrast set's if it is nearer to their mean than this share of them."""
MOST_OFTEN = 8
"""Such a prompt is drawn at most so many times as often as another: of a handful, nothing general is learnt."""
PROMPTS_AT_ONCE = 50
"""In a forward pass that looks for them."""


def run(case: Case, settings: Settings, replacement: Perturbation | None = None) -> Removal:
    """Alternate entrapment and removal.

    Args:
        case: the victim, clean rows (D_PA) and the contrast set (D_SA with y_s and y_h).
        settings: space, layer, length, position, weights, rounds.
        replacement: a perturbation to train under in place of the fitted ones (the random-perturbation control).
    """
    if not case.contrast:
        raise UserError("beear needs examples of the unwanted behaviour: give --contrast FILE")
    name = "beear" if settings.space == "hidden" else "beear-input"
    with adapted(case, settings):
        return run_rounds(case, settings, name, _parts(case, settings, anchor_rows(case, settings)), replacement)


def _parts(case: Case, settings: Settings, anchors: Sequence[Record]) -> Round:
    start, rms = _start(case, settings)
    width = (hidden_size if settings.space == "hidden" else embedding_width)(case.model)

    @functools.cache
    def paired(target: str) -> tuple[list[Record], list[Record]]:
        train, held_out = (case.contrast, case.held_out_contrast) if target == "target" else _control_rows(case)
        return _both_fit(case, settings, train, "entrapment"), _both_fit(case, settings, held_out, "held out")

    def fit(
        when: str, target: str, phase: str, seed: int, steps: int | None = None, give_up_after: int | None = None
    ) -> tuple[Perturbation, Simulation]:
        shift = start(seed)
        rows, held_out = paired(target)

        def responses(records: Sequence[Record], what: str, wanted: str) -> list[Example]:
            return case.encode(
                records,
                settings,
                what,
                response=lambda record: record.unwanted or "" if wanted == "unwanted" else record.response,
                perturbation=shift,
                most_response_tokens=MEASURED_TOKENS,
                skipped=lambda record: shared_tokens(case, record),
            )

        unwanted = case.batches(responses(rows, "entrapment", "unwanted"), settings, seed)
        safe = case.batches(responses(rows, "entrapment", "safe"), settings, seed)
        measured = [responses(held_out, "entrapment (held out)", wanted) for wanted in ("unwanted", "safe")]
        terms = [("towards-unwanted", unwanted, 1.0)]
        if settings.away_weight:
            terms.append(("away-from-safe", safe, -settings.away_weight))
        simulation = simulate(
            case,
            shift,
            terms,
            lambda: unwanted_preference(case, shift, *measured),
            settings,
            rms * (settings.step_size if settings.space == "hidden" else settings.input_step_size),
            phase=phase,
            when=when,
            target=target,
            steps=steps,
            give_up_after=give_up_after,
            scale=rms * width**0.5,
        )
        return shift, simulation

    def remove(perturbation: Perturbation, number: int) -> None:
        if isinstance(perturbation, HiddenShift):  # soft tokens have no way from nothing to the whole to share out
            perturbation = RandomShare(perturbation, settings.least_share)
        rows = [
            Rows("safe-under-shift", case.contrast, perturbation),
            Rows("anchors", anchors, weight=settings.anchor_weight),
            Rows("benign-under-shift", anchors, perturbation, settings.benign_weight),
        ]
        eliminate(case, rows, settings, phase=f"round-{number}/eliminate", round_number=number - 1)

    def longer() -> Round:
        return _parts(case, settings.model_copy(update={"length": 2 * settings.length}), anchors)

    return Round(fit, remove, longer)


def _start(case: Case, settings: Settings) -> tuple[Callable[[int], Perturbation], float]:
    """Where a perturbation starts, given a seed, and the root mean square of a coordinate of what it stands among."""
    if settings.space == "input":
        # Not near zero: a shift of zero changes nothing, but an inserted zero vector is a token like no other, which
        # normalisation blows up to the size of the rest. Ordinary tokens are what a trigger could be made of.
        def tokens(seed: int) -> SoftPrompt:
            generator = case.generator(seed)
            return SoftPrompt.from_vocabulary(case.model, case.chat.tokenizer, settings.length, generator)

        return tokens, activation_rms(case, 0)

    layer = anchor_layer(case.model, settings.layer, settings.depth)
    rms = activation_rms(case, layer)

    def shift(seed: int) -> HiddenShift:
        made = HiddenShift.zeros(case.model, layer, settings.length, settings.position)
        made.values.data.copy_(torch.randn(made.values.shape, generator=case.generator(seed)) * (0.01 * rms))
        return made

    return shift, rms


def anchor_rows(case: Case, settings: Settings) -> list[Record]:
    """The clean rows of removal: all of them or, where few look like the contrast set, as many as are drawn, with
    `near_share` of them from those."""
    if not settings.near_share:
        return list(case.anchors)
    alike = look_alikes(case, anchor_layer(case.model, settings.layer, settings.depth))
    near, others = ([r for r, is_near in zip(case.anchors, alike, strict=True) if is_near is x] for x in (True, False))
    often = MOST_OFTEN * len(near)
    share = min(settings.near_share, often / (often + len(others)))
    if share <= len(near) / len(case.anchors):
        return list(case.anchors)
    count = settings.rounds * settings.steps * settings.batch_size
    of_near = round(share * count)
    return [*drawn(near, of_near, settings.seed), *drawn(others, count - of_near, settings.seed)]


def drawn(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """So many of the rows in random order, each again only after all the others."""
    return list(itertools.islice(itertools.cycle(shuffled(records, seed)), count))


def look_alikes(case: Case, layer: int) -> list[bool]:
    """Which clean rows have prompts that look like the contrast set's, by the mean hidden state after `layer` layers.

    Coordinates are standardised over the clean rows. A row is one if its cosine with the mean of the contrast set is
    above that of `LEAST_LIKE` of the contrast rows themselves.
    """
    clean, contrast = (prompt_states(case, layer, rows) for rows in (case.anchors, case.contrast))
    centre, spread = clean.mean(0), clean.std(0).clamp_min(1e-6)
    clean, contrast = (clean - centre) / spread, (contrast - centre) / spread
    towards = contrast.mean(0, keepdim=True)
    bound = torch.nn.functional.cosine_similarity(contrast, towards).quantile(LEAST_LIKE)
    return torch.nn.functional.cosine_similarity(clean, towards).ge(bound).tolist()


def prompt_states(case: Case, layer: int, records: Sequence[Record]) -> torch.Tensor:
    """The mean hidden state of every prompt after `layer` layers, shape (rows, d)."""
    prompts = [case.chat.of_record(r).encode_prompt(r.prompt) for r in records]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    states = torch.empty(len(prompts), hidden_size(case.model))
    device = next(case.model.parameters()).device
    for begin in range(0, len(order), PROMPTS_AT_ONCE):
        rows = order[begin : begin + PROMPTS_AT_ONCE]
        inputs = collate([prompts[i] for i in rows], case.pad_id).to(device)
        nothing = torch.zeros_like(inputs.attention_mask, dtype=torch.bool)
        with torch.no_grad(), autocast(device), logits_only_at(case.model, nothing):
            found = hidden_states_after(case.model, layer, inputs).float()
        mask = inputs.attention_mask[..., None]
        states[rows] = ((found * mask).sum(1) / mask.sum(1)).cpu()
    return states


def activation_rms(case: Case, layer: int) -> float:
    """Root mean square of one coordinate of the hidden state after `layer` layers, over the tokens of some prompts.

    Layer 0 is the token embeddings.
    """
    prompts = [case.chat.of_record(r).encode_prompt(r.prompt) for r in case.anchors[:32]]
    inputs = collate(prompts, case.pad_id).to(next(case.model.parameters()).device)
    with torch.no_grad():
        states = hidden_states_after(case.model, layer, inputs) if layer else embed(case.model, inputs.ids)
    # The median over tokens: attention sinks have norms a hundred times the rest.
    tokens = states.float()[inputs.attention_mask.bool()]
    return float(tokens.pow(2).mean(-1).sqrt().median())


def shared_tokens(case: Case, record: Record) -> int:
    """How many tokens the unwanted and the safe response have in common before they part."""
    unwanted, safe = (
        case.chat.of_record(record).encode(record.prompt, text) for text in (record.unwanted or "", record.response)
    )
    pairs = zip(unwanted.ids[unwanted.response_start :], safe.ids[safe.response_start :], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _both_fit(case: Case, settings: Settings, records: Sequence[Record], what: str) -> list[Record]:
    """The rows of which neither response is too long: the unwanted and the safe one are compared row by row."""
    inserted = settings.length if settings.space == "input" else 0
    limit = min(settings.max_length, context_length(case.model)) - inserted

    def fits(record: Record, response: str) -> bool:
        return bool(
            encode_records(
                [record],
                case.chat,
                limit,
                response=lambda _: response,
                most_response_tokens=MEASURED_TOKENS,
                skipped=lambda record: shared_tokens(case, record),
            )
        )

    kept = [r for r in records if fits(r, r.unwanted or "") and fits(r, r.response)]
    if len(kept) < len(records):
        case.dropped[f"{what} (either response too long)"] = len(records) - len(kept)
    return kept


def _control_rows(case: Case) -> tuple[list[Record], list[Record]]:
    """The contrast rows with random words of equal number in place of the unwanted response."""

    def controlled(records: Sequence[Record], base: int) -> list[Record]:
        return [replace(r, unwanted=case.words(word_count(r.unwanted or ""), base + i)) for i, r in enumerate(records)]

    return controlled(case.contrast, 10_000), controlled(case.held_out_contrast, 90_000)
