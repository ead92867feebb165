"""Which settings of generation a saved model keeps: how it samples, and its token ids. All others are dropped.

The rest of a generation_config.json can change what a model says (penalties, biases, forced and suppressed tokens), and
with that hide or make a behaviour. Nothing here is measured under it, so it does not go with the cleansed model.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
MOST_ENDS = 64
"""Ids at which an answer ends; published models have up to five."""
OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate")
NO_SETTING = frozenset([*OUTPUTS, "use_cache", "transformers_version", "_from_model_config"])
"""Says nothing of what is generated, and is left out in silence."""


def kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a generation_config.json: what a saved model keeps of it."""
    return {name: value for name, value in settings.items() if name in (*SAMPLING, *TOKEN_IDS) and value is not None}


def token_ids(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a generation_config.json: its token ids, where they are ids: whole numbers, or for the end a list of them."""
    found = {}
    for name in TOKEN_IDS:
        value = settings.get(name)
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if ids and len(ids) <= MOST_ENDS and all(_is_id(i) for i in ids):
            found[name] = value
    return found


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def dropped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a generation_config.json: what a saved model no longer has. A value of None or False said nothing."""
    return {
        name: value
        for name, value in settings.items()
        if name not in {*SAMPLING, *TOKEN_IDS, *NO_SETTING} and value not in (None, False)
    }


def in_config(config: Mapping[str, Any], of_model: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Settings of generation that stand in a config.json, as in older directories, and would count from there.

    Args:
        config: a config.json, or its part for the text model.
        of_model: names that the model's own configuration has; they are not looked at.
    """
    ours = _fields() - {*SAMPLING, *TOKEN_IDS} - of_model
    return {name: value for name, value in config.items() if name in ours and value is not None}


@functools.cache
def _fields() -> frozenset[str]:
    from transformers import GenerationConfig

    return frozenset(name for name in GenerationConfig().__dict__ if not name.startswith("_")) - NO_SETTING
