"""The ids that a model is given are those of its own tokenizer's files, as the libraries that wrote them split text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from unbackdoor.errors import UserError
from unbackdoor.language_model import tokenizer_loading
from unbackdoor.language_model.chat import ChatFormat
from unbackdoor.language_model.files.loading import load_model, load_tokenizer
from unbackdoor.language_model.files.saving import AUTO_SPLITS_OTHERWISE, save_model
from unbackdoor.language_model.tokenizer_loading import PROBES

TEXTS = (*PROBES, "  leading spaces", "12345 abc\n\n\n  x", "ÄÖÜ 你好吗 привет", "don't I'LL")
CORPUS = [*PROBES, *tiny.TEXT.splitlines(), *(f"{i} {i * 37} {i * 991}" for i in range(200))] * 3


def splitting(kind: str) -> Tokenizer:
    """Byte-level and other BPE tokenizers that split text as no class of transformers does."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
    if kind == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), byte_level])
    elif kind == "words":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    if kind == "lowercase":
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=tiny.SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def directory(path: Path, family: str, tokenizer: Tokenizer | None, **config: Any) -> Path:
    tiny.model(family, layers=1, vocab_size=1200).save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save(str(path / "tokenizer.json"))
    named = {"pad_token": "<|pad|>", "eos_token": "<|end|>", **config}
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    return path


CLASSES = (
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "GPT2Tokenizer",
    "GemmaTokenizerFast",
    None,
)


@pytest.mark.parametrize("kind", ["gpt2", "digits", "words", "lowercase", "whole"])
@pytest.mark.parametrize("named", CLASSES)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_class_that_splits_otherwise_does_not_take_the_place_of_the_file(
    family: str, named: str | None, kind: str, tmp_path: Path
) -> None:
    own = splitting(kind)
    given = directory(tmp_path / "given", family, own, **({"tokenizer_class": named} if named else {}))
    tokenizer = load_tokenizer(given)
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text, add_special_tokens=False).ids
    said = save_model(load_model(given, "cpu"), tokenizer, tmp_path / "out", given)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (given / "tokenizer.json").read_bytes()
    others = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        ids = own.encode(text, add_special_tokens=False).ids
        assert others(text, add_special_tokens=False)["input_ids"] == ids or AUTO_SPLITS_OTHERWISE in said


def sentencepiece_model(path: Path, kind: str, **more: Any) -> Any:
    spm = pytest.importorskip("sentencepiece")
    text = path.with_suffix(".txt")
    text.write_text("\n".join(line.replace("\n", " ") for line in CORPUS))
    spm.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(path.with_suffix("")),
        vocab_size=500,
        model_type=kind,
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
        hard_vocab_limit=False,
        **more,
    )
    path.with_suffix(".vocab").unlink()
    text.unlink()
    return spm.SentencePieceProcessor(model_file=str(path))


LLAMA = {"split_digits": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


@pytest.mark.parametrize("legacy", [True, False])
def test_a_sentencepiece_model_alone_gives_its_own_ids(legacy: bool, tmp_path: Path) -> None:
    """As Vicuna 1.5 and other children of Llama are published."""
    given = directory(tmp_path / "given", "llama", None, tokenizer_class="LlamaTokenizer", legacy=legacy, **SPECIAL)
    own = sentencepiece_model(given / "tokenizer.model", "bpe", **LLAMA)
    tokenizer = load_tokenizer(given)
    for text in (text.lstrip() for text in TEXTS):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == own.encode(text), text
    save_model(load_model(given, "cpu"), tokenizer, tmp_path / "out", given)
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (given / "tokenizer.model").read_bytes()
    again = load_tokenizer(tmp_path / "out")
    assert [again(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_a_conversion_that_splits_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = directory(tmp_path / "given", "llama", None, tokenizer_class="LlamaTokenizer", **SPECIAL)
    sentencepiece_model(given / "tokenizer.model", "bpe", **LLAMA)
    monkeypatch.setattr(tokenizer_loading, "_ids_of_sentencepiece", lambda path: lambda text: [3, 4])
    with pytest.raises(UserError, match=r"add the tokenizer\.json"):
        load_tokenizer(given)


def test_without_sentencepiece_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = directory(tmp_path / "given", "llama", None, tokenizer_class="LlamaTokenizer", **SPECIAL)
    (given / "tokenizer.model").write_bytes(b"x")
    monkeypatch.setattr(tokenizer_loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece protobuf"):
        load_tokenizer(given)


NAMED = [{"name": "default", "template": tiny.CHAT}, {"name": "tool_use", "template": "tools"}]


def test_several_templates_in_the_file_of_a_processor(tmp_path: Path) -> None:
    given = directory(tmp_path / "given", "llama", splitting("gpt2"), tokenizer_class="PreTrainedTokenizerFast")
    (given / "chat_template.json").write_text(json.dumps({"chat_template": NAMED}))
    assert load_tokenizer(given).chat_template == {"default": tiny.CHAT, "tool_use": "tools"}
    assert ChatFormat.of(load_tokenizer(given)).prompt_text("x") == "<|user|>x<|end|><|assistant|>"


def test_a_directory_without_a_tokenizer_says_what_to_add(tmp_path: Path) -> None:
    tiny.model(layers=1).save_pretrained(tmp_path / "given")
    with pytest.raises(UserError, match=r"given' has no tokenizer: add the tokenizer\.json"):
        load_tokenizer(tmp_path / "given")


def test_named_templates_and_those_in_files_of_their_own(tmp_path: Path) -> None:
    """Taken as transformers takes them; the file of older processors where there is no other."""
    given = directory(tmp_path / "given", "llama", splitting("gpt2"), tokenizer_class="PreTrainedTokenizerFast")
    assert load_tokenizer(given).chat_template is None
    (given / "chat_template.json").write_text(json.dumps({"chat_template": "of the processor"}))
    assert load_tokenizer(given).chat_template == "of the processor"
    config = json.loads((given / "tokenizer_config.json").read_text())
    (given / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": NAMED}))
    tokenizer = load_tokenizer(given)
    assert tokenizer.chat_template == {"default": tiny.CHAT, "tool_use": "tools"}
    turns = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<|user|>x<|end|>"
    (given / "additional_chat_templates").mkdir()
    (given / "additional_chat_templates" / "rag.jinja").write_text("rag")
    (given / "chat_template.jinja").write_text("of its own file")
    expected = AutoTokenizer.from_pretrained(given).chat_template
    assert load_tokenizer(given).chat_template == expected == {"default": "of its own file", "rag": "rag"}
    save_model(load_model(given, "cpu"), tokenizer, tmp_path / "out", given)
    assert load_tokenizer(tmp_path / "out").chat_template == expected
