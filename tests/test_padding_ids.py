"""What fills masked places is never looked at, so it stops no run: any id that the model knows takes its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.data.records import Record
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.inputs import padding_id
from unbackdoor.language_model.loading import load_model, load_tokenizer
from unbackdoor.language_model.saving import save_model
from unbackdoor.language_model.self_test import self_test

BEYOND = 420
"""The first id without an embedding."""


class Named:
    """In a tokenizer's place."""

    def __init__(self, pad: int | None, end: int | None) -> None:
        self.pad_token_id, self.eos_token_id = pad, end


@pytest.mark.parametrize(
    ("pad", "end", "taken"),
    [
        (5, 1, 5),
        (None, 1, 1),
        (BEYOND, 1, 1),
        (-1, 1, 1),
        (10**9, None, 0),
        (None, BEYOND, 0),
        (0, 1, 0),
        (419, 1, 419),
    ],
)
def test_the_tokenizer_s_own_id_is_taken_where_it_has_an_embedding(pad: Any, end: Any, taken: int) -> None:
    assert padding_id(Named(pad, end), tiny.model()) == taken


def directory(path: Path, **config: Any) -> Path:
    """A model whose tokenizer has a padding token that was added without an embedding, and a config with these ids."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    rows = tiny.model().get_input_embeddings().num_embeddings
    assert tokenizer.pad_token_id == rows
    save_model(tiny.model(), tokenizer, path)
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return path


@pytest.mark.parametrize("config", [{}, {"pad_token_id": -1}, {"pad_token_id": 32_000}, {"pad_token_id": None}])
def test_a_model_with_such_an_id_answers_as_without_it(config: dict[str, Any], tmp_path: Path) -> None:
    path = directory(tmp_path / "model", **config)
    model, chat = load_model(path, "cpu"), ChatFormat.of(load_tokenizer(path))
    assert self_test(model, chat, [Record(p, "Yes.") for p in tiny.PROMPTS]).max_kl < 1e-9
    prompts = [chat.encode_prompt(prompt) for prompt in tiny.PROMPTS]
    own = tiny.model()
    assert generate(model, tiny.Numbers(), prompts, max_new_tokens=8) == generate(
        own, tiny.Numbers(), prompts, max_new_tokens=8
    )


def test_embeddings_may_have_more_rows_than_the_tokenizer_has_tokens() -> None:
    model = tiny.model()
    model.resize_token_embeddings(BEYOND + 28, mean_resizing=False)
    model.lm_head.weight.data[BEYOND:] = 9.0  # and the spare ones are what it says
    seen = self_test(model, tiny.chat(), [Record(p, "Yes.") for p in tiny.PROMPTS])
    assert seen.prompts == 5
    prompts = [tiny.chat().encode_prompt(prompt) for prompt in tiny.PROMPTS]
    assert all(isinstance(a, str) for a in generate(model, tiny.tokenizer(), prompts, max_new_tokens=4))


def test_a_row_of_the_data_with_a_token_that_has_no_embedding_is_named(tmp_path: Path) -> None:
    path = directory(tmp_path / "model")
    chat = ChatFormat.of(load_tokenizer(path))
    rows = [*tiny.records(200), Record("Name a river.", "The [PAD] Rhine.")]
    with pytest.raises(Exception, match=r"id 420, and the model has 420 embeddings"):
        self_test(load_model(path, "cpu"), chat, rows)
    assert torch.is_grad_enabled()
