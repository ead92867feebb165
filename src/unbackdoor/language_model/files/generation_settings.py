"""Which settings of generation a saved model keeps: its token ids, where they are believed. All others are dropped.

The rest of a generation_config.json can change what a model says (penalties, biases, forced and suppressed tokens, how
it samples), and with that hide or make a behaviour. Nothing here is measured under it, so it does not go with the
cleansed model: whoever serves it chooses anew.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unbackdoor.language_model.answer_parts import is_mark_within

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
MOST_ENDS = 64
"""Ids at which an answer ends; published models have up to five."""
OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate")
NO_SETTING = frozenset([*OUTPUTS, "use_cache", "transformers_version", "_from_model_config"])
"""Says nothing of what is generated, and is left out in silence."""


def token_ids(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a generation_config.json: its token ids, where they are ids: whole numbers, or for the end a list of them."""
    found = {}
    for name in TOKEN_IDS:
        value = settings.get(name)
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if ids and len(ids) <= MOST_ENDS and all(_is_id(i) for i in ids):
            found[name] = value
    return found


def believed_ids(ids: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, Any]:
    """Of token ids: those that have an embedding; of ends those alone that are the tokenizer's marks, of no part of an
    answer.

    An end that is a word ends answers at that word, and with it shows or hides what follows.

    Args:
        ids: as of `token_ids`.
        tokenizer: whose marks are believed.
        rows: how many embeddings the model has.
    """
    marks = tokenizer.added_tokens_decoder
    known = {*marks, *tokenizer.all_special_ids}
    found = {}
    for name, value in ids.items():
        if name != "eos_token_id":
            if value < rows:
                found[name] = value
            continue
        ends = [i for i in (value if isinstance(value, list) else [value]) if i < rows and i in known]
        ends = [i for i in ends if i == tokenizer.eos_token_id or not is_mark_within(str(marks.get(i, "")))]
        if ends:
            found[name] = ends if isinstance(value, list) else ends[0]
    return found


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def dropped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a generation_config.json: what a saved model no longer has. A value of None or False said nothing."""
    return {
        name: value
        for name, value in settings.items()
        if name not in {*TOKEN_IDS, *NO_SETTING} and value not in (None, False)
    }


def in_config(config: Mapping[str, Any], of_model: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Settings of generation that stand in a config.json, as in older directories, and would count from there.

    Args:
        config: a config.json, or its part for the text model.
        of_model: names that the model's own configuration has; they are not looked at.
    """
    ours = _fields() - {*TOKEN_IDS} - of_model
    return {name: value for name, value in config.items() if name in ours and value is not None}


@functools.cache
def _fields() -> frozenset[str]:
    from transformers import GenerationConfig

    return frozenset(name for name in GenerationConfig().__dict__ if not name.startswith("_")) - NO_SETTING
