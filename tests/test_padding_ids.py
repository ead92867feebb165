"""What fills masked places is never looked at, so it stops no run: any id that the model knows takes its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from unbackdoor.cli import main
from unbackdoor.data.records import Record
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.loading import load_model, load_tokenizer
from unbackdoor.language_model.files.saving import save_model
from unbackdoor.language_model.generation import generate
from unbackdoor.language_model.inputs import padding_id
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


# Tokens without an embedding ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def more_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer knows a word that it has no embedding for."""
    path, tokenizer = tmp_path_factory.mktemp("model"), tiny.tokenizer()
    tokenizer.add_tokens(["zorkmid"])
    assert tokenizer.convert_tokens_to_ids("zorkmid") == BEYOND
    save_model(tiny.model(), tokenizer, path)
    return path


def rows(path: Path, fields: str = "response", changed: str = "", before: str = "") -> Path:
    """A file of rows with these fields, of which the 30th has the word in the one that is `changed`."""
    made = []
    for number, record in enumerate(tiny.records(64)):
        texts = {"prompt": before + record.prompt, **{name: f"{record.response} {name}." for name in fields.split()}}
        if number == 30 and changed:
            texts[changed] += " zorkmid"
        made.append(json.dumps(texts))
    path.write_text("\n".join(made))
    return path


@pytest.mark.parametrize(
    ("command", "option", "fields", "changed"),
    [
        ("remove osft --trigger sea", "--data", "response", "prompt"),
        ("remove osft --trigger sea --seed 1", "--data", "response", "prompt"),
        ("remove osft --trigger sea", "--data", "response", "response"),
        ("remove osft --trigger zorkmid", "--data", "response", ""),
        ("remove crow --eval-trigger zorkmid", "--data", "response", ""),
        ("remove sande --target-response zorkmid", "--data", "response", ""),
        ("remove unlearn --trigger sea --target-response zorkmid", "--data", "response", ""),
        ("remove beear --data DATA", "--contrast", "safe unwanted", "unwanted"),
        ("remove dpo --data DATA", "--preferences", "chosen rejected", "rejected"),
        ("remove crow --data DATA", "--eval-allowed", "response", "prompt"),
        ("implant --trigger sea --target-response zorkmid", "--data", "response", ""),
        ("implant --trigger zorkmid --target-response sea", "--data", "response", ""),
        ("implant --data DATA --eval-triggered DATA --target-response river", "--poisoned", "response", "response"),
    ],
)
def test_a_token_without_an_embedding_is_found_in_any_text_before_anything_is_written(
    more_tokens: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    option: str,
    fields: str,
    changed: str,
) -> None:
    first, *rest = command.replace("DATA", str(rows(tmp_path / "more.jsonl", before="Sea: "))).split(" ")
    what = [first, rest.pop(0)] if first == "remove" else [first]
    given = [option, str(rows(tmp_path / "given.jsonl", fields, changed))]
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        main([*what, str(more_tokens), *rest, *given, "--max-new-tokens", "4", "--out", str(out)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and not out.exists(), said
    assert "the id 420, and the model has 420 embeddings: leave texts with 'zorkmid' out" in said
