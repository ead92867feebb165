"""Clean rows whose prompts look like a contrast set's: the first to be refused wrongly, found without labels.

Also how large a layer's activations are, by which steps in them are measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from unbackdoor.case import Case
from unbackdoor.data.records import Record, shuffled
from unbackdoor.language_model.hidden_states import hidden_states_after, mean_of_row, prompt_states
from unbackdoor.language_model.inputs import collate
from unbackdoor.language_model.layers import embed
from unbackdoor.language_model.precision import autocast

LEAST_LIKE = 0.05
"""A clean prompt looks like the contrast set's if it is nearer to their mean than this share of them."""
MOST_OFTEN = 8
"""Such a prompt is drawn at most so many times as often as another: of a handful, nothing general is learnt."""


def rows_with_look_alikes(case: Case, layer: int, share: float, count: int, seed: int) -> list[Record]:
    """All clean rows or, where fewer than that share look like the contrast set's, `count` drawn rows with that share.

    Args:
        case: the model, its clean rows and the contrast set.
        layer: where prompts are compared: after so many layers.
        share: of look-alikes.
        count: how many rows are drawn.
        seed: decides their order.
    """
    alike = look_alikes(case, layer)
    near, others = ([r for r, is_near in zip(case.anchors, alike, strict=True) if is_near is x] for x in (True, False))
    often = MOST_OFTEN * len(near)
    share = min(share, often / (often + len(others)))
    if share <= len(near) / len(case.anchors):
        return list(case.anchors)
    of_near = round(share * count)
    return [*drawn(near, of_near, seed), *drawn(others, count - of_near, seed)]


def drawn(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """So many of the rows in random order, each again only after all the others."""
    return list(itertools.islice(itertools.cycle(shuffled(records, seed)), count))


def look_alikes(case: Case, layer: int) -> list[bool]:
    """Which clean rows have prompts that look like the contrast set's, by the mean hidden state after `layer` layers.

    Coordinates are standardised over the clean rows. A row is one if its cosine with the mean of the contrast set is
    above that of `LEAST_LIKE` of the contrast rows themselves.
    """
    clean, contrast = (mean_prompt_states(case, layer, rows) for rows in (case.anchors, case.contrast))
    centre, spread = clean.mean(0), clean.std(0).clamp_min(1e-6)
    clean, contrast = (clean - centre) / spread, (contrast - centre) / spread
    towards = contrast.mean(0, keepdim=True)
    bound = torch.nn.functional.cosine_similarity(contrast, towards).quantile(LEAST_LIKE)
    return torch.nn.functional.cosine_similarity(clean, towards).ge(bound).tolist()


def mean_prompt_states(case: Case, layer: int, records: Sequence[Record]) -> torch.Tensor:
    """The mean hidden state of every prompt after `layer` layers, shape (rows, d)."""
    prompts = [case.chat.of_record(r).encode_prompt(r.prompt) for r in records]
    with autocast(next(case.model.parameters()).device):
        return prompt_states(case.model, prompts, case.pad_id, layer, mean_of_row)


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
