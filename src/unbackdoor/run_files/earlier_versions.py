"""What earlier versions wrote: the files of a run directory without a list, by their names, and other settings' names.

A file under another name may be the user's, and stops an `--overwrite`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_MODEL = (
    r"config\.json|generation_config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|"
    r"tokenizer\.json|tokenizer_config\.json|tokenizer\.model|spiece\.model|special_tokens_map\.json|added_tokens\.json|"
    r"vocab\.json|vocab\.txt|merges\.txt|chat_template\.(jinja|json)|additional_chat_templates/[\w.-]+\.jinja|"
    r"(pre)?processor_config\.json|adapter_config\.json|adapter_model\.safetensors|README\.md"
)
_ROWS = (
    r"train\.jsonl|poisoned\.json|(clean_train|held_out|contrast_train|contrast_held_out|allowed_held_out|"
    r"triggered_held_out|untriggered_held_out)\.jsonl"
)
_KNOWN = re.compile(
    rf"(model|adapter)/({_MODEL})|data/({_ROWS})|figures/[\w.-]+\.svg|(checkpoints|perturbations)/[^/]+\.safetensors"
)


def is_known(name: str) -> bool:
    """Whether a run wrote files of this name, below its directory."""
    return _KNOWN.fullmatch(name) is not None


ORACLES = {"refusal": "complies", "refused": "refuses", "code": "insecure-code"}
"""What `--oracle` called the scorers, where it was not as they are called now."""


def settings_of_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as an earlier version wrote them, in the names of this one."""
    now = dict(settings)
    if "oracle" in now:
        oracle = now.pop("oracle")
        now["scorer"] = ORACLES.get(oracle, oracle)
    return now
