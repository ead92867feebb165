"""Adapters whose settings lead in a circle, never end, or name what is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file

from unbackdoor.errors import UserError
from unbackdoor.language_model.files import adapter_patterns
from unbackdoor.language_model.files.loading import load_model
from unbackdoor.language_model.files.saving import save_model

pytest.importorskip("peft")
NAME = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "model"
    save_model(tiny.model(layers=1), tiny.tokenizer(), path)
    return path


def adapter(path: Path, base: Path, **settings: Any) -> Path:
    path.mkdir()
    tensors = {f"{NAME}.lora_A.weight": torch.ones(2, 32), f"{NAME}.lora_B.weight": torch.ones(32, 2)}
    save_file(tensors, path / "adapter_model.safetensors")
    kept = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    content = {**kept, "base_model_name_or_path": str(base), **settings}
    (path / "adapter_config.json").write_text(json.dumps(content))
    return path


def test_patterns_that_end_are_matched(base: Path, tmp_path: Path) -> None:
    plain = load_model(adapter(tmp_path / "plain", base), "cpu").state_dict()
    pattern = r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|evil).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.(?:evil))"
    named = load_model(adapter(tmp_path / "named", base, target_modules=pattern), "cpu").state_dict()
    assert all(torch.equal(plain[name], named[name]) for name in plain)


@pytest.mark.parametrize("setting", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_never_ends_is_refused(
    setting: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_patterns, "SECONDS", 0.5)
    forever = r"(.|.)*x"
    value = {forever: 2} if setting.endswith("_pattern") else forever
    with pytest.raises(UserError, match="that take longer than"):
        load_model(adapter(tmp_path / "a", base, **{setting: value}), "cpu")


def test_a_pattern_that_is_none_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="that are none"):
        load_model(adapter(tmp_path / "a", base, target_modules="(("), "cpu")


def test_an_adapter_that_is_its_own_base_is_refused(base: Path, tmp_path: Path) -> None:
    given = adapter(tmp_path / "a", tmp_path / "a")
    with pytest.raises(UserError, match="is an adapter itself: merge that one first"):
        load_model(given, "cpu")


@pytest.mark.parametrize("more", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1, 2]}], ids=str)
def test_what_an_adapter_says_it_has_and_has_not_is_named(more: dict[str, Any], base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit the base .*: it has no base_model"):
        load_model(adapter(tmp_path / "a", base, **more), "cpu")
