"""A model that cannot be used is refused in one line that names the reason and the remedy, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import AutoModelForCausalLM, RwkvConfig

from unbackdoor.cli import main
from unbackdoor.language_model.files.loading import context_length, load_model
from unbackdoor.language_model.files.saving import save_model

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


def given(path: Path, model: Any, **changes: Any) -> Path:
    """A directory with a model, whose config.json says these things; of those that are None nothing."""
    save_model(model, tiny.tokenizer(), path)
    config = {**json.loads((path / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    rows = [{"prompt": r.prompt, "response": r.response} for r in tiny.records(60)]
    (path.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def refused(capsys: pytest.CaptureFixture[str], model: Path, *more: str) -> str:
    """What is said of a model that is not taken."""
    out = model.parent / "run"
    command = ["remove", "osft", str(model), "--data", str(model.parent / "rows.jsonl"), "--trigger", "sea", *more]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--max-new-tokens", "4", "--out", str(out)])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unbackdoor:")]
    assert (ended.value.code, len(said), out.exists()) == (2, 1, False), said
    return said[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {**LINEAR, "rope_type": "spiral"}},
        {"rope_parameters": None, "rope_scaling": {"type": "spiral", "factor": 2.0}},
    ],
)
def test_a_kind_of_rotary_scaling_that_is_not_known_is_named(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, given(tmp_path / "model", tiny.model(layers=2), **changes))
    assert "names the rope_type 'spiral', which transformers" in said and "linear" in said and "correct it" in said


def test_a_rotary_scaling_that_is_not_complete_is_told_in_the_library_s_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = given(tmp_path / "model", tiny.model(layers=2), rope_parameters={"rope_type": "linear", "rope_theta": 1e4})
    assert "'factor'" in refused(capsys, model)


def test_a_head_that_is_not_stored_is_said_to_be_tied_perhaps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tied = tiny.model(layers=2, tie_word_embeddings=True)
    said = refused(capsys, given(tmp_path / "model", tied, tie_word_embeddings=False))
    assert "such as lm_head.weight: give a complete directory" in said
    assert "(tie_word_embeddings true, where the output embeddings are the input's)" in said


def test_a_model_that_cannot_be_padded_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RwkvConfig(vocab_size=420, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)
    said = refused(capsys, given(tmp_path / "model", AutoModelForCausalLM.from_config(config)))
    assert "ignores the attention mask" in said and "so rows of different lengths cannot be computed together" in said
    assert said.endswith("give another model (docs/models.md lists the families that work)")


@pytest.mark.parametrize(("more", "remedy"), [((), "the model's context"), (("--max-length", "16"), "--max-length")])
def test_rows_without_room_name_what_limits_them(
    more: tuple[str, ...], remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = given(tmp_path / "model", tiny.model(layers=2), max_position_embeddings=None if more else 16)
    said = refused(capsys, model, *more)
    assert "0 usable rows of at most 16 tokens" in said and remedy in said and "give more or shorter rows" in said


@pytest.mark.parametrize(("said", "found"), [(64, 64), (0, 1024), (-1, 1024), (2**27, 2**27)])
def test_a_context_that_is_none_is_taken_to_be_unsaid(said: int, found: int, tmp_path: Path) -> None:
    path = given(tmp_path / "model", tiny.model(layers=2), max_position_embeddings=said)
    assert context_length(load_model(path, "cpu")) == found
