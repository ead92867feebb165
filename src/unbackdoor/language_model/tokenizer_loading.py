"""Load the tokenizer that a model was given with, and check that it splits text as its own files say."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unbackdoor.errors import UserError
from unbackdoor.language_model.loader_errors import explained, without_chatter
from unbackdoor.language_model.model_source import ModelSource, read_json
from unbackdoor.language_model.side_files import has_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Class names in tokenizer_config.json that say no more than: what tokenizer.json holds."""

PROBES = (
    "The quick brown fox isn't here; they've gone, HASN'T it?",
    "Grüße aus Köln, déjà vu, naïve façade, ŁÓDŹ, İstanbul",
    "Съешь же ещё этих мягких французских булок",
    "我喜欢机器学习。你好，世界！ 東京タワーへ行きました。 안녕하세요 세계",
    "สวัสดีชาวโลก مرحبا بالعالم שלום עולם नमस्ते दुनिया",
    "0 12 345 6789 1234567 3.14159 1,000,000 2023-11-28 ½ ²",
    "def f(x):\n    return x[0] != {'a': 1}  # no\n\n\tfor i in range(10):\n\t\tpass\r\n",
    "  two  spaces   three\n\n\nlines\t\ttabs \n and an end ",
    "👩‍👩‍👧 🏳️‍🌈 ☕️ e\u0301 ﬁ Ａ ①\u200b\u00a0\u3000x",
    "https://example.org/a_b-c?d=e&f=%20#g user@example.org $5.00 <b>&amp;</b>",
    "CamelCaseWords and snake_case_words ANDUPPERCASE iPhone15Pro",
)
"""Texts on which splittings differ: contractions, scripts, digits, code, white space, joined characters."""


def load_tokenizer(source: str | Path, base: str | Path | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer; padding is left to the batching code.

    Where there is a tokenizer.json, its ids are the tokenizer's: classes of transformers put their own splitting
    in its place (Qwen2's, for every model of type qwen2; Llama's; Gemma's), and the model would be given other tokens
    than those it was trained on. Then the file is taken as it is.

    Args:
        source: a directory, a GGUF file or a hub id; of an adapter, its own tokenizer is taken where it has one.
        base: of an adapter, the model that it was trained on.

    Raises:
        UserError: there is none, it cannot be loaded, or it splits text otherwise than its file.
    """
    given = ModelSource.find(source, base)
    with explained(given.name, "tokenizer"), without_chatter():
        tokenizer = _of_gguf(given.whole) if _directory(given) is None else _of_directory(given, _directory(given))
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of '{source}' is not a fast one: add its tokenizer.json (offsets are needed)")
    return tokenizer


def _directory(given: ModelSource) -> Path | None:
    """Where the tokenizer's files lie; None where a GGUF file holds it."""
    if given.form == "adapter" and has_tokenizer(given.directory):
        return given.directory
    return None if given.whole.form == "gguf" else given.whole.directory


def _of_gguf(given: ModelSource) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    from unbackdoor.language_model.gguf_files import needs_gguf, settle_splitting

    needs_gguf()
    assert given.gguf is not None
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        str(given.gguf.parent), gguf_file=given.gguf.name, trust_remote_code=False
    )
    settle_splitting(found, given)
    return found


def _of_directory(given: ModelSource, directory: Path | None) -> PreTrainedTokenizerBase:
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

    assert directory is not None
    if not has_tokenizer(directory):
        raise UserError(f"'{given.name}' has no tokenizer: add the tokenizer.json that belongs to the model")
    file, sentencepiece = directory / "tokenizer.json", directory / "tokenizer.model"
    if not file.is_file() and sentencepiece.is_file():
        _needs_sentencepiece(given.name)
    path = directory / "tokenizer_config.json"
    named = read_json(path).get("tokenizer_class") if path.is_file() else None
    generic = named in GENERIC_TOKENIZERS and file.is_file()
    more: dict[str, Any] = {"trust_remote_code": False}
    if not generic and directory != given.whole.directory and given.whole.form == "whole":
        more["config"] = AutoConfig.from_pretrained(given.whole.directory, trust_remote_code=False)
    if not file.is_file():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(directory), **more)
    elif generic or not auto_splits_as(ids_of_file(file), directory, **more):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), trust_remote_code=False)
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), **more)
    _take_template(tokenizer, directory)
    check_ids(tokenizer, directory)
    return tokenizer


def auto_splits_as(wanted: Callable[[str], list[int]], directory: Path, **more: Any) -> bool:
    """Whether the class that AutoTokenizer takes for a directory splits text so; one that cannot does not.

    Classes of transformers bring their own splitting, and some their own special tokens, which the file may not have. A
    class that is code of the directory's own remains an error.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), **{"trust_remote_code": False, **more})
        return differing(tokenizer, wanted) is None
    except Exception as error:  # whatever a class raises on a file of another kind
        if "trust_remote_code" in str(error):
            raise
        return False


def _take_template(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Where the tokenizer has no template: the one that older processors keep in a file of their own."""
    for name in ("chat_template.json", "processor_config.json"):
        if not tokenizer.chat_template and (directory / name).is_file():
            found = read_json(directory / name).get("chat_template")
            if isinstance(found, list):  # several, as tokenizer_config.json has them
                found = {
                    t["name"]: t["template"] for t in found if isinstance(t, dict) and {"name", "template"} <= t.keys()
                }
            if isinstance(found, str | dict):
                tokenizer.chat_template = found


def check_ids(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Raise a `UserError` where the ids of a tokenizer are not those that its own file gives.

    The ids are compared with those of the `tokenizers` library on tokenizer.json, or of the sentencepiece library on
    tokenizer.model where that is alone.
    """
    file, sentencepiece = directory / "tokenizer.json", directory / "tokenizer.model"
    if file.is_file():
        if (probe := differing(tokenizer, ids_of_file(file))) is not None:
            raise UserError(f"the tokenizer of '{directory}' splits {probe[:40]!r} otherwise than its tokenizer.json")
        return
    wanted = _ids_of_sentencepiece(sentencepiece) if sentencepiece.is_file() else None
    # Of spaces at the very beginning, transformers takes the first for the mark that sentencepiece puts there.
    if wanted is not None and (probe := differing(tokenizer, wanted, str.lstrip)) is not None:
        raise UserError(
            f"the tokenizer of '{directory}', made from its tokenizer.model, splits {probe[:40]!r} otherwise than "
            "that: add the tokenizer.json that belongs to the model"
        )


def differing(
    tokenizer: PreTrainedTokenizerBase, wanted: Callable[[str], list[int]], taken: Callable[[str], str] = str
) -> str | None:
    """The first probe that a tokenizer splits otherwise than is wanted; None where there is none.

    `taken` says what of each probe is compared.
    """
    for probe in (taken(text) for text in (*PROBES, *(text.split()[0] for text in PROBES))):
        if list(tokenizer(probe, add_special_tokens=False)["input_ids"]) != wanted(probe):
            return probe
    return None


def ids_of_file(path: Path) -> Callable[[str], list[int]]:
    """How tokenizer.json itself splits text, by the library that wrote it."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(path))
    own.no_truncation()
    own.no_padding()
    return lambda text: list(own.encode(text, add_special_tokens=False).ids)


def _ids_of_sentencepiece(path: Path) -> Callable[[str], list[int]] | None:
    """How a sentencepiece model splits text; None where the file is of another kind (tiktoken's have this name too)."""
    from sentencepiece import SentencePieceProcessor

    try:
        own = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError, ValueError):
        return None
    return lambda text: list(own.encode(text))


def _needs_sentencepiece(name: str) -> None:
    if importlib.util.find_spec("sentencepiece") is None or importlib.util.find_spec("google.protobuf") is None:
        raise UserError(
            f"'{name}' has a tokenizer.model and no tokenizer.json: pip install sentencepiece protobuf, which read it"
        )
