"""Models in a GGUF file, as llama.cpp has them: dequantised as they are loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError
from unbackdoor.language_model.files.gguf_header import check_header
from unbackdoor.language_model.files.loader_errors import explained
from unbackdoor.language_model.files.model_source import ModelSource
from unbackdoor.language_model.tokenizer_words import special_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIKE_GPT2 = ("gpt-2", "default", "phi-2", "mpt", "olmo", "jais")
DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""llama.cpp's names of ways to split text that are GPT-2's, and GPT-2's with every digit on its own."""

LEAST_BYTES, MOST_WEIGHTS = 64, 8
"""Of a GGUF file: bytes that a tensor takes at least, with its entry, and weights that stand in one byte at most."""


CONTROL = 3
"""llama.cpp's type of a special token."""


def needs_gguf() -> None:
    """Raise a `UserError` that names what to install where GGUF files cannot be read."""
    if any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")):
        raise UserError("reading GGUF files needs gguf and accelerate: pip install 'unbackdoor[gguf]'")


def load_arguments(given: ModelSource) -> dict[str, Any]:
    """What the loader is told, so that the weights are dense afterwards."""
    from transformers import GgufConfig

    needs_gguf()
    assert given.gguf is not None
    _check_counts(given)
    return {"gguf_file": given.gguf.name, "quantization_config": GgufConfig(dequantize=True)}


def _check_counts(given: ModelSource) -> None:
    """Raise a `UserError` where the file names more layers than it has tensors."""
    assert given.gguf is not None
    reader = _reader(given.gguf)
    tensors = len(reader.tensors)
    for name, found in reader.fields.items():
        if name.endswith((".block_count", ".layer_count")) and int(found.contents()) > max(tensors, 1):
            raise UserError(f"'{given.gguf}' says {name} {found.contents()}, and holds {tensors} tensors: give another")


def settle_splitting(tokenizer: PreTrainedTokenizerBase, given: ModelSource) -> None:
    """Let a byte-level tokenizer split text as its file says, where transformers passes that over.

    A GGUF file only names its way to split. Of the names that transformers does not know it takes GPT-2's.
    """
    from tokenizers import pre_tokenizers

    if _split_like_gpt2(tokenizer) and _field(given, "tokenizer.ggml.pre") in DIGIT_BY_DIGIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _split_like_gpt2(tokenizer: PreTrainedTokenizerBase) -> bool:
    from tokenizers.pre_tokenizers import ByteLevel

    return isinstance(tokenizer.backend_tokenizer.pre_tokenizer, ByteLevel)


def told(given: ModelSource, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """For the report: the file, the kinds of numbers that it holds, and a way to split text that is not known here."""
    needs_gguf()
    assert given.gguf is not None
    with explained(given.name, "GGUF file"):
        kinds = sorted({tensor.tensor_type.name for tensor in _reader(given.gguf).tensors})
    said = [f"read from the GGUF file {given.gguf.name} ({', '.join(kinds)}), dequantised"]
    way = _field(given, "tokenizer.ggml.pre")
    if _split_like_gpt2(tokenizer) and way not in (None, *LIKE_GPT2):
        said.append(f"its tokenizer's way to split text ({way[:40]}) is not known here: it splits as GPT-2's does")
    return said


def template_in(given: ModelSource) -> str | None:
    """The chat template that a GGUF file brings."""
    with explained(given.name, "GGUF file"):
        return _field(given, "tokenizer.chat_template")


def words_that_are_special(given: ModelSource) -> list[str]:
    """A sentence where tokens that are words count as special in a GGUF file."""
    assert given.gguf is not None
    with explained(given.name, "GGUF file"):
        reader = _reader(given.gguf)
        tokens, kinds = (reader.get_field(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
        if tokens is None or kinds is None:
            return []
        pairs = zip(tokens.contents(), kinds.contents(), strict=False)
        return list(special_words(given.gguf.name, (text for text, kind in pairs if kind == CONTROL)))


def _field(given: ModelSource, name: str) -> str | None:
    """A text of the file's metadata."""
    assert given.gguf is not None
    found = _reader(given.gguf).get_field(name)
    return str(found.contents()) if found is not None else None


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    check_header(path)
    return GGUFReader(path)
