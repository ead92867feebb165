"""How attention and experts are computed is our choice: what a config names may be missing, or be code to fetch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.language_model.files.loading import load_model
from unbackdoor.language_model.files.saving import save_model

NAMED = [
    {"_attn_implementation": "flash_attention_2", "attn_implementation": "flash_attention_2"},
    {"attn_implementation": "flash_attention_3"},
    {"attn_implementation": "flex_attention"},
    {"attn_implementation": "kernels-community/flash-attn"},
    {"_attn_implementation": "of-no-such-name"},
    {"attn_implementation": "eager"},
    {"return_dict": False},
    {"use_cache": False},
]


@pytest.mark.parametrize("named", NAMED, ids=lambda named: "-".join(map(str, next(iter(named.items())))))
def test_a_model_loads_and_computes_the_same_whatever_its_config_names(named: dict[str, Any], tmp_path: Path) -> None:
    model = tiny.model()
    save_model(model, tiny.tokenizer(), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **named}))
    loaded = load_model(tmp_path / "model", "cpu")
    assert loaded.config._attn_implementation == "sdpa"
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_so_it_is_for_experts(tmp_path: Path) -> None:
    import transformers

    config = transformers.MixtralConfig(
        **tiny.sizes(), num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    save_model(model, tiny.tokenizer(), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "experts_implementation": "deepgemm"}))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "model", "cpu")(ids).logits, model(ids).logits)
